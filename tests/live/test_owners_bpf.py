"""Owners by the bpf iterator, against those by /proc: the same rows, but for what /proc cannot show."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sockscope.model.snapshot import Cause
from sockscope.model.sockets import OWNER_DTYPE
from sockscope.model.tcp import TcpState
from sockscope.sources.bpf.libbpf import problems
from sockscope.sources.sockets import owner_source
from sockscope.sources.sockets.bpf.iterator import FEW_PROCESSES, OBJECT, OwnerIterator
from sockscope.sources.sockets.fd_scan import FdScan
from sockscope.sources.sockets.look import look
from sockscope.sources.sockets.netlink import TCP_QUERIES, Ahead, Query
from sockscope.sources.sockets.owner_source import OwnerSource, process_1_is_guarded
from sockscope.sources.sockets.owners import owner_table, owners
from sockscope.sources.sockets.procfs import sees_every_process
from sockscope.sources.sockets.sampler import Sampler
from tests.live.socket_hosts import eventually, forked, python_process

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(bool(problems()), reason="; ".join(message for message, _ in problems())),
    pytest.mark.skipif(not OBJECT.exists(), reason="the program is not compiled: python hatch_build.py"),
]

Row = tuple[int, int, int]
CLONE_FILES, CLONE_VM, SIGCHLD = 0x400, 0x100, 17


@pytest.fixture
def source() -> Iterator[OwnerSource]:
    with OwnerSource(bpf=True) as found:
        yield found


def rows(table: npt.NDArray[np.void]) -> set[Row]:
    found: list[Row] = table.tolist()
    assert len(found) == len(set(found))
    assert found == sorted(found)
    return set(found)


def by_bpf(source: OwnerSource, tgids: list[int] | None = None) -> set[Row]:
    found, _ = owners(tgids, source=source)
    assert source.refusal is None
    assert source.uses_bpf
    return rows(found)


def by_proc(tgids: list[int] | None = None) -> set[Row]:
    with OwnerSource(bpf=False) as source:
        return rows(owners(tgids, source=source)[0])


MANY_SOCKETS = """
held = [socket.socket() for _ in range(700)] + [open('/dev/null')] + list(os.pipe())
held += [s for _ in range(100) for s in socket.socketpair()]
held += [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)]
print('ready', flush=True)
"""
LISTENERS = """
held = [socket.create_server(('127.0.0.1', 0)) for _ in range(50)]
print('ready', flush=True)
"""
THREADS = """
import threading
held = [socket.socket() for _ in range(20)]
go = threading.Event()
for _ in range(30): threading.Thread(target=go.wait, daemon=True).start()
print('ready', flush=True)
"""
BY_PATH = """
import ctypes
path = '/tmp/sockscope-%d' % os.getpid()
named = socket.socket(socket.AF_UNIX)
named.bind(path)
at_path = os.open(path, os.O_PATH)
os.unlink(path)
held = socket.socket()
at_socket = os.open('/proc/self/fd/%d' % held.fileno(), os.O_PATH)
print(at_path, at_socket, held.fileno(), flush=True)
"""
PASSED = """
a, b = socket.socketpair()
passed = socket.create_server(('127.0.0.1', 0))
port = passed.getsockname()[1]
socket.send_fds(a, [b'x'], [passed.fileno()])
if CLOSE: passed.close()
print(port, b.fileno(), flush=True)
"""


def test_both_say_the_same_of_the_whole_machine(source: OwnerSource) -> None:
    with ExitStack() as stack:
        for body in (MANY_SOCKETS, THREADS, BY_PATH, MANY_SOCKETS):
            stack.enter_context(python_process(body))
        stack.enter_context(forked())

        def alike() -> bool:
            # Others come and go meanwhile: what is there before and after counts.
            before, found, after = by_proc(), by_bpf(source), by_proc()
            return before & after <= found <= before | after and len(found) > 1800

        assert eventually(alike)


def test_of_chosen_processes_only(source: OwnerSource) -> None:
    with python_process(MANY_SOCKETS) as (one, _), python_process(MANY_SOCKETS) as (other, _):
        found = by_bpf(source, [one])
        assert found == by_proc([one])
        assert {tgid for _, tgid, _ in found} == {one}
        # Many at once are read together with all others.
        many = [one, *range(4_000_000, 4_000_000 + FEW_PROCESSES)]
        assert by_bpf(source, many) == found
        assert by_bpf(source, [one, other, 0, -1]) == by_proc([one, other])
    assert by_bpf(source, [one, 2**22 + 5]) == set()


def test_what_was_opened_by_path_alone(source: OwnerSource) -> None:
    with python_process(BY_PATH) as (pid, words):
        at_path, at_socket, held = map(int, words)
        found = by_bpf(source, [pid])
        assert found == by_proc([pid])
        by_fd = {fd: inode for inode, _, fd in found}
        # The name of a unix socket is a file like others; O_PATH of a socket itself shows that socket.
        assert at_path not in by_fd
        assert by_fd[at_socket] == by_fd[held]


@pytest.mark.parametrize("closes", [False, True])
def test_a_passed_socket(source: OwnerSource, closes: bool) -> None:
    with python_process(PASSED.replace("CLOSE", str(closes))) as (pid, _):
        # On its way no process holds it: neither way shows it.
        assert by_bpf(source, [pid]) == by_proc([pid])
        assert len(by_bpf(source, [pid])) == 2 + (not closes)


def test_processes_that_share_their_files(source: OwnerSource) -> None:
    stack = ctypes.create_string_buffer(1 << 16)
    waiting = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(ctypes.CDLL(None).pause)
    with socket.socket() as mine:
        top = ctypes.c_void_p(ctypes.addressof(stack) + len(stack) - 64)
        # Without CLONE_VM: the child's stack is its own copy.
        child = ctypes.CDLL(None).clone(waiting, top, CLONE_FILES | SIGCHLD, None)
        assert child > 0
        try:
            row = os.fstat(mine.fileno()).st_ino, mine.fileno()
            found = by_bpf(source, [os.getpid(), child])
            assert found == by_proc([os.getpid(), child])
            assert {(row[0], os.getpid(), row[1]), (row[0], child, row[1])} <= found
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


THREAD_OF_ITS_OWN = """
import ctypes, threading
before = socket.socket()
told = threading.Event()
def thread():
    global mine, inode
    assert ctypes.CDLL(None).unshare(0x400) == 0
    mine = socket.socket()
    inode = os.fstat(mine.fileno()).st_ino
    told.set()
    time.sleep(1000)
threading.Thread(target=thread, daemon=True).start()
told.wait()
print(before.fileno(), mine.fileno(), inode, flush=True)
"""


def test_a_thread_with_files_of_its_own_is_seen_only_by_bpf(source: OwnerSource) -> None:
    with python_process(THREAD_OF_ITS_OWN) as (pid, words):
        before, own, inode = map(int, words)
        found, shown = by_bpf(source, [pid]), by_proc([pid])
        # What was there before the unshare is held by both: one row.
        assert found - shown == {(inode, pid, own)}
        assert shown <= found
        assert [fd for _, _, fd in shown] == [before]


MAIN_THREAD_ENDS = """
import ctypes, threading
held = socket.socket()
for _ in range(3): threading.Thread(target=time.sleep, args=(1000,)).start()
print(held.fileno(), os.fstat(held.fileno()).st_ino, flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_threads_that_outlive_their_main_thread(source: OwnerSource) -> None:
    with python_process(MAIN_THREAD_ENDS) as (pid, words):
        fd, inode = map(int, words)
        # /proc shows nothing of such a process; it is one row however many threads there are.
        assert eventually(lambda: by_proc([pid]) == set())
        assert by_bpf(source, [pid]) == {(inode, pid, fd)}


def test_numbers_are_those_of_our_pid_namespace() -> None:
    program = """
import os, socket
from sockscope.sources.sockets.owner_source import OwnerSource
from sockscope.sources.sockets.owners import owners
held = socket.socket()
child = os.fork()
if not child:
    import signal; signal.pause()
with OwnerSource(bpf=True) as source, OwnerSource(bpf=False) as other:
    found, theirs = owners(source=source)[0].tolist(), owners(source=other)[0].tolist()
    assert source.uses_bpf, source.refusal
os.kill(child, 9)
inode = os.fstat(held.fileno()).st_ino
assert found == theirs, (found, theirs)
assert sorted(tgid for i, tgid, _ in found if i == inode) == [1, child], found
print("same")
"""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr


def test_looks_in_the_background() -> None:
    with OwnerSource(bpf=True) as source, socket.socket() as mine:
        for _ in range(3):
            with source.scan() as scan:
                table, unreadable = owner_table(scan)
            assert unreadable == int(process_1_is_guarded())
            assert (os.fstat(mine.fileno()).st_ino, os.getpid(), mine.fileno()) in rows(table)
        assert source.uses_bpf


def test_a_snapshot_is_the_same_by_both_ways() -> None:
    with python_process(LISTENERS) as (pid, _), OwnerSource(bpf=True) as source, OwnerSource(bpf=False) as other:
        pairs = []
        for one in (source, other):
            with one.scan() as scan:
                pairs.append(look(scan=scan, source=one, pid=pid, states=[TcpState.LISTEN]))
        found, expected = (rows(pair.sockets.owners) for pair in pairs)
        assert found == expected
        assert len(found) == 50
        assert pairs[0].unreadable_count == pairs[1].unreadable_count


class NobodyYet:
    """A scan that was over before anything was opened."""

    def result(self) -> tuple[bytes, int]:
        return b"", 0


@pytest.mark.skipif(not sees_every_process(), reason="in a pid namespace of its own owners may always hide")
@pytest.mark.parametrize("bpf", [False, True])
def test_what_was_closed_meanwhile_is_no_orphan(bpf: bool) -> None:
    with OwnerSource(bpf=bpf) as source, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        staying, going = (socket.create_connection(server.getsockname()) for _ in range(2))
        with staying, going:
            kept, closed = server.accept()[0], server.accept()[0]
            with kept, Ahead(TCP_QUERIES, tcp_info=False) as ahead:
                ahead.take(Query.TCP6, b"")  # waits
                peer = closed.getpeername()[1]
                closed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                closed.close()
                found = look(scan=NobodyYet(), source=source, ahead=ahead)
            ours = (found.sockets.records["local_port"] == port) & (found.sockets.records["peer_port"] != 0)
            # The one that was reset is gone; the other has found its owner.
            assert peer not in found.sockets.records["peer_port"][ours]
            assert found.causes[ours].tolist() == [Cause.NONE]


def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def uses(count: int) -> bool:
        monkeypatch.setattr(owner_source, "open_file_count", lambda: count)
        with OwnerSource() as source:
            source.read()
            return source.uses_bpf

    assert not uses(owner_source.WORTH_LOADING - 1)
    assert uses(owner_source.WORTH_LOADING)
    with python_process(MANY_SOCKETS) as (pid, _), OwnerSource() as source:
        monkeypatch.setattr(owner_source, "open_file_count", lambda: 1 << 20)
        # Few of them: /proc each time. Many: /proc the first time only.
        for _ in range(3):
            assert by_proc([pid]) == rows(owners([pid], source=source)[0])
            assert not source.uses_bpf
        monkeypatch.setattr(owner_source, "WORTH_KEEPING", 900)
        for _ in range(3):
            assert by_proc([pid]) == rows(owners([pid], source=source)[0])
        assert source.uses_bpf


def test_open_files_are_counted() -> None:
    before = owner_source.open_file_count()
    with python_process(MANY_SOCKETS), python_process(MANY_SOCKETS):
        # Counted per CPU: some 32 of each may be missing.
        assert owner_source.open_file_count() > before + 1000


def test_refused_it_is_proc_for_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sockscope.sources.sockets.bpf.iterator.OBJECT", tmp_path / "not_compiled.o")
    with OwnerSource(bpf=True) as source, socket.socket() as mine:
        for _ in range(2):
            table, _ = owners(source=source)
            assert (os.fstat(mine.fileno()).st_ino, os.getpid(), mine.fileno()) in rows(table)
            assert source.refusal is not None
            assert "not_compiled.o" in source.refusal.message
        assert isinstance(source.scan(), FdScan)


def test_who_may_not_load_reads_proc() -> None:
    program = """
import os
from sockscope.sources.sockets.owner_source import OwnerSource
with OwnerSource(bpf=True) as warm: pass
from sockscope.sources.sockets.bpf import iterator
os.setuid(65534)
with OwnerSource(bpf=True) as source:
    source.read()
    print(source.refusal.message)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "CAP_BPF and CAP_PERFMON" in done.stdout, done.stderr


def test_nothing_stays() -> None:
    def resources() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    # What earlier tests left may go meanwhile; nothing may come.
    gc.collect()
    tasks, fds = resources()
    for _ in range(3):
        # A quiet machine may have no other socket.
        with socket.socket(), OwnerIterator() as iterator:
            assert iterator.rows()
            assert len(iterator.rows()) % OWNER_DTYPE.itemsize == 0
        with OwnerSource(bpf=True) as source, source.scan():
            pass
    assert eventually(lambda: resources()[0] <= tasks and resources()[1] <= fds)


PAIRED = """
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
"""


def test_the_sampler_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_source, "WORTH_KEEPING", 500)
    with python_process(PAIRED + MANY_SOCKETS) as (pid, _):
        sampler = Sampler(tgids=[pid], period_s=0.05)
        sampler.start()
        source = sampler._source
        assert eventually(lambda: source.uses_bpf)
        final = sampler.stop()
        assert source.refusal is None
        # Stopped, it is unloaded.
        assert [source.uses_bpf] == [False]
        assert pid in final.owners["tgid"].tolist()
