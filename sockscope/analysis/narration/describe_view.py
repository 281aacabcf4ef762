"""One event taken out of the table: plain ints, and its blob sections by kind."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sockscope.model.calls import FIRST_TASK_EVENT, READS, WRITES, Call
from sockscope.model.events import EventFlag, Events, Section, unpack_sections

_ROW = struct.Struct("<qqq6QQIiiHH")
"""EVENT_DTYPE."""
_MULTIPLE = frozenset({Call.sendmmsg, Call.recvmmsg})
_CALLS = {int(call): call for call in Call}
_ENTERED_ONLY = int(EventFlag.ENTERED_ONLY)
"""A plain int: an enum's own `&` costs a microsecond."""
_URING = int(EventFlag.URING)
_VECTORS = frozenset({Call.readv, Call.writev, Call.preadv, Call.pwritev, Call.preadv2, Call.pwritev2})


def signed32(value: int) -> int:
    """An `int` argument out of its 64-bit register (the upper half is noise)."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def signed64(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An event as `describe` and the narrators read it.

    Attributes:
        number: the call number as recorded, also where `call` is unknown.
        args: six unsigned 64-bit values.
        ret: result or -errno.
        sections: first section of each kind whose copy did not fail whole.
    """

    call: Call
    number: int
    args: tuple[int, ...]
    ret: int
    flags: int
    tgid: int
    tid: int
    enter_ns: int
    exit_ns: int
    sections: dict[int, bytes]

    @classmethod
    def of(cls, events: Events, event: int) -> View:
        # The whole row at once: numpy's own way takes several times as long, field by field twenty times.
        row = _ROW.unpack_from(events.records[event])
        enter_ns, exit_ns, ret, *args, offset, length, tgid, tid, number, flags = row
        sections: dict[int, bytes] = {}
        for kind, errno, data in unpack_sections(events.blob.data[offset : offset + length]):
            if not (errno and not data):
                sections.setdefault(kind, data)
        return cls(
            call=_CALLS.get(number, Call.unknown),
            number=number,
            args=tuple(args),
            ret=ret,
            flags=flags,
            tgid=tgid,
            tid=tid,
            enter_ns=enter_ns,
            exit_ns=exit_ns,
            sections=sections,
        )

    def int_arg(self, index: int) -> int:
        return signed32(self.args[index])

    @property
    def is_task(self) -> bool:
        return self.number >= FIRST_TASK_EVENT

    @property
    def uring(self) -> bool:
        """It went through an io_uring: `enter_ns` is its submission, `exit_ns` its completion."""
        return bool(self.flags & _URING)

    @property
    def returned(self) -> bool:
        return not self.flags & _ENTERED_ONLY

    @property
    def errno(self) -> int:
        """0 for success and for what has not returned."""
        return -self.ret if -4096 < self.ret < 0 and not self.flags & _ENTERED_ONLY else 0

    @property
    def payload(self) -> bytes:
        return self.sections.get(Section.PAYLOAD, b"")

    @property
    def asked_bytes(self) -> int:
        """What the program offered or asked for; -1 where that is not known."""
        if self.call in (Call.read, Call.write, Call.pread64, Call.pwrite64, Call.sendto, Call.recvfrom):
            return self.args[2]
        if self.call == Call.sendfile:
            return self.args[3]
        total = self.sections.get(Section.IOV_TOTAL, b"")
        return int(struct.unpack("<Q", total)[0]) if len(total) == 8 else -1

    @property
    def moved_bytes(self) -> int:
        """What reads and writes really moved; 0 for errors and for all other calls."""
        if self.errno or not self.returned or self.ret < 0:
            return 0
        if self.call in _MULTIPLE:
            lengths = self.sections.get(Section.MMSG_LENS, b"")
            return sum(struct.unpack(f"<{len(lengths) // 4}I", lengths[: len(lengths) // 4 * 4]))
        return self.ret if self.call in READS or self.call in WRITES else 0

    @property
    def is_vector(self) -> bool:
        return self.call in _VECTORS

    @property
    def time_ns(self) -> int:
        """When it began, as far as that is known; through an io_uring, when it was done."""
        if self.uring and self.exit_ns >= 0:
            return self.exit_ns
        return self.enter_ns if self.enter_ns >= 0 else self.exit_ns

    @property
    def duration_ns(self) -> int:
        """0 for instants, where the entry was not seen and through an io_uring; -1 where it has not returned."""
        if not self.returned:
            return -1
        if self.uring:
            return 0
        return max(0, self.exit_ns - self.enter_ns) if self.enter_ns >= 0 else 0
