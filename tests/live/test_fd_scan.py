"""The compiled scan of descriptors, against what /proc says itself."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from sockscope.model.sockets import OWNER_DTYPE
from sockscope.sources.sockets.fd_scan import ROW_BYTES, FdScan, all_tgids
from sockscope.sources.sockets.owners import owners
from tests.live.socket_hosts import python_process

pytestmark = pytest.mark.live

HOLD = """
held = [socket.socket() for _ in range(COUNT)] + [open('/dev/null') for _ in range(5)] + list(os.pipe())
print('ready', flush=True)
"""


def hold(count: int) -> str:
    return HOLD.replace("COUNT", str(count))


def proc_says(pid: int) -> set[tuple[int, int, int]]:
    """(inode, tgid, fd) of every socket of a process."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{name}")
        if target.startswith("socket:["):
            found.add((int(target[8:-1]), pid, int(name)))
    return found


def rows_of(scan: FdScan) -> tuple[list[tuple[int, int, int]], int]:
    data, unreadable = scan.result()
    return np.frombuffer(data, OWNER_DTYPE).tolist(), unreadable


@contextlib.contextmanager
def several(count: int, sockets: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(python_process(hold(sockets)))[0] for _ in range(count)]


def test_a_row_is_one_of_the_owner_table() -> None:
    assert OWNER_DTYPE.itemsize == ROW_BYTES
    assert [OWNER_DTYPE.fields[name][1] for name in ("inode", "tgid", "fd")] == [0, 8, 12]  # type: ignore[index]


@pytest.mark.parametrize("workers", [0, 1, 2, 8, None])
def test_it_finds_what_proc_says(workers: int | None) -> None:
    # More than one portion of names each; with 8 threads most of them help.
    with several(3, 900) as pids:
        found, unreadable = rows_of(FdScan(pids, workers=workers))
        assert unreadable == 0
        assert len(found) == len(set(found))
        assert set(found) == set().union(*map(proc_says, pids))


def test_one_process_read_by_many_threads() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(hard, 4000) - 100
    body = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({hard}, {hard}))\n" + hold(many)
    with python_process(body) as (pid, _):
        for _ in range(5):
            found, _ = rows_of(FdScan([pid], workers=8))
            assert len(found) == len(set(found)) >= many
            assert set(found) == proc_says(pid)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft


def test_the_owner_table_is_sorted_and_filtered() -> None:
    with several(2, 50) as pids:
        table, _ = owners(pids)
        assert table.dtype == OWNER_DTYPE
        assert table.tolist() == sorted(table.tolist())
        one = table["inode"][7:8]
        (row,) = owners(pids, one)[0].tolist()
        assert row == tuple(table[7].tolist())


def test_processes_that_end_meanwhile_are_no_harm() -> None:
    with several(1, 300) as (staying,), several(4, 300) as going:
        stays = proc_says(staying)
        goes = set().union(*map(proc_says, going))
        for killed in range(len(going) + 1):
            # Ended before the scan, and while it goes on.
            scan = FdScan([*going, staying], workers=2)
            if killed < len(going):
                os.kill(going[killed], 9)
            found, unreadable = rows_of(scan)
            assert unreadable == 0
            assert stays <= set(found) <= stays | goes


def test_who_may_not_be_read_is_counted() -> None:
    script = """
import os, sys
from sockscope.sources.sockets.fd_scan import FdScan
for workers in (0, 2):
    os.seteuid(0)
    pids = [int(a) for a in sys.argv[1:]]
    os.seteuid(65534)
    print(FdScan([*pids, os.getpid()], workers=workers).result()[1])
"""
    with several(2, 3) as pids:
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, pids)], capture_output=True, text=True, check=True
        )
        # Threads started after the change have its rights.
        assert done.stdout.split() == ["2", "2"]


def test_nothing_stays_of_a_scan_that_nobody_waits_for() -> None:
    def resources() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    before = resources()
    for _ in range(20):
        with FdScan(workers=4):
            pass
        FdScan(all_tgids(), workers=2)
    assert resources() == before


def test_no_processes() -> None:
    assert FdScan([]).result() == (bytearray(), 0)
    assert FdScan([2**31 - 1]).result() == (bytearray(), 0)


def test_sockets_of_this_process() -> None:
    with socket.socket() as mine:
        inode = os.fstat(mine.fileno()).st_ino
        assert (inode, os.getpid(), mine.fileno()) in rows_of(FdScan())[0]
