"""What each process does at rest, in words: the wait it comes back to, and how often."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.narration.describe_values import epoll_entries, fd_sets, poll_entries
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.describe_words import duration, ready_fds, timeout_of
from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import EPOLL_WAITS, FIRST_TASK_EVENT, READS, WAITS, Call
from sockscope.model.columns import rows_of
from sockscope.model.events import EventFlag, Section
from sockscope.model.seed import FileKind

_IS_WAIT: Final = by_call(WAITS)
_BLOCKS: Final = WAITS | READS | {Call.accept, Call.accept4, Call.connect, Call.wait4, Call.waitid, Call.io_uring_enter}
_AT_LEAST: Final = 2
"""Timeouts that make a habit."""
_PROCESSES_SHOWN: Final = 16
_FDS_SHOWN: Final = 4
_LOOKED_AT: Final = 64
_HABITS_SHOWN: Final = 3
_SILENT: Final = "no watched call: in one since before the watching, asleep, or waiting for work (futex is not watched)"


def idle_words(session: Session) -> tuple[str, ...]:
    """One line a habit: `python3[812]: poll([fd 3], 500 ms) again and again: wakes every 500 ms to look around`.

    A thread that blocks without a limit when the session ends is told too: `nginx[33]: blocked in
    epoll_wait(5) without a time limit`; and one that made no watched call at all, as those of a pool that waits for
    work. Threads of one process that do the same are one line.
    """
    lines: list[str] = []
    told = 0
    for tgid, process in sorted(session.processes.items()):
        habits = Counter(filter(None, (_habit(session, tid) for tid in sorted(process.tids))))
        if not habits:
            continue
        told += 1
        if told > _PROCESSES_SHOWN:
            continue
        told_habits = habits.most_common(_HABITS_SHOWN)
        for text, threads in told_habits:
            many = f" ({threads} threads)" if threads > 1 else ""
            lines.append(f"{session.comm(tgid)}[{tgid}]{many}: {text}")
        rest = habits.total() - sum(threads for _, threads in told_habits)
        if rest:
            lines.append(f"{session.comm(tgid)}[{tgid}]: and {rest} more threads, each in a wait of its own")
    if told > _PROCESSES_SHOWN:
        lines.append(f"and {told - _PROCESSES_SHOWN} more processes")
    return tuple(lines)


def _timed_out(records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Waits that ended because their time was over."""
    found: npt.NDArray[np.bool_] = (
        _IS_WAIT[records["call"]] & (records["ret"] == 0) & (records["flags"] & EventFlag.ENTERED_ONLY == 0)
    )
    # A wait with no time limit set to 0 comes back at once: that is looking, not resting.
    found &= (records["exit_ns"] - records["enter_ns"] > 1_000_000) | (records["enter_ns"] < 0)
    return found


def _habit(session: Session, tid: int) -> str:
    rows = session.events_of_tid(tid)
    records = session.events.records
    if not (records["call"][rows] < FIRST_TASK_EVENT).any():
        return _SILENT if session.info.syscalls.engine else ""
    # What was asked of an io_uring goes on beside whatever the thread does.
    rows = rows[records["flags"][rows] & EventFlag.URING == 0]
    if not len(rows):
        return ""
    idle = rows[rows_of(rows, lambda part: _timed_out(records[part]))]
    if len(idle) >= _AT_LEAST:
        # The same call with the same limit again and again: the most frequent one stands for the thread.
        recent = [View.of(session.events, row) for row in idle[-_LOOKED_AT:].tolist()]
        limits = Counter((view.call, timeout_of(view)) for view in recent)
        (call, limit_ns), times = limits.most_common(1)[0]
        if times >= _AT_LEAST:
            period_ns = _period_ns(session, rows, idle)
            if limit_ns is not None and abs(period_ns - limit_ns) < limit_ns // 10:
                period_ns = limit_ns
            view = next(view for view in reversed(recent) if view.call == call)
            return f"{call_words(view)} again and again: wakes every {duration(period_ns)} to look around"
    if timer := _timer(session, rows):
        return timer
    last_row = int(rows[np.argmax(records["enter_ns"][rows])])
    view = View.of(session.events, last_row)
    if view.returned or view.call not in _BLOCKS:
        return ""
    if view.call in WAITS:
        limit_ns = timeout_of(view)
        limit = "without a time limit" if limit_ns is None else f"for up to {duration(limit_ns)}"
        return f"blocked in {call_words(view, limit=False)} {limit}"
    return f"blocked in {call_words(view)}"


def _period_ns(session: Session, rows: Ids, idle: Ids) -> int:
    """From one wake-up for nothing to the next, where no work came between; where it always did, with it."""
    ends = session.events.records["exit_ns"]
    places = np.flatnonzero(np.isin(rows, idle))
    gaps = np.diff(ends[rows[places]])
    direct = gaps[np.diff(places) == 1]
    return int(np.median(direct if len(direct) else gaps))


def _timer(session: Session, rows: Ids) -> str:
    """A thread whose waits are ended by a timerfd again and again: `epoll_wait(5) again and again: its timer …`."""
    timers = {
        (one.fd, file.id)
        for file in session.open_files
        if file.kind is FileKind.TIMERFD
        for one in (session.descriptors[number] for number in file.descriptors)
    }
    if not timers:
        return ""
    records = session.events.records
    woken = rows[_IS_WAIT[records["call"][rows]] & (records["ret"][rows] > 0)][-_LOOKED_AT:]
    data = {one.data for one in session.interests if any(one.open_file == file for _, file in timers)}
    numbers = {fd for fd, _ in timers}
    found: list[View] = []
    for row in woken.tolist():
        view = View.of(session.events, row)
        if view.call in EPOLL_WAITS:
            entries = epoll_entries(
                view.sections.get(Section.EPOLL_EVENTS), view.sections.get(Section.EPOLL_EVENTS_ALIGNED)
            )
            by_timer = any(key in data for _, key in entries)
        else:
            by_timer = any(fd in numbers for fd, _ in ready_fds(view))
        if by_timer:
            found.append(view)
    if len(found) <= _AT_LEAST or 2 * len(found) < len(woken):
        return ""
    period_ns = int(np.median(np.diff([view.exit_ns for view in found])))
    wait = call_words(found[-1], limit=False)
    return f"{wait} again and again: its timer (timerfd) wakes it every {duration(period_ns)}"


def call_words(view: View, *, limit: bool = True) -> str:
    """A wait in short: `poll([fd 3], 500 ms)`, `epoll_wait(5)`, `accept4(3)`."""
    limit_ns = timeout_of(view) if limit and view.call in WAITS else None
    tail = f", {duration(limit_ns)}" if limit_ns is not None else ""
    if view.call in EPOLL_WAITS:
        return f"{view.call.name}({view.int_arg(0)}{tail})"
    if view.call in (Call.poll, Call.ppoll):
        fds = [fd for fd, _, _ in poll_entries(view.sections.get(Section.POLLFDS, b"")) if fd >= 0]
        return f"{view.call.name}({_fds(fds)}{tail})"
    if view.call in (Call.select, Call.pselect6):
        reads, writes, others = fd_sets(view.sections.get(Section.FDSETS_IN, b""), view.int_arg(0))
        return f"{view.call.name}({_fds(sorted({*reads, *writes, *others}))}{tail})"
    return f"{view.call.name}({view.int_arg(0)})"


def _fds(fds: list[int]) -> str:
    shown = ", ".join(f"fd {fd}" for fd in fds[:_FDS_SHOWN])
    return f"[{shown}{', …' if len(fds) > _FDS_SHOWN else ''}]"
