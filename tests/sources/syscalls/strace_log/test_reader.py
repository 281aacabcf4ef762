"""Whole logs: what becomes of their lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from sockscope.errors import DamagedInputError, UsageError
from sockscope.model.calls import Call, CallGroup
from sockscope.model.events import EventFlag, Section
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import decode_sockaddr
from sockscope.sources.syscalls.strace_log.log import LogClock
from sockscope.sources.syscalls.strace_log.reader import read_strace
from tests.sources.syscalls.strace_log.logs import SERVER, called, read, rows, same

S = 1_000_000_000


def test_a_server_with_a_thread_and_a_child(tmp_path: Path) -> None:
    log = read(tmp_path, SERVER)
    assert log.unread == ()
    assert log.notes == ()
    assert log.clock is LogClock.DATED
    assert log.coverage.engine == "strace"
    assert log.coverage.resolution_ns == 1000
    assert log.coverage.missing_groups == ()
    assert log.line_count == SERVER.count(b"\n")
    records = log.events.records
    assert dict(zip(records["tid"].tolist(), records["tgid"].tolist(), strict=True)) == {
        21332: 21332,
        21373: 21332,
        21375: 21375,
    }
    made = rows(log, Call.task_new)
    assert made["args"][:, :2].tolist() == [[21373, 21332], [21375, 21375]]
    assert rows(log, Call.task_exit)["args"][:, 0].tolist() == [0, 0, 3 << 8]
    assert rows(log, Call.task_signal)["args"][:, :3].tolist() == [[23, 0, 21332], [17, 1, 21375]]
    execs = rows(log, Call.task_exec)
    assert execs["tid"].tolist() == [21332, 21375]
    row = int((records["call"] == Call.task_exec).nonzero()[0][1])
    assert log.events.section(row, Section.PATH) == b"/bin/true"
    assert log.events.section(row, Section.COMM) == b"true"


def test_two_halves_become_one_call(tmp_path: Path) -> None:
    (accepted,) = rows(read(tmp_path, SERVER), Call.accept4)
    assert accepted["enter_ns"] == 1795264689_648761000
    assert accepted["exit_ns"] - accepted["enter_ns"] == 14511000
    assert accepted["ret"] == 4
    assert accepted["args"][0] == 3


def test_the_vfork_child_is_born_before_its_first_event(tmp_path: Path) -> None:
    log = read(tmp_path, SERVER)
    born = rows(log, Call.task_new)[1]
    first = rows(log, Call.execve)[1]
    assert born["enter_ns"] <= first["enter_ns"]


def test_names_teach_addresses_that_are_no_calls(tmp_path: Path) -> None:
    log = read(tmp_path, SERVER)
    told = [
        (
            Call(int(row["call"])).name,
            int(row["args"][0]),
            str(decode_sockaddr(log.events.section(at, Section.SOCKADDR) or b"")),
        )
        for at, row in enumerate(log.events.records)
        if row["flags"] & EventFlag.SEEDED
    ]
    assert told == [
        ("getsockname", 3, "0.0.0.0:46453"),
        ("getsockname", 4, "127.0.0.1:46453"),
        ("getpeername", 4, "127.0.0.1:35370"),
    ]
    assert len(log.seed.fds) == 0
    assert log.coverage.event_count == len(log.events) - len(told)


def test_what_was_open_before_is_seeded(tmp_path: Path) -> None:
    text = rb"""77 10:00:00.000001 epoll_wait(8<anon_inode:[eventpoll]>, [], 512, 5) = 0
77 10:00:00.100001 accept4(5<TCP:[127.0.0.1:80]>, NULL, NULL, 0) = 6<TCP:[127.0.0.1:80->127.0.0.1:5555]>
77 10:00:00.200001 read(7<socket:[4711]>, "x", 1) = 1
77 10:00:00.300001 write(1</var/log/x y>, "x", 1) = 1
77 10:00:00.400001 read(9<pipe:[12]>, "x", 1) = 1
77 10:00:00.500001 read(6<TCP:[127.0.0.1:80->127.0.0.1:5555]>, "x", 1) = 1
"""
    log = read(tmp_path, text)
    assert {(row["fd"], row["kind"], row["inode"]) for row in log.seed.fds} == {
        (8, FileKind.EPOLL, 0),
        (5, FileKind.SOCKET, 0),
        (7, FileKind.SOCKET, 4711),
        (1, FileKind.OTHER, 0),
        (9, FileKind.PIPE, 0),
    }
    assert log.clock is LogClock.TIME_OF_DAY
    assert [process.tids for process in log.seed.processes] == [(77,)]


def test_a_child_has_what_its_parent_had(tmp_path: Path) -> None:
    text = rb"""10 1000000000.000000 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7f) = 11
11 1000000000.100000 read(5<socket:[4711]>, "x", 1) = 1
10 1000000000.200000 read(5<socket:[4711]>, "x", 1) = 1
"""
    log = read(tmp_path, text)
    assert log.seed.fds[["tgid", "fd", "inode"]].tolist() == [(10, 5, 4711)]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1000, 4096])
def test_chunks_of_any_size_give_the_same_table(tmp_path: Path, chunk_bytes: int) -> None:
    assert same(read(tmp_path, SERVER).events, read(tmp_path, SERVER, chunk_bytes=chunk_bytes).events)


def test_gzip_and_crlf_and_holes(tmp_path: Path) -> None:
    plain = read(tmp_path, SERVER)
    (tmp_path / "log.gz").write_bytes(gzip.compress(SERVER[:1000]) + gzip.compress(SERVER[1000:]))
    assert same(plain.events, read_strace([tmp_path / "log.gz"]).events)
    assert same(plain.events, read(tmp_path, SERVER.replace(b"\n", b"\r\n")).events)
    assert same(plain.events, read(tmp_path, bytes(5000) + SERVER).events)


def test_a_damaged_gzip_gives_its_head(tmp_path: Path) -> None:
    packed = gzip.compress(SERVER * 50, compresslevel=1)
    (tmp_path / "log.gz").write_bytes(packed[: len(packed) // 2])
    log = read_strace([tmp_path / "log.gz"])
    assert len(log.events) > 10
    assert any(f"ends early (cut at byte {len(packed) // 2})" in note for note in log.notes)


@pytest.mark.parametrize("chunk_bytes", [2, 3, 1000])
def test_a_gzip_with_something_behind_it(tmp_path: Path, chunk_bytes: int) -> None:
    packed = gzip.compress(SERVER)
    for tail, said in ((bytes(100), ""), (b"garbage", f"something else follows from byte {len(packed)} on")):
        (tmp_path / "log.gz").write_bytes(packed + tail)
        log = read_strace([tmp_path / "log.gz"], chunk_bytes=chunk_bytes)
        assert same(log.events, read(tmp_path, SERVER).events)
        assert any("gzip" in note for note in log.notes) == bool(said)
        assert said in " ".join(log.notes)


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(SERVER)
    told: list[tuple[int, int]] = []
    read_strace([tmp_path / "log"], progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (len(SERVER), len(SERVER))


def test_one_file_a_thread(tmp_path: Path) -> None:
    """strace -ff -tt -o log"""
    first = b"""10:00:00.000001 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD|CLONE_SIGHAND) = 6001
10:00:00.000010 close(3)                = 0
10:00:00.000020 +++ exited with 0 +++
"""
    second = b"""10:00:00.000005 close(4)                = 0
10:00:00.000015 +++ exited with 0 +++
"""
    log = read(tmp_path, first, second, names=("log.6000", "log.6001"))
    assert set(log.events.records["tgid"].tolist()) == {6000}
    assert sorted(log.events.records["tid"].tolist()) == [6000, 6000, 6000, 6000, 6001, 6001]


CALLED = pytest.mark.parametrize("strace", [b"strace", b"/usr/bin/strace", b"./strace", b"../bin/strace"])


@CALLED
def test_stderr_names_nobody_while_one_is_left(tmp_path: Path, strace: bytes) -> None:
    text = b"""brk(NULL)                               = 0x55
clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLDstrace: Process 501 attached
, child_tidptr=0x7f) = 501
[pid   500] close(3)                    = 0
[pid   501] close(4)                    = 0
[pid   501] +++ exited with 0 +++
close(5)                                = 0
+++ exited with 0 +++
"""
    log = read(tmp_path, text.replace(b"strace:", strace + b":"))
    assert log.unread == ()
    assert called(log)[:1] == [("clone", 500, 501)]
    assert rows(log, Call.close)["tid"].tolist() == [500, 501, 500]
    assert log.clock is LogClock.NONE
    assert log.coverage.resolution_ns == 0


@CALLED
def test_a_call_that_began_while_nobody_was_named(tmp_path: Path, strace: bytes) -> None:
    text = b"""clone(child_stack=NULL, flags=SIGCHLDstrace: Process 501 attached
 <unfinished ...>
[pid   501] close(4)                    = 0
[pid   500] <... clone resumed>, child_tidptr=0x7f) = 501
"""
    log = read(tmp_path, text.replace(b"strace:", strace + b":"))
    assert sorted(called(log)) == [("clone", 500, 501), ("close", 501, 0), ("task_new", 500, 0)]


def test_a_filtered_log_says_what_it_lacks(tmp_path: Path) -> None:
    log = read(tmp_path, b"77 10:00:00.000001 accept4(5, NULL, NULL, 0) = 6\n")
    assert set(log.coverage.missing_groups) == {CallGroup.DESCRIPTORS, CallGroup.TRANSFERS, CallGroup.WAITS}
    assert any("filtered" in note for note in log.notes)


def test_a_child_that_only_sleeps_is_followed(tmp_path: Path) -> None:
    log = read(tmp_path, b"7 fork() = 8\n8 pause( <detached ...>\n8 getppid() = 7\n")
    assert CallGroup.TASKS not in log.coverage.missing_groups
    assert len(rows(log, Call.task_new)) == 1


def test_children_that_are_not_followed(tmp_path: Path) -> None:
    log = read(tmp_path, b"fork() = 6001\nbrk(NULL) = 0x1\n")
    assert log.coverage.missing_groups == (CallGroup.TASKS,)
    assert len(rows(log, Call.task_new)) == 0
    assert any("strace -f" in note for note in log.notes)


def test_calls_that_never_return(tmp_path: Path) -> None:
    text = b"""5 1000000000.000000 accept4(3, NULL, NULL, 0 <unfinished ...>
6 1000000000.000001 read(4,  <unfinished ...>
6 1000000000.000002 +++ killed by SIGKILL (core dumped) +++
"""
    log = read(tmp_path, text)
    for call in (Call.accept4, Call.read):
        (row,) = rows(log, call)
        assert row["flags"] & EventFlag.ENTERED_ONLY
        assert row["exit_ns"] == -1
    assert rows(log, Call.task_exit)["args"][:, 0].tolist() == [9 | 0x80]


def test_an_end_without_its_beginning_is_left_out_and_said(tmp_path: Path) -> None:
    log = read(tmp_path, b"5 <... accept4 resumed>NULL, NULL, 0) = 6\n5 close(6) = 0\n")
    assert called(log) == [("close", 5, 0)]
    assert log.unread_count == 0
    assert any("under way" in note for note in log.notes)


def test_a_restart_is_the_call_it_restarts(tmp_path: Path) -> None:
    text = b"""poll([{fd=3, events=POLLIN}], 1, 500) = ? ERESTART_RESTARTBLOCK (Interrupted by signal)
--- stopped by SIGSTOP ---
restart_syscall(<... resuming interrupted poll ...>) = 0
"""
    log = read(tmp_path, text)
    assert [ret for name, _, ret in called(log) if name == "poll"] == [-516, 0]
    assert rows(log, Call.task_stop)["args"][:, 0].tolist() == [19]


def test_an_exec_by_another_thread(tmp_path: Path) -> None:
    text = b"""50 1.000000 brk(NULL) = 0x1
50 1000000000.000001 futex(0x7f, FUTEX_WAIT, 51, NULL <unfinished ...>
51 1000000000.000002 execve("/bin/cat", ["cat"], 0x7f /* 3 vars */ <unfinished ...>
50 1000000000.000003 +++ superseded by execve in pid 51 +++
50 1000000000.000004 <... execve resumed>) = 0
50 1000000000.000005 close(3) = 0
"""
    log = read(tmp_path, text)
    (execed,) = rows(log, Call.task_exec)
    assert (execed["tid"], execed["args"][0]) == (50, 51)


def test_threads_that_were_there_are_grouped(tmp_path: Path) -> None:
    text = b"""100 1000000000.000000 read(3, "", 1) = 0
102 1000000000.000001 read(3, "", 1) = 0
101 1000000000.000002 read(3, "", 1) = 0
300 1000000000.000003 read(3, "", 1) = 0
101 1000000000.000004 exit(0) = ?
101 1000000000.000005 +++ exited with 0 +++
100 1000000000.000006 exit_group(1) = ?
102 1000000000.000007 +++ exited with 1 +++
100 1000000000.000008 +++ exited with 1 +++
"""
    log = read(tmp_path, text)
    records = log.events.records
    assert dict(zip(records["tid"].tolist(), records["tgid"].tolist(), strict=True)) == {
        100: 100,
        101: 100,
        102: 100,
        300: 300,
    }
    assert sum("was taken for a thread" in note for note in log.notes) == 2


def test_silenced_ends_are_inferred(tmp_path: Path) -> None:
    """strace -qq prints no `+++ exited +++`."""
    log = read(tmp_path, b"7 10:00:00 close(3) = 0\n7 10:00:01 exit_group(2) = ?\n")
    assert rows(log, Call.task_exit)["args"][:, 0].tolist() == [2 << 8]
    assert log.coverage.resolution_ns == S


def test_numbers_come_again(tmp_path: Path) -> None:
    text = b"""9 1000000000.000001 fork() = 20
20 1000000000.000002 close(3) = 0
20 1000000000.000003 +++ exited with 0 +++
9 1000000000.000004 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD) = 20
20 1000000000.000005 close(4) = 0
"""
    log = read(tmp_path, text)
    assert rows(log, Call.close)["tgid"].tolist() == [20, 9]


def test_midnight_passes(tmp_path: Path) -> None:
    log = read(tmp_path, b"23:59:59.900000 close(3) = 0\n00:00:00.100000 close(4) = 0\n")
    first, second = rows(log, Call.close)["enter_ns"].tolist()
    assert second - first == S // 5


def test_lines_that_say_nothing_are_counted_with_their_numbers(tmp_path: Path) -> None:
    log = read(tmp_path, b"close(3) = 0\nhello, world\n\nclose(4) = 0\n) = 7\n", chunk_bytes=9)
    assert [(unread.line_number, unread.text) for unread in log.unread] == [(2, "hello, world"), (5, ") = 7")]
    assert len(rows(log, Call.close)) == 2


@CALLED
def test_what_strace_says_is_no_noise(tmp_path: Path, strace: bytes) -> None:
    text = b"""strace: Process 77 attached with 2 threads
[pid    77] close(3) = 0
 > /usr/lib/x86_64-linux-gnu/libc.so.6(__close+0x10) [0xf7a50]
strace: [ Process PID=77 runs in 32 bit mode. ]
^Cstrace: Process 77 detached
 <detached ...>
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
100.00    0.000000           0        29         1 total
"""
    log = read(tmp_path, text.replace(b"strace:", strace + b":"))
    assert log.unread == ()
    assert called(log) == [("close", 77, 0)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xd4\xc3\xb2\xa1" + bytes(40), "pcap"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "pcapng"),
        (b"\x7fELF" + bytes(40), "program"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (gzip.compress(b"<html>nothing</html>"), "web page"),
        (b"BZh91AY", "bzip2"),
        (b"\x1f\x8b nonsense", "gzip"),
        (b"Dear reader,\nthis is a letter.\n", "Dear reader"),
        (b"", "nothing in the strace log"),
        (b"% time     seconds  usecs/call     calls\n", "strace -c"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(DamagedInputError, match=said) as caught:
        read(tmp_path, data)
    assert "log0.txt" in caught.value.message
    assert caught.value.help_text


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_strace([tmp_path / "none"])
    with pytest.raises(UsageError):
        read_strace([])


def test_a_log_lasts_to_its_last_line(tmp_path: Path) -> None:
    """Calls of no interest are no events, and yet show that strace was there."""
    log = read(
        tmp_path,
        b"""5 1700000100.000000 recvfrom(4<TCP:[10.0.0.1:80->10.0.0.2:55]>, "r", 64, 0, NULL, NULL) = 1 <0.000010>
5 1700000101.000000 getppid() = 1 <0.000010>
5 1700000102.000000 clock_nanosleep(CLOCK_MONOTONIC, 0, {tv_sec=0, tv_nsec=1}, NULL) = 0 <0.500000>
5 1700000103.000000 getppid( <detached ...>
""",
    )
    assert log.span_ns == (1_700_000_100_000_000_000, 1_700_000_103_000_000_000)


def test_what_was_open_before_is_not_known_to_outlive_exec(tmp_path: Path) -> None:
    log = read(tmp_path, b"5 1700000100.000000 accept4(4<TCP:[127.0.0.1:80]>, NULL, NULL, 0) = 5 <0.000010>\n")
    assert log.seed.fds["cloexec"].tolist() == [1]


def test_who_asks_for_bytes_by_socket_calls_is_not_filtered_of_reads(tmp_path: Path) -> None:
    log = read(
        tmp_path,
        b"""5 1700000100.000000 recvfrom(4, 0x7f, 64, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
5 1700000100.100000 sendto(4, "a", 1, 0, NULL, 0) = 1 <0.000010>
""",
    )
    assert CallGroup.TRANSFERS not in log.coverage.missing_groups
    assert CallGroup.DESCRIPTORS in log.coverage.missing_groups
