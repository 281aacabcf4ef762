"""The event table: syscalls and task events, one fixed record each, plus a byte blob.

Rows are in no promised order (several tracers write); the row number is the `EventId`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import Call

EVENT_DTYPE = np.dtype(
    [
        ("enter_ns", "<i8"),  # CLOCK_MONOTONIC; -1 where the entry was not seen
        ("exit_ns", "<i8"),  # CLOCK_MONOTONIC; -1 where the call has not returned
        ("ret", "<i8"),  # result, or -errno; 0 where not returned
        ("args", "<u8", (6,)),
        ("blob_offset", "<u8"),  # into the table's blob
        ("blob_bytes", "<u4"),
        ("tgid", "<i4"),
        ("tid", "<i4"),
        ("call", "<u2"),  # sockscope.model.calls.Call
        ("flags", "<u2"),  # EventFlag
    ]
)
"""96 bytes. Task events have enter_ns == exit_ns."""


UNSEEN_POINTER: Final = 1
"""Stands in `args` for an address that the source does not tell though something lies there: strace prints what a
pointer points to in its place. Never an address: nothing can be mapped there."""


class EventFlag(IntFlag):
    ENTERED_ONLY = 1
    """Still in the kernel when the session (or the thread) ended; exit_ns is -1."""
    NO_ENTRY = 2
    """Was already blocked at attach; enter_ns is -1 and args come from the exit stop."""
    TRUNCATED = 4
    """The blob holds less than what the call moved (prefix)."""
    TRACER_EINTR = 8
    """EINTR that the attach itself caused; not a fault of the program."""
    COPY_FAILED = 16
    """Some section could not be read (EFAULT, vanished); its `errno` says why."""
    SEEDED = 32
    """Never called; made from a snapshot, or from the name that strace gives a descriptor."""
    URING = 64
    """Went through an io_uring: entered when it was submitted, returned when it completed, with the arguments of
    the syscall it stands for. Other calls of the same thread may lie between."""


def is_seeded(records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Which of these EVENT_DTYPE rows are no calls of anybody (`EventFlag.SEEDED`): shape (n,)."""
    seeded: npt.NDArray[np.bool_] = (records["flags"] & EventFlag.SEEDED) != 0
    return seeded


class Section(IntEnum):
    """What a blob section holds. Values are part of the recording format."""

    SOCKADDR = 1  # struct sockaddr as passed or returned (raw, at most 128 bytes)
    PAYLOAD = 2  # first bytes read or written (first iovec for vectors)
    CONTROL = 3  # msg_control, raw cmsghdrs (SCM_RIGHTS and others)
    MSG_FLAGS = 4  # i4: msghdr.msg_flags after recvmsg (MSG_TRUNC, MSG_CTRUNC, ...)
    IOV_TOTAL = 5  # u8: sum of iov_len
    EPOLL_EVENTS = 6  # struct epoll_event x ret, packed 12 bytes (x86_64); also epoll_ctl's one
    EPOLL_EVENTS_ALIGNED = 7  # the same, 16 bytes (aarch64)
    POLLFDS = 8  # struct pollfd x nfds, at exit (fd i4, events i2, revents i2)
    FDSETS = 9  # select: read, write, except sets at exit; each ceil(nfds/64)*8 bytes; NULL set = zeros
    OPTION = 10  # sockopt value
    FD_PAIR = 11  # i4 x 2: socketpair, pipe
    PATH = 12  # NUL-terminated path, without the NUL
    INT = 13  # i4 pointed to by the last argument (FIONBIO, FIONREAD, wait status)
    MMSG_LENS = 14  # u4 x ret: msg_len of sendmmsg/recvmmsg
    TIMEOUT = 15  # i8 x 2: struct timespec (ppoll, pselect6, epoll_pwait2) or timeval (select)
    CLONE_ARGS = 16  # struct clone_args (clone3)
    COMM = 17  # /proc/PID/comm
    FDSETS_IN = 18  # select: the three sets at entry
    PEER = 19  # kernel events: the other end, struct sockaddr_in6 (v4 as v4-mapped)


_HEADER = struct.Struct("<BBHI")
"""Section header: kind u1, errno u1 (0: copied), reserved u2, length u4."""


def pack_section(kind: Section, data: bytes, errno: int = 0) -> bytes:
    """One blob section. A failed copy has errno set and whatever bytes were got."""
    return _HEADER.pack(kind, errno, 0, len(data)) + data


def unpack_sections(blob: bytes | memoryview) -> Iterator[tuple[int, int, bytes]]:
    """Yield (kind, errno, data) of each whole section; a cut tail ends the iteration silently."""
    at = 0
    while at + _HEADER.size <= len(blob):
        kind, errno, _, length = _HEADER.unpack_from(blob, at)
        at += _HEADER.size
        if at + length > len(blob):
            return
        yield kind, errno, bytes(blob[at : at + length])
        at += length


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """A table of events.

    Attributes:
        records: shape (n,), EVENT_DTYPE.
        blob: shape (m,), uint8; `blob_offset` indexes it.
    """

    records: npt.NDArray[np.void]
    blob: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.records)

    @classmethod
    def empty(cls) -> Events:
        return cls(records=np.zeros(0, EVENT_DTYPE), blob=np.zeros(0, np.uint8))

    @classmethod
    def concat(cls, parts: list[Events]) -> Events:
        """One table from several; blob offsets are moved along."""
        if not parts:
            return cls.empty()
        if len(parts) == 1:
            return parts[0]
        records = np.concatenate([p.records for p in parts])
        at = shift = 0
        for part in parts:
            records["blob_offset"][at : at + len(part)] += np.uint64(shift)
            at += len(part)
            shift += len(part.blob)
        return cls(records=records, blob=np.concatenate([p.blob for p in parts]))

    def blob_of(self, event: int) -> memoryview:
        """The blob bytes of one event."""
        row = self.records[event]
        start = int(row["blob_offset"])
        return self.blob.data[start : start + int(row["blob_bytes"])]

    def section(self, event: int, kind: Section) -> bytes | None:
        """The first section of this kind, or None where there is none or its copy failed whole."""
        for found, errno, data in unpack_sections(self.blob_of(event)):
            if found == kind and not (errno and not data):
                return data
        return None

    def call(self, event: int) -> Call:
        """The event's Call; `Call.unknown` for a number this version does not know."""
        number = int(self.records[event]["call"])
        return Call(number) if number in Call._value2member_map_ else Call.unknown


class Unassigned(IntEnum):
    """Why an event belongs to no connection."""

    ASSIGNED = 0
    NOT_A_DESCRIPTOR_CALL = 1
    OTHER_FILE = 2  # a regular file, pipe, eventfd, ...
    LISTENER = 3
    WAIT = 4  # a wait concerns many descriptors
    BAD_FD = 5  # EBADF: the number named nothing
    UNKNOWN_FD = 6  # opened before the attach and not in the snapshot
    UNCONNECTED = 7  # a socket that is not (yet) connected
    KERNEL_EVENT = 8  # no call of anybody: `Session.kernel` has its connection
    SEEDED = 9  # never called: it tells an address, and is of no use beyond that
