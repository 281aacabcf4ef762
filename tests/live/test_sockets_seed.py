"""The seed of real processes: epoll with EPOLLET, descriptors shared by fork and dup, CLOEXEC."""

from __future__ import annotations

import os
import select
import socket
import time

import pytest

from sockscope.model.seed import FileKind, Seed
from sockscope.sources.sockets.seed import read_seed
from tests.live.socket_hosts import forked, listener, python_process

pytestmark = pytest.mark.live


def open_file(seed: Seed, tgid: int, fd: int) -> int:
    (found,) = seed.fds[(seed.fds["tgid"] == tgid) & (seed.fds["fd"] == fd)]["open_file"].tolist()
    return int(found)


def test_an_epoll_server_that_registered_long_ago() -> None:
    with listener() as server, select.epoll() as epoll:
        epoll.register(server, select.EPOLLIN | select.EPOLLET)
        seed = read_seed([os.getpid()])
        mine = seed.epolls[seed.epolls["epoll_fd"] == epoll.fileno()]
        assert mine["fd"].tolist() == [server.fileno()]
        assert int(mine["events"][0]) & 0x80000000
        assert int(mine["events"][0]) & select.EPOLLIN
        assert mine["inode"].tolist() == [os.fstat(server.fileno()).st_ino]
        (row,) = seed.fds[seed.fds["fd"] == epoll.fileno()]
        assert row["kind"] == FileKind.EPOLL


def test_what_fork_and_dup_share_and_what_they_do_not() -> None:
    reading, writing = os.pipe()
    first, second = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    copy = os.dup(first)
    epolls = [select.epoll(), select.epoll()]
    own = os.getpid()
    try:
        with listener() as server, forked() as child:
            seed = read_seed([own, child])
            shared = (reading, writing, first, second, copy, server.fileno(), *(e.fileno() for e in epolls))
            for fd in shared:
                assert open_file(seed, own, fd) == open_file(seed, child, fd) != 0
            distinct = {open_file(seed, own, fd) for fd in shared if fd != copy}
            assert len(distinct) == len(shared) - 1
            assert open_file(seed, own, first) == open_file(seed, own, copy)
    finally:
        for fd in (reading, writing, first, second, copy):
            os.close(fd)
        for epoll in epolls:
            epoll.close()


def test_flags_and_kinds() -> None:
    with socket.socket() as plain, socket.socket() as other:
        other.setblocking(False)
        os.set_inheritable(plain.fileno(), True)
        seed = read_seed([os.getpid()])
        rows = {int(row["fd"]): row for row in seed.fds}
        one, two = rows[plain.fileno()], rows[other.fileno()]
        assert (one["kind"], one["cloexec"], one["nonblock"]) == (FileKind.SOCKET, 0, 0)
        assert (two["kind"], two["cloexec"], two["nonblock"]) == (FileKind.SOCKET, 1, 1)
        assert one["inode"] == os.fstat(plain.fileno()).st_ino


def test_shared_memory_and_eventfd() -> None:
    name = f"/dev/shm/sockscope-test-{os.getpid()}"
    body = f"""
m = os.open({name!r}, os.O_RDWR | os.O_CREAT); os.unlink({name!r})
e = os.eventfd(0)
print(m, e, flush=True)
"""
    with python_process(body) as (pid, (memory, event)):
        rows = {int(row["fd"]): int(row["kind"]) for row in read_seed([pid]).fds}
        assert rows[int(memory)] == FileKind.SHARED_MEMORY
        assert rows[int(event)] == FileKind.EVENTFD


def test_the_process_itself() -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    body = "import threading; threading.Thread(target=sys.stdin.read).start(); print('ready', flush=True)"
    with python_process(body) as (pid, _):
        (process,) = read_seed([pid]).processes
        assert (process.tgid, process.ppid) == (pid, os.getpid())
        assert len(process.tids) == 2
        assert process.comm.startswith("python")
        assert "-c" in process.cmdline
        assert process.netns == os.stat(f"/proc/{pid}/ns/net").st_ino
        assert process.started_ns is not None
        # Start times are counted in ticks of 10 ms.
        assert abs(process.started_ns - before) < 2_000_000_000
        assert process.shares_files_with is None


def test_processes_that_share_one_files_table() -> None:
    body = """
import ctypes
stack = ctypes.create_string_buffer(1 << 16)
libc = ctypes.CDLL(None)
child = libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), ctypes.c_void_p(ctypes.addressof(stack) + (1 << 15)),
                   0x400 | 0x100 | 17, None)
print(child, flush=True)
"""
    with python_process(body) as (pid, (child,)):
        try:
            first, second = read_seed([pid, int(child)]).processes
            assert (first.shares_files_with, second.shares_files_with) == (None, pid)
        finally:
            os.kill(int(child), 9)


def test_a_process_that_is_gone_is_left_out() -> None:
    with python_process("print('ready', flush=True)") as (pid, _):
        pass
    seed = read_seed([pid])
    assert (seed.processes, len(seed.fds), len(seed.epolls)) == ((), 0, 0)
