"""Which sockets every process holds, by `readlink /proc/PID/fd/N`.

The kernel spends 4 µs on each link (it makes an inode for it), with the GIL released, so threads scan
side by side: each a process at a time, for the lookups of one folder exclude each other. No numpy here:
a command can have the scan under way while it still imports.

Source: proc_pid_fd(5).
"""

from __future__ import annotations

import os
import signal
import struct
import threading
from array import array
from collections import deque
from collections.abc import Iterable
from typing import Protocol

_MAX_WORKERS = 8
_PREFIX = "socket:["
_HEADER = struct.Struct("<qq")

Part = tuple[int, "array[int]", "array[int]"]
"""A process: tgid, descriptors, and the socket inode of each."""


class Scan(Protocol):
    """A scan under way."""

    def result(self) -> tuple[list[Part], int]:
        """Wait for the end: what was found, and how many processes refused to be read."""
        ...


def all_tgids() -> list[int]:
    """Every process of the pid namespace."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


class FdScan:
    """A scan in the background: made, then asked for its `result`.

    Args:
        tgids: processes to look at; None: all.
        workers: threads; None: one a CPU, at most 8; 0: scan here and now, in the calling thread.
    """

    def __init__(self, tgids: Iterable[int] | None = None, *, workers: int | None = None) -> None:
        pids = all_tgids() if tgids is None else list(tgids)
        self._waiting = deque(pids)
        self._parts: list[Part] = []
        self._unreadable: set[int] = set()
        count = workers if workers is not None else min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._threads = [threading.Thread(target=self._work, name="fd-scan", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        if not self._threads:
            self._work()

    def result(self) -> tuple[list[Part], int]:
        """Wait for the end: parts (tgid, descriptors, socket inodes), and how many processes refused to be read."""
        for thread in self._threads:
            thread.join()
        return self._parts, len(self._unreadable)

    def _work(self) -> None:
        while True:
            try:
                pid = self._waiting.popleft()
            except IndexError:
                return
            self._scan(pid)

    def _scan(self, pid: int) -> None:
        try:
            directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            self._unreadable.add(pid)
            return
        except OSError:
            return
        fds, inodes = array("q"), array("q")
        readlink = os.readlink
        try:
            for name in os.listdir(directory):
                try:
                    target = readlink(name, dir_fd=directory)
                except OSError:
                    continue
                if target.startswith(_PREFIX):
                    fds.append(int(name))
                    inodes.append(int(target[8:-1]))
        except PermissionError:
            self._unreadable.add(pid)
        except OSError:
            # It ended meanwhile; what was read stays.
            pass
        finally:
            os.close(directory)
        if fds:
            self._parts.append((pid, fds, inodes))


class ForkedScan:
    """The same in helper processes: for a command that has much to do for itself meanwhile.

    Started before any thread is. A context manager: leaving it ends helpers whose result nobody asked for.
    """

    def __init__(self) -> None:
        pids = all_tgids()
        # One CPU is left to the command itself.
        count = max(1, min(_MAX_WORKERS, len(os.sched_getaffinity(0)) - 1))
        self._helpers = [self._start(pids[n::count]) for n in range(count)]

    def __enter__(self) -> ForkedScan:
        return self

    def __exit__(self, *_: object) -> None:
        for child, reading in self._helpers:
            os.close(reading)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._helpers = []

    @staticmethod
    def _start(pids: list[int]) -> tuple[int, int]:
        reading, writing = os.pipe()
        child = os.fork()
        if child:
            os.close(writing)
            return child, reading
        try:
            os.close(reading)
            parts, unreadable = FdScan(pids, workers=0).result()
            pieces = [_HEADER.pack(len(parts), unreadable)]
            for pid, fds, inodes in parts:
                pieces += [_HEADER.pack(pid, len(fds)), fds.tobytes(), inodes.tobytes()]
            with open(writing, "wb") as out:
                out.write(b"".join(pieces))
        finally:
            # Nothing of the parent's (buffers, handlers) may run twice.
            os._exit(0)

    def result(self) -> tuple[list[Part], int]:
        """Wait for the helpers' end, as `FdScan.result`."""
        parts: list[Part] = []
        refused = 0
        while self._helpers:
            child, reading = self._helpers.pop()
            with open(reading, "rb") as answer:
                data = answer.read()
            os.waitpid(child, 0)
            count, unreadable = _HEADER.unpack_from(data) if data else (0, 0)
            refused += unreadable
            at = _HEADER.size
            for _ in range(count):
                pid, held = _HEADER.unpack_from(data, at)
                at += _HEADER.size
                fds, inodes = array("q"), array("q")
                fds.frombytes(data[at : at + 8 * held])
                inodes.frombytes(data[at + 8 * held : at + 16 * held])
                at += 16 * held
                parts.append((pid, fds, inodes))
        return parts, refused
