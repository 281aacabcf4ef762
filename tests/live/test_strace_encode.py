"""One program under strace, printed in every manner, and under the ptrace engine: both tell the same.

Addresses, process numbers and ports differ from run to run and are made alike first. Left out of the program is what
strace does not print: what an event lies at that EPOLL_CTL_DEL is given, the memory of a call that failed, and
what a third argument holds that the command (FIOCLEX, F_GETFL) does not take.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sockscope.model.calls import Call
from sockscope.model.constants import SCM_CREDENTIALS, SOL_SOCKET
from sockscope.model.events import EventFlag, Events, Section, unpack_sections
from sockscope.sources.syscalls.strace_log.encode import encode
from sockscope.sources.syscalls.strace_log.signatures import signature_of
from tests.sources.syscalls.ptrace_support import Trace, compile_c

pytestmark = pytest.mark.live

PROGRAM = Path(__file__).with_name("strace_encode_program.c")
BEGIN, END = b"/sockscope-begin", b"/sockscope-end"
LINE = re.compile(rb"(\w+)\((.*)\)\s+= (.*)\n", re.DOTALL)
_SO_PEERCRED = 17
_PROCESSES = {Call.kill: (0,), Call.tkill: (0,), Call.tgkill: (0, 1), Call.wait4: (0,), Call.pidfd_open: (0,)}
_RETURN_PROCESSES = {Call.fork, Call.clone, Call.clone3, Call.wait4}
_SYSTEM_V = {Call.shmat: 0, Call.shmctl: 0}
_RETURN_OTHER = {Call.shmget, Call.shmat, Call.mmap}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One call made comparable."""

    call: Call
    args: tuple[int, ...]
    ret: int
    sections: Mapping[Section, bytes]
    flags: EventFlag


def normal_args(call: Call, args: tuple[int, ...]) -> tuple[int, ...]:
    """Registers that the call has; pointers as 0 or 1, process numbers and segments as 1."""
    found = []
    for place, kind in enumerate(signature_of(call)):
        value = args[place]
        if kind == "p":
            value = int(value != 0)
        elif kind == "x" and (call is Call.ioctl or args[1] in (1, 3)):
            value = 0  # the command takes none, or an address
        elif kind == "-":
            value = 0
        else:
            value &= 0xFFFF_FFFF  # an int: what the upper half of its register holds is left over
            if place in _PROCESSES.get(call, ()) and 1 < value < 0x3FFF_FFFE:
                value = 1
            if (call is Call.waitid and place == 1) or _SYSTEM_V.get(call) == place:
                value = 1
        found.append(value)
    return tuple(found)


def normal_ret(call: Call, ret: int) -> int:
    return 1 if ret > 0 and (call in _RETURN_PROCESSES or call in _RETURN_OTHER) else ret


def normal_section(call: Call, args: tuple[int, ...], kind: Section, data: bytes) -> bytes:
    if kind is Section.SOCKADDR and data[:1] in (b"\x02", b"\x0a") and data[2:4] not in (b"\0\0", b"\0\x01"):
        return data[:2] + b"PP" + data[4:]
    if kind is Section.OPTION and args[2] == _SO_PEERCRED:
        return b"PIDP" + data[4:]
    if kind is Section.CONTROL and struct.unpack_from("<ii", data, 8) == (SOL_SOCKET, SCM_CREDENTIALS):
        return data[:16] + b"PIDP" + data[20:]
    return data


def told(call: Call, args: tuple[int, ...], ret: int, blob: bytes, flags: EventFlag) -> Told:
    sections = {Section(kind): data for kind, errno, data in unpack_sections(blob) if not errno}
    return Told(
        call=call,
        args=normal_args(call, args),
        ret=normal_ret(call, ret),
        sections={kind: normal_section(call, args, kind, data) for kind, data in sections.items()},
        flags=flags,
    )


def between_markers(calls: Iterator[Told]) -> list[Told]:
    found: list[Told] = []
    inside = False
    for each in calls:
        path = each.sections.get(Section.PATH, b"")
        inside |= path == BEGIN
        if inside:
            found.append(each)
        if path == END:
            return found
    raise AssertionError(f"no end marker after {len(found)} calls")


def by_engine(program: str) -> list[Told]:
    with Trace(launch=[program]) as trace:
        events = trace.join()

    def calls(events: Events) -> Iterator[Told]:
        for row in range(len(events)):
            record = events.records[row]
            call = events.call(row)
            if int(record["tid"]) == trace.tgid and call < Call.task_new:
                args = tuple(int(each) for each in record["args"])
                blob = bytes(events.blob_of(row))
                yield told(call, args, int(record["ret"]), blob, EventFlag(int(record["flags"])))

    return between_markers(calls(events))


def by_strace(program: str, folder: Path, options: tuple[str, ...], strace: str = "strace") -> list[Told]:
    log = folder / "log"
    subprocess.run([strace, "-o", str(log), *options, program], check=True, timeout=30, capture_output=True)

    def calls() -> Iterator[Told]:
        for line in log.read_bytes().splitlines(keepends=True):
            found = LINE.fullmatch(line)
            if found is None:
                assert line[:3] in (b"---", b"+++"), line
                continue
            encoded = encode(found[1].decode(), found[2], found[3])
            if encoded is not None:
                yield told(encoded.call, encoded.args, encoded.ret, encoded.blob, encoded.flags)

    return between_markers(calls())


def differences(live: Told, text: Told) -> list[str]:
    """What strace's record lacks or has otherwise; a shorter copy of the same bytes is no difference if it says so."""
    found = []
    if (live.args, live.ret) != (text.args, text.ret):
        found.append(f"{live.args} = {live.ret} but {text.args} = {text.ret}")
    if (live.flags ^ text.flags) & ~EventFlag.TRUNCATED:
        found.append(f"{live.flags!r} but {text.flags!r}")
    for kind in live.sections.keys() | text.sections.keys():
        one, other = live.sections.get(kind), text.sections.get(kind)
        if one == other:
            continue
        if one is not None and other is not None and _prefix(kind, one, other, text.flags):
            continue
        found.append(f"{kind.name}: {one!r} but {other!r}")
    return [f"{live.call.name}: {each}" for each in found]


def _prefix(kind: Section, live: bytes, text: bytes, flags: EventFlag) -> bool:
    if kind is Section.PAYLOAD and len(live) == PAYLOAD_BYTES:
        return text.startswith(live) or (live.startswith(text) and bool(flags & EventFlag.TRUNCATED))
    return live.startswith(text) and bool(flags & EventFlag.TRUNCATED)


PAYLOAD_BYTES = 64
"""What tests.sources.syscalls.ptrace_support.Trace takes."""

MANNERS: tuple[tuple[str, ...], ...] = (
    ("-s", "200"),
    ("-v", "-s", "200"),
    ("-yy", "-s", "200"),
    ("-y", "-xx", "-s", "200"),
    ("-x",),
    ("-s", "4"),
    ("-X", "raw", "-s", "200"),
    ("-X", "verbose", "-yy", "-v", "-s", "200"),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_c(PROGRAM.read_text(), tmp_path_factory.mktemp("program"), "-w")


@pytest.fixture(scope="module")
def live(program: str) -> list[Told]:
    return by_engine(program)


@pytest.mark.parametrize("manner", MANNERS, ids=" ".join)
def test_the_text_gives_the_records_of_the_live_engine(
    manner: tuple[str, ...], program: str, live: list[Told], tmp_path: Path
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    text = by_strace(program, tmp_path, manner)
    assert [each.call.name for each in text] == [each.call.name for each in live]
    assert [each for one, other in zip(live, text, strict=True) for each in differences(one, other)] == []


def test_every_syscall_of_the_model_is_made_by_the_program(live: list[Told]) -> None:
    made = {each.call for each in live}
    never = {Call.unknown, Call.munmap, Call.vfork, Call.exit, Call.exit_group}
    assert {call for call in Call if call < Call.task_new} - made == never
