"""Which sockets every process holds, by `readlink /proc/PID/fd/N`.

The kernel spends 4 µs on each link (it makes an inode for it), with the GIL released, so threads
scan side by side, and a process with many descriptors is cut up among them. No numpy here: a command
can have the scan under way while it still imports.

Source: proc_pid_fd(5).
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import deque
from collections.abc import Iterable

_NAMES_A_TASK = 2048
_MAX_WORKERS = 8
_PREFIX = "socket:["


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
        # A task is a process to list, or a part of one already listed.
        self._tasks: deque[tuple[int, list[str] | None]] = deque((pid, None) for pid in pids)
        self._busy = 0
        self._changed = threading.Condition()
        self._parts: list[tuple[int, array[int], array[int]]] = []
        self._unreadable: set[int] = set()
        count = workers if workers is not None else min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
        self._threads = [threading.Thread(target=self._work, name="fd-scan", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        if not self._threads:
            self._work()

    def result(self) -> tuple[list[tuple[int, array[int], array[int]]], int]:
        """Wait for the end: parts (tgid, descriptors, socket inodes), and how many processes refused to be read."""
        for thread in self._threads:
            thread.join()
        return self._parts, len(self._unreadable)

    def _work(self) -> None:
        while (task := self._take()) is not None:
            pid, names = task
            try:
                self._scan(pid, names)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()

    def _take(self) -> tuple[int, list[str] | None] | None:
        with self._changed:
            while not self._tasks:
                if self._busy == 0:
                    return None
                self._changed.wait()
            self._busy += 1
            return self._tasks.popleft()

    def _scan(self, pid: int, names: list[str] | None) -> None:
        try:
            directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            self._unreadable.add(pid)
            return
        except OSError:
            return
        try:
            if names is None:
                names = self._list(pid, directory)
            fds, inodes = array("q"), array("q")
            readlink = os.readlink
            for name in names:
                try:
                    target = readlink(name, dir_fd=directory)
                except OSError:
                    continue
                if target.startswith(_PREFIX):
                    fds.append(int(name))
                    inodes.append(int(target[8:-1]))
            if fds:
                self._parts.append((pid, fds, inodes))
        finally:
            os.close(directory)

    def _list(self, pid: int, directory: int) -> list[str]:
        """The names of one process; all but the first share go to whoever is free."""
        try:
            names = os.listdir(directory)
        except PermissionError:
            self._unreadable.add(pid)
            return []
        except OSError:
            return []
        if len(names) > _NAMES_A_TASK:
            rest = [(pid, names[at : at + _NAMES_A_TASK]) for at in range(_NAMES_A_TASK, len(names), _NAMES_A_TASK)]
            with self._changed:
                self._tasks.extend(rest)
                self._changed.notify_all()
        return names[:_NAMES_A_TASK]
