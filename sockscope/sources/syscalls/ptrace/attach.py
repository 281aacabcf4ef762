"""Bring running processes under trace, thread by thread, until no new thread is found."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from sockscope.errors import CannotObserveError, TargetGoneError
from sockscope.sources.syscalls.ptrace import guardian, preflight
from sockscope.sources.syscalls.ptrace.native import Native

NO_MASK = -1


BUSY_TICKS = 10
"""A tenth of a second: less is start-up and housekeeping."""
BUSY_SHARE = 0.2
"""Of the busiest thread's time."""


class Masks:
    """The affinity masks that were found, numbered; the guardian is told of each."""

    def __init__(self, guard_fd: int) -> None:
        self._guard_fd = guard_fd
        self._numbers: dict[frozenset[int], int] = {}

    def number_of(self, tid: int) -> int:
        """The number of the mask that a thread has now.

        Raises:
            ProcessLookupError: it is gone.
        """
        mask = frozenset(os.sched_getaffinity(tid))
        if mask not in self._numbers:
            self._numbers[mask] = len(self._numbers)
            os.write(self._guard_fd, guardian.encode(guardian.MASK, self._numbers[mask], 0, set(mask)))
        return self._numbers[mask]


def adopt(loop: Native, tgids: list[int]) -> int:
    """PTRACE_SEIZE more processes, at any moment of the tracing; those that cannot be traced are passed over.

    They are not pinned: they have only just begun to serve, and programs size themselves by the CPUs they find.

    Returns:
        How many of the processes are under trace.
    """
    process_count = 0
    for tgid in tgids:
        seized: list[int] = []
        with contextlib.suppress(CannotObserveError):
            _seize_process(loop, tgid, None, seized)
        for tid in seized:
            loop.interrupt(tid)
        process_count += bool(seized)
    return process_count


def attach(loop: Native, tgids: list[int], cpu: int | None, guard_fd: int) -> int:
    """PTRACE_SEIZE every thread of every process, pin them, and ask each for its first stop.

    Threads and children that they start meanwhile come under trace by themselves (PTRACE_O_TRACECLONE, ...).

    Args:
        cpu: pin tracees and this process there; None: leave affinity alone.

    Returns:
        How many of the processes are under trace: those that have ended meanwhile are left out.

    Raises:
        CannotObserveError: one of them cannot be traced. The caller must end the process, which detaches the rest.
    """
    masks = Masks(guard_fd) if cpu is not None else None
    seized: list[int] = []
    process_count = 0
    for tgid in tgids:
        with contextlib.suppress(TargetGoneError):
            _seize_process(loop, tgid, masks, seized)
            process_count += 1
    if cpu is not None:
        for tid in seized:
            _pin(tid, cpu)
        _pin(0, cpu)
    for tid in seized:
        loop.interrupt(tid)
    return process_count


def _seize_process(loop: Native, tgid: int, masks: Masks | None, seized: list[int]) -> None:
    """Adds the threads that came under trace to `seized`, also where it fails in the end."""
    before = len(seized)
    seen: set[int] = set()
    while True:
        try:
            new = {int(name) for name in os.listdir(f"/proc/{tgid}/task")} - seen
        except (FileNotFoundError, ProcessLookupError):
            raise preflight.gone_error(tgid) from None
        if not new:
            break
        for tid in sorted(new):
            seen.add(tid)
            if _seize(loop, tid, tgid, masks):
                seized.append(tid)
    if len(seized) == before:
        raise preflight.gone_error(tgid)


def _seize(loop: Native, tid: int, tgid: int, masks: Masks | None) -> bool:
    """False where it is gone, or came under trace by itself."""
    try:
        mask = masks.number_of(tid) if masks is not None else NO_MASK
    except ProcessLookupError:
        return False
    error = -loop.seize(tid, tgid, mask)
    if error == 0:
        return True
    if error == errno.ESRCH:
        return False
    if error == errno.EPERM:
        status = preflight.read_status(tid)
        if int(status["TracerPid"]) == os.getpid() or status["State"][:1] in "ZX":
            return False
        preflight.check_untraced(tgid, status)
        raise preflight.permission_error(tgid)
    raise CannotObserveError(f"process {tgid} cannot be traced: {os.strerror(error)}")


def _pin(tid: int, cpu: int) -> None:
    # Gone, or not allowed there (cpuset): it runs unpinned, which only costs speed.
    try:
        os.sched_setaffinity(tid, {cpu})
    except OSError:
        return


def allowed_cpus(tgid: int) -> list[int]:
    """The CPUs that a process may run on, in order; empty where it is gone."""
    try:
        return sorted(os.sched_getaffinity(tgid))
    except OSError:
        return []


def cpu_ticks(tgid: int, tid: int | None = None) -> int:
    """CPU time that a process or one thread used so far, in clock ticks; 0 where it is gone.

    Source: proc_pid_stat(5), utime + stime.
    """
    where = f"/proc/{tgid}/stat" if tid is None else f"/proc/{tgid}/task/{tid}/stat"
    try:
        fields = Path(where).read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def is_parallel(tgid: int) -> bool:
    """Several threads of it have worked: on one CPU they would take turns, which costs more than pinning gains."""
    try:
        tids = [int(name) for name in os.listdir(f"/proc/{tgid}/task")]
    except OSError:
        return False
    if len(tids) < 2:
        return False
    ticks = sorted(cpu_ticks(tgid, tid) for tid in tids)
    return ticks[-2] >= max(BUSY_TICKS, ticks[-1] * BUSY_SHARE)
