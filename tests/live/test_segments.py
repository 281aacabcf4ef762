"""Shared memory of real processes, as /proc shows it."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sockscope.model.facts import SegmentKind
from sockscope.sources.processes.segments import read_segments

pytestmark = pytest.mark.live

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p
LIBC.shmdt.argtypes = [ctypes.c_void_p]
LIBC.sem_open.restype = ctypes.c_void_p
LIBC.sem_close.argtypes = [ctypes.c_void_p]
IPC_CREAT, IPC_RMID = 0o1000, 0


def rows(kind: SegmentKind, number: int, *tgids: int) -> npt.NDArray[np.void]:
    table = read_segments(tgids or (os.getpid(),), now_ns=7)
    of_it: npt.NDArray[np.void] = table[(table["kind"] == kind) & (table["id"] == number)]
    return of_it


@pytest.fixture
def shmid() -> Iterator[int]:
    number = LIBC.shmget(0, 8192, IPC_CREAT | 0o600)
    assert number >= 0
    yield number
    LIBC.shmctl(number, IPC_RMID, None)


@pytest.fixture
def name() -> Iterator[str]:
    word = f"sockscope-test-{os.getpid()}"
    yield word
    for path in (Path("/dev/shm", word), Path("/dev/shm", f"sem.{word}")):
        path.unlink(missing_ok=True)


def test_a_system_v_segment_from_birth_to_removal(shmid: int) -> None:
    (lone,) = rows(SegmentKind.SYSTEM_V, shmid)
    assert (lone["tgid"], lone["creator"], lone["size_bytes"]) == (-1, os.getpid(), 8192)
    assert (lone["attach_count"], lone["removed"], lone["time_ns"]) == (0, 0, 7)
    address = LIBC.shmat(shmid, None, 0)
    attached = rows(SegmentKind.SYSTEM_V, shmid)
    assert attached["tgid"].tolist() == [-1, os.getpid()]
    assert attached["attach_count"].tolist() == [1, 1]
    # Marked for removal it stays until the last one leaves.
    LIBC.shmctl(shmid, IPC_RMID, None)
    assert rows(SegmentKind.SYSTEM_V, shmid)["removed"].tolist() == [1, 1]
    LIBC.shmdt(address)
    assert not len(rows(SegmentKind.SYSTEM_V, shmid))


def test_a_file_of_dev_shm_and_its_unlinking(name: str) -> None:
    path = Path("/dev/shm", name)
    with path.open("w+b") as file:
        file.truncate(5000)
        number = os.fstat(file.fileno()).st_ino
        with mmap.mmap(file.fileno(), 5000):
            table = rows(SegmentKind.POSIX, number)
            assert table["tgid"].tolist() == [-1, os.getpid()]
            assert table["path"].tolist() == [str(path).encode()] * 2
            assert table["size_bytes"].tolist() == [5000, 5000]
            assert table["attach_count"].tolist() == [-1, -1]
            assert table["changed_realtime_ns"][0] == path.stat().st_mtime_ns
            path.unlink()
            gone = rows(SegmentKind.POSIX, number)
            assert gone["removed"].tolist() == [1, 1]
            assert gone["size_bytes"][0] == 5000
            assert gone["path"][0] == str(path).encode()


def test_a_semaphores_value_is_read(name: str) -> None:
    semaphore = LIBC.sem_open(f"/{name}".encode(), os.O_CREAT | os.O_EXCL, 0o600, 3)
    number = Path("/dev/shm", f"sem.{name}").stat().st_ino
    assert rows(SegmentKind.SEMAPHORE, number)["value"].tolist() == [3, 3]
    Path("/dev/shm", f"sem.{name}").unlink()
    # What nobody can open any more still has its value.
    gone = rows(SegmentKind.SEMAPHORE, number)
    assert (gone["value"].tolist(), gone["removed"].tolist()) == ([3, 3], [1, 1])
    LIBC.sem_close(semaphore)


def test_links_in_dev_shm_are_not_followed(name: str) -> None:
    Path("/dev/shm", name).symlink_to("/etc/passwd")
    assert not len(rows(SegmentKind.POSIX, os.stat("/etc/passwd").st_ino))


OTHER = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None)
if sys.argv[1] == "mount":
    subprocess.run(["mount", "-t", "tmpfs", "none", "/dev/shm"], check=True)
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(0, 12288, 0o1600)
libc.shmat(number, None, 0)
with open("/dev/shm/inside", "w") as file:
    file.write("abc")
print(number, os.stat("/dev/shm/inside").st_ino, flush=True)
sys.stdin.read()
libc.shmctl(number, 0, None)
"""


def test_other_namespaces_are_looked_into() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    command = ["unshare", "--ipc", "--mount", sys.executable, "-c", OTHER, "mount"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdout is not None
        number, inode = map(int, inside.stdout.readline().split())
        segment, attached = rows(SegmentKind.SYSTEM_V, number, inside.pid)
        assert (segment["tgid"], segment["creator"], segment["size_bytes"]) == (-1, inside.pid, 12288)
        assert attached["tgid"] == inside.pid
        (file,) = rows(SegmentKind.POSIX, inode, inside.pid)
        assert (file["path"], file["size_bytes"]) == (b"/dev/shm/inside", 3)
        # Ours are not its.
        assert not len([one for one in rows(SegmentKind.SYSTEM_V, number) if one["size_bytes"] == 12288])
        inside.communicate()


STRANGER = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
libc.shmat(int(sys.argv[1]), None, 0)
libc.sem_open.restype = ctypes.c_void_p
libc.sem_open(sys.argv[2].encode(), 0)
print(flush=True)
sys.stdin.read()
"""


def test_who_else_maps_what_the_target_maps(shmid: int, name: str) -> None:
    address = LIBC.shmat(shmid, None, 0)
    LIBC.sem_close(LIBC.sem_open(f"/{name}".encode(), os.O_CREAT | os.O_EXCL, 0o600, 0))
    number = Path("/dev/shm", f"sem.{name}").stat().st_ino
    command = [sys.executable, "-c", STRANGER, str(shmid), f"/{name}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        assert rows(SegmentKind.SYSTEM_V, shmid)["tgid"].tolist() == [-1, os.getpid(), stranger.pid]
        assert rows(SegmentKind.SEMAPHORE, number)["tgid"].tolist() == [-1, stranger.pid]
        LIBC.shmdt(address)
        # What neither is a semaphore nor mapped by the target is nobody's business.
        assert rows(SegmentKind.SYSTEM_V, shmid)["tgid"].tolist() == [-1]
        stranger.communicate()


def test_what_ended_processes_left_is_told(shmid: int) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert rows(SegmentKind.SYSTEM_V, shmid, gone.pid)["tgid"].tolist() == [-1]
