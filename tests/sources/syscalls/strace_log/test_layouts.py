"""What stands around a call: pids, times, durations, numbers, as the options of strace print them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sockscope.model.calls import Call, CallGroup
from sockscope.model.seed import FileKind
from sockscope.sources.syscalls.strace_log.encode import NotUnderstood
from sockscope.sources.syscalls.strace_log.log import LogClock
from sockscope.sources.syscalls.strace_log.missing import Signs, is_unfiltered_call, missing_groups
from sockscope.sources.syscalls.strace_log.names import read_name
from sockscope.sources.syscalls.strace_log.task_lines import encode_task_line, signal_number
from tests.sources.syscalls.strace_log.logs import called, read, rows

S, MS, US = 1_000_000_000, 1_000_000, 1_000
TEN = 10 * 3600 * S


@pytest.mark.parametrize(
    ("line", "tid", "enter_ns", "duration_ns", "clock"),
    [
        (b"close(3)                                = 0", 1, 0, 0, LogClock.NONE),
        (b"42    close(3) = 0", 42, 0, 0, LogClock.NONE),
        (b"[pid    42] close(3) = 0", 42, 0, 0, LogClock.NONE),
        (b"[pid 42<my app>] close(3) = 0", 42, 0, 0, LogClock.NONE),
        (b"42<my>app> close(3) = 0", 42, 0, 0, LogClock.NONE),
        (b"10:00:01 close(3) = 0", 1, TEN + S, 0, LogClock.TIME_OF_DAY),
        (b"42  10:00:01.500000 close(3) = 0 <0.000012>", 42, TEN + S + 500 * MS, 12 * US, LogClock.TIME_OF_DAY),
        (b"10:00:01.500 close(3) = 0 <1.500>", 1, TEN + S + 500 * MS, 1500 * MS, LogClock.TIME_OF_DAY),
        (b"1795264596.348608 close(3) = 0", 1, 1795264596 * S + 348608 * US, 0, LogClock.DATED),
        (
            b"20454 1795264596.348608808 close(3) = 0 <12.000079849>",
            20454,
            1795264596348608808,
            12_000_079_849,
            LogClock.DATED,
        ),
        (b"42 1795264596 close(3) = 0 <3>", 42, 1795264596 * S, 3 * S, LogClock.DATED),
        (b"     1.000123 close(3) = 0", 1, S + 123 * US, 0, LogClock.RELATIVE),
        (b"21432<python3>      0.000409 close(3) = 0", 21432, 409 * US, 0, LogClock.RELATIVE),
        (b"42 12:00:00.000001 (+     0.000117) close(3) = 0", 42, 12 * 3600 * S + US, 0, LogClock.TIME_OF_DAY),
        (b"42 12:00:00.000001 (+     0.000117) [   3] close(3) = 0", 42, 12 * 3600 * S + US, 0, LogClock.TIME_OF_DAY),
        (b"42 10:00:01 [00007fa1ed71fa07] close(3) = 0 <0.000048>", 42, TEN + S, 48 * US, LogClock.TIME_OF_DAY),
        (b"[????????????????] close(3) = 0", 1, 0, 0, LogClock.NONE),
    ],
)
def test_a_line_alone(tmp_path: Path, line: bytes, tid: int, enter_ns: int, duration_ns: int, clock: LogClock) -> None:
    """Between lines like it, which are read in columns, and alone among others, which is read by itself."""
    other = b"7 11:00:00.000001 brk(NULL) = 0x1\n" * 3 if clock is LogClock.TIME_OF_DAY else b"brk(NULL) = 0x1\n" * 3
    logs = [read(tmp_path, line + b"\n")]
    if clock in (LogClock.TIME_OF_DAY, LogClock.NONE):
        logs.append(read(tmp_path, line + b"\n" + other))
    for log in logs:
        (row,) = rows(log, Call.close)
        assert log.clock is clock
        assert (row["enter_ns"], row["exit_ns"] - row["enter_ns"]) == (enter_ns, duration_ns)
        assert row["tid"] == tid


def test_the_name_from_decode_pids(tmp_path: Path) -> None:
    log = read(tmp_path, b"42<my app> close(3) = 0\n")
    assert [process.comm for process in log.seed.processes] == ["my app"]


def test_lines_of_one_moment_keep_their_order(tmp_path: Path) -> None:
    log = read(tmp_path, b"".join(b"10:00:01 close(%d) = 0\n" % fd for fd in range(3, 50)), chunk_bytes=100)
    closes = rows(log, Call.close)
    assert closes["args"][:, 0].tolist() == list(range(3, 50))
    assert len(set(closes["enter_ns"].tolist())) == len(closes)


def test_relative_times_add_up(tmp_path: Path) -> None:
    log = read(
        tmp_path, b"     0.000000 close(3) = 0\n     0.500000 brk(0) = 0\n     1.000000 close(4) = 0\n", chunk_bytes=30
    )
    assert rows(log, Call.close)["enter_ns"].tolist() == [0, 1500 * MS]


@pytest.mark.parametrize(
    ("first", "second", "name", "ret"),
    [
        (b"read(3,  <unfinished ...>", b'<... read resumed> "abc", 10) = 3', "read", 3),
        (b"read(3,  <unfinished ...>", b'<... read resumed>"abc", 10) = 3', "read", 3),
        (b"close(3 <unfinished ...>", b"<... close resumed> )     = 0", "close", 0),
        (b"close(3 <unfinished ...>", b"<... close resumed>)      = 0", "close", 0),
        (b"read(3,  <unfinished ...>", b"<... read resumed> <unfinished ...>) = ?", "read", 0),
    ],
)
@pytest.mark.parametrize("between", [b"", b"6 close(9) = 0\n", b"hello\n"])
def test_halves(tmp_path: Path, first: bytes, second: bytes, name: str, ret: int, between: bytes) -> None:
    for chunk_bytes in (10, 1 << 16):
        log = read(tmp_path, b"5 " + first + b"\n" + between + b"5 " + second + b"\n", chunk_bytes=chunk_bytes)
        assert (name, 5, ret) in called(log)
        assert log.unread_count == between.count(b"hello")


@pytest.mark.parametrize(
    ("text", "call", "args"),
    [
        (b"+++ exited with 7 +++", Call.task_exit, (7 << 8, 0, 0)),
        (b"+++ killed by SIGKILL +++", Call.task_exit, (9, 0, 0)),
        (b"+++ killed by SIGSEGV (core dumped) +++", Call.task_exit, (11 | 128, 0, 0)),
        (b"--- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=1, si_uid=0} ---", Call.task_signal, (15, 0, 1)),
        (b"--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=NULL} ---", Call.task_signal, (11, 1, 0)),
        (b"--- SIGCHLD (Child exited) @ 0 (0) ---", Call.task_signal, (17, 128, 0)),
        (b"--- {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=9} (Child exited) ---", Call.task_signal, (17, 1, 9)),
        (
            b"--- SIGRT_1 {si_signo=SIGRT_1, si_code=SI_TKILL, si_pid=9, si_uid=0} ---",
            Call.task_signal,
            (33, 2**64 - 6, 9),
        ),
        (b"--- stopped by SIGTSTP ---", Call.task_stop, (20, 0, 0)),
    ],
)
def test_task_lines(text: bytes, call: Call, args: tuple[int, int, int]) -> None:
    made = encode_task_line(text)
    assert (made.call, made.args[:3]) == (call, args)


def test_signals_that_are_none() -> None:
    for name in (b"SIGNONE", b"SIGRTMAX_", b"TERM"):
        with pytest.raises(NotUnderstood):
            signal_number(name)


@pytest.mark.parametrize(
    ("text", "kind", "inode", "local", "peer"),
    [
        (b"socket:[123]", FileKind.SOCKET, 123, False, False),
        (b"TCP:[123]", FileKind.SOCKET, 123, False, False),
        (b"TCP:[0.0.0.0:80]", FileKind.SOCKET, 0, True, False),
        (b"TCPv6:[[::1]:80->[::1]:5555]", FileKind.SOCKET, 0, True, True),
        (b"UDP:[127.0.0.1:53->10.0.0.1:5555]", FileKind.SOCKET, 0, True, True),
        (b'UNIX-STREAM:[123->456,"/run/x.sock"]', FileKind.SOCKET, 123, True, False),
        (b"UNIX:[123->456]", FileKind.SOCKET, 123, False, False),
        (b"(null):[123->456]", FileKind.SOCKET, 123, False, False),
        (b"NETLINK:[ROUTE:123]", FileKind.SOCKET, 123, False, False),
        (b"anon_inode:[eventpoll]", FileKind.EPOLL, 0, False, False),
        (b"pipe:[7]", FileKind.PIPE, 0, False, False),
        (b"/dev/shm/x", FileKind.SHARED_MEMORY, 0, False, False),
        (b"/dev/null<char 1:3>", FileKind.OTHER, 0, False, False),
        (b"TCP:[999.0.0.1:80->[::zz]:99999]", FileKind.SOCKET, 0, False, False),
    ],
)
def test_names(text: bytes, kind: FileKind, inode: int, local: bool, peer: bool) -> None:
    facts = read_name(text)
    assert (facts.kind, facts.inode) == (kind, inode)
    assert (bool(facts.local), bool(facts.peer)) == (local, peer)


NETWORK, DESCRIPTORS, TRANSFERS, WAITS = (
    CallGroup.NETWORK,
    CallGroup.DESCRIPTORS,
    CallGroup.TRANSFERS,
    CallGroup.WAITS,
)
LEAKS = Signs(
    seen=frozenset({NETWORK, WAITS}),
    unfiltered=False,
    unfollowed=False,
    made_count=6,
    given_again=False,
    receives=True,
    sends=True,
    would_block=True,
)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({}, set()),
        ({"given_again": True}, {DESCRIPTORS}),
        ({"made_count": 2}, {DESCRIPTORS}),
        ({"sends": False}, {TRANSFERS}),
        ({"seen": frozenset({NETWORK, DESCRIPTORS})}, {WAITS}),
        ({"seen": frozenset({NETWORK, DESCRIPTORS}), "would_block": False}, set()),
        ({"seen": frozenset({NETWORK})}, {DESCRIPTORS, WAITS}),
        ({"seen": frozenset({NETWORK}), "sends": False}, {DESCRIPTORS, TRANSFERS, WAITS}),
        ({"seen": frozenset({NETWORK}), "unfiltered": True}, set()),
        ({"unfollowed": True}, {CallGroup.TASKS}),
    ],
)
def test_missing_groups(change: dict[str, Any], missing: set[CallGroup]) -> None:
    """From a server that leaks: it waits and serves, and closes nothing."""
    assert set(missing_groups(replace(LEAKS, **change))) == missing


def test_calls_that_no_filter_keeps() -> None:
    assert is_unfiltered_call("brk")
    assert not any(map(is_unfiltered_call, ("mmap", "fstat", "rt_sigaction", "getdents64")))
