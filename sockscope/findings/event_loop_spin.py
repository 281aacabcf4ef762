"""An event loop is woken again and again for the same thing, and makes no progress.

What it reports:
    A thread whose poll, select or epoll_wait returns at once, hundreds of times in a row, with the same
    events, while between two returns nothing is read, written, accepted, closed or changed. Causes:
    a hang-up that is not handled (EPOLLHUP, EPOLLERR, EPOLLRDHUP), an end of file that is read again and
    again, readiness to write that is asked for with nothing to write, data that is never read, or a
    wait with timeout 0.

Why it matters:
    One idle client makes the process burn a CPU. The service stays correct and gets slow, and
    the load grows with the number of idle connections.

Evidence:
    How many waits returned in a row, at what rate, what they said was ready, and what was tried in between.

Example:
    `epoll_wait(4, [{EPOLLOUT, data=7}], …) = 1`, 31 000 times in 2 s, with nothing in between.

Mend:
    Ask for EPOLLOUT only while there is something to send. On EPOLLHUP, EPOLLERR, EPOLLRDHUP or a read
    of 0 take the descriptor out of the set and close it. Wait with a timeout that says when there is
    something to do.

False positives:
    A loaded server makes progress each turn: one byte moved, one connection accepted or closed, by any
    thread on what was ready, ends a run. Nine of ten turns must take less than a millisecond. 200 turns in
    a row and half a second in all are needed (for timeout 0, which some programs choose for its latency,
    1000 turns, a second, and no other thread of the process at work). A listener that fails with EMFILE is
    left to descriptor-exhaustion.

References:
    epoll(7), poll(2) POLLHUP; epoll_ctl(2) EPOLLRDHUP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS
from sockscope.findings.shared.evidence import (
    NS_PER_MS,
    NS_PER_S,
    from_event,
    from_proc,
    kept,
    listed,
    plural,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.readiness import ERR, HUP, IN, OUT, RDHUP, Names, Ready, ready_of
from sockscope.model.calls import READS, USUAL_GROUPS, WAITS, WRITES, Call, CallGroup
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="event-loop-spin",
    severity=Severity.WARNING,
    summary="waits return at once with the same events and no progress is made",
    yields_to=frozenset({"ghost-epoll-event"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_TURNS = 200
_TURNS_OF_NOTHING = 1000
_SPUN_NS = NS_PER_S // 2
_SPUN_FOR_NOTHING_NS = NS_PER_S
_RATE_PER_S = 200
_QUICK_NS = NS_PER_MS
_QUICK_SHARE = 0.9
_LONGEST_TURN_NS = 100 * NS_PER_MS
"""Now and then a spinning thread is not given a CPU."""
_LOOKED_AT = 64
_EXHAUSTED = (-24, -23)

_WAITS, _READS, _WRITES = by_call(WAITS), by_call(READS), by_call(WRITES)
_ASKS = by_call([Call.getsockopt, Call.getsockname, Call.getpeername, Call.fcntl, Call.ioctl])
"""Change nothing (fcntl and ioctl: nothing that ends a spin)."""


class _Why(StrEnum):
    HANG_UP = "a hang-up that nobody handles"
    END_OF_FILE = "an end of file read again and again"
    WRITABLE = "readiness to write, with nothing to write"
    UNREAD = "readiness that nobody consumes"
    NOTHING = "a wait with timeout 0 and nothing ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Turns in a row without progress.

    Attributes:
        waits: the waits, in order.
        ready: what each one of those looked at said.
    """

    tid: int
    waits: Ids
    began_ns: int
    ended_ns: int
    ready: frozenset[Ready]

    @property
    def spun_ns(self) -> int:
        return self.ended_ns - self.began_ns


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a process and cause."""
    records = session.events.records
    waits = _WAITS[session.event_call]
    names = Names(session)
    tids, counts = np.unique(records["tid"][waits], return_counts=True)
    groups: defaultdict[tuple[int, _Why], list[_Run]] = defaultdict(list)
    for tid in tids[counts >= _TURNS].tolist():
        for run in _runs(session, tid):
            why = _cause(session, run, names)
            if why is not None:
                groups[int(records["tgid"][run.waits[0]]), why].append(run)
    for (tgid, why), runs in groups.items():
        turns, spun = sum(len(run.waits) for run in runs), sum(run.spun_ns for run in runs)
        if why is _Why.NOTHING:
            enough = turns >= _TURNS_OF_NOTHING and spun >= _SPUN_FOR_NOTHING_NS
        else:
            enough = spun >= _SPUN_NS
        if enough:
            finding = _finding(session, tgid, why, runs, names)
            if not finding.connections or not set(finding.connections) <= explained:
                yield finding


def _progress(session: Session, events: Ids) -> npt.NDArray[np.bool_]:
    """Which of the events changed anything.

    What is written to standard output or error is the complaint of a spinning loop, not its progress.
    """
    # Column by column: whole records of a million events would be 100 MB.
    records = session.events.records
    calls, returned = records["call"][events], records["ret"][events]
    reads, logs = _READS[calls], _WRITES[calls]
    written = np.nonzero(logs)[0]
    logs[written] = np.isin(records["args"][events[written], 0], (1, 2))
    idle = _WAITS[calls] | _ASKS[calls] | (reads & (returned == 0)) | (returned < 0) | logs
    moved: npt.NDArray[np.bool_] = ~idle
    return moved


def _runs(session: Session, tid: int) -> Iterator[_Run]:
    """Runs of quick waits of one thread without progress between them."""
    events = session.events_of_tid(tid)
    records = session.events.records
    at = np.nonzero(_WAITS[records["call"][events]])[0]
    done = np.cumsum(_progress(session, events))[at]
    waits = events[at]
    entered, left, returned = records["enter_ns"][waits], records["exit_ns"][waits], records["ret"][waits]
    whole = (returned >= 0) & (entered >= 0) & (left >= 0)
    # Turn i leads from the return of wait i to that of wait i + 1.
    turn = whole[:-1] & whole[1:] & (done[:-1] == done[1:]) & (left[1:] - left[:-1] < _LONGEST_TURN_NS)
    edges = np.diff(np.concatenate([[0], turn.view(np.int8), [0]]))
    for first, end in zip(np.nonzero(edges == 1)[0].tolist(), np.nonzero(edges == -1)[0].tolist(), strict=True):
        if end - first < _TURNS:
            continue
        began, ended = int(left[first]), int(left[end])
        quick = (np.diff(left[first : end + 1]) < _QUICK_NS).sum()
        if quick >= _QUICK_SHARE * (end - first) and (end - first) * NS_PER_S >= _RATE_PER_S * (ended - began):
            run = waits[first : end + 1]
            ready = _always_ready(session, run)
            if ready is not None:
                yield _Run(tid=tid, waits=run, began_ns=began, ended_ns=ended, ready=ready)


def _always_ready(session: Session, waits: Ids) -> frozenset[Ready] | None:
    """What every wait said (of some spread over the run); None where they have nothing in common."""
    step = max(1, len(waits) // _LOOKED_AT)
    common: frozenset[Ready] | None = None
    for wait in waits[::step].tolist():
        said = ready_of(session, wait)
        if said is None:
            return None
        common = said if common is None else common & said
        if not common and int(session.events.records["ret"][wait]) > 0:
            return None
    if common or not session.events.records["ret"][waits].any():
        return common
    return None


def _cause(session: Session, run: _Run, names: Names) -> _Why | None:
    """Why it spins; None where it does not after all."""
    between = _between(session, run)
    records = session.events.records
    calls, returned = records["call"][between], records["ret"][between]
    if not run.ready:
        return None if _others_work(session, run) else _Why.NOTHING
    if (np.isin(calls, ACCEPTS) & np.isin(returned, _EXHAUSTED)).any():
        return None
    if _served_elsewhere(session, run, names):
        return None
    bits = 0
    for one in run.ready:
        bits |= one.bits
    if (_READS[calls] & (returned == 0)).any():
        return _Why.END_OF_FILE
    if bits & (HUP | ERR | RDHUP):
        return _Why.HANG_UP
    if bits & IN:
        return _Why.UNREAD
    return _Why.WRITABLE if bits & OUT else None


def _between(session: Session, run: _Run) -> Ids:
    """What the thread did between the waits of the run."""
    events = session.events_of_tid(run.tid)
    when = session.effective_ns[events]
    events = events[(when >= run.began_ns) & (when <= run.ended_ns)]
    between: Ids = events[~_WAITS[session.events.records["call"][events]]]
    return between


def _others_work(session: Session, run: _Run) -> bool:
    """Whether other threads of the process made progress: a runtime that looks for work between other work (Go)."""
    events = session.events_of_tgid(int(session.events.records["tgid"][run.waits[0]]))
    when = session.effective_ns[events]
    during = events[(when >= run.began_ns) & (when <= run.ended_ns)]
    others = during[session.events.records["tid"][during] != run.tid]
    return bool(_progress(session, others).any())


def _served_elsewhere(session: Session, run: _Run, names: Names) -> bool:
    """Whether another thread or process made progress on what was ready: the loop handed it over."""
    for one in run.ready:
        file, _ = names.of(int(run.waits[0]), one)
        if file < 0:
            continue
        events = session.events_of_open_file(file)
        when = session.effective_ns[events]
        during = events[(when >= run.began_ns) & (when <= run.ended_ns)]
        if _progress(session, during).any():
            return True
    return False


_MENDS = {
    _Why.HANG_UP: "On {poll}HUP, {poll}ERR or {poll}RDHUP take {fds} out of the set and close it.",
    _Why.END_OF_FILE: "Where the read of {fds} returns 0, take it out of the set and close it.",
    _Why.WRITABLE: "Ask for readiness to write on {fds} only while something is left to be sent.",
    _Why.UNREAD: "Read (or accept from) {fds} when it is ready, or take it out of the set until it can be served.",
    _Why.NOTHING: "Wait with a timeout that says when there is something to do (-1: until an event), not with 0.",
}


def _finding(session: Session, tgid: int, why: _Why, runs: list[_Run], names: Names) -> Finding:
    runs.sort(key=lambda run: -len(run.waits))
    worst = runs[0]
    turns, spun = sum(len(run.waits) for run in runs), sum(run.spun_ns for run in runs)
    watched = max(1, session.info.ended_ns - session.info.started_ns)
    files = [names.of(int(run.waits[0]), one) for run in runs for one in run.ready]
    fds = sorted({fd for _, fd in files if fd >= 0})
    numbers = {session.open_files[file].connection for file, _ in files if file >= 0} - {-1}
    connections = tuple(sorted(numbers))
    named_fds = f"fd {listed(map(str, fds))}" if fds else "the descriptor"
    call = session.events.call(int(worst.waits[0])).name
    rate = len(worst.waits) * NS_PER_S // max(1, worst.spun_ns)
    tried = _between(session, worst)
    between = (
        f"In between the thread made {plural(len(tried), 'call')}, none with effect."
        if len(tried)
        else "In between the thread made no call at all."
    )
    about = f" for {named_fds}" if worst.ready else ""
    threads = len({run.tid for run in runs})
    by, whose = (f" by {threads} threads", "one CPU's") if threads > 1 else ("", "the")
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY if why is _Why.NOTHING else Confidence.CERTAIN,
        title=f"{call} spins{about}: {why.value}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fds[0] if len(fds) == 1 else None,
        connections=connections,
        count=max(1, len(connections)),
        worst=connections[0] if connections else None,
        explanation=(
            f"{who(session, tgid, worst.tid)}: {call} returned {len(worst.waits)} times in a row within "
            f"{span(worst.spun_ns)} ({rate} a second), each time at once{about}, and no progress was made. {between} "
            f"In all {turns} such turns{by}, {span(spun)} or {100 * spun // watched}% of {whose} time watched. "
            f"The cause: {why.value}."
        ),
        remedy=_MENDS[why].format(fds=named_fds, poll="EPOLL" if call.startswith("epoll") else "POLL"),
        evidence=kept(_evidence(session, worst, tried)),
    )


def _evidence(session: Session, run: _Run, tried: Ids) -> Iterator[Evidence]:
    first, last = int(run.waits[0]), int(run.waits[-1])
    yield from_event(session, first, f"the first of {len(run.waits)} in a row")
    for event in tried[:2].tolist():
        yield from_event(session, event, "without effect")
    yield from_event(session, int(run.waits[1]), "at once again")
    yield from_event(session, last, "the last of these, with the same result")
    yield from_proc(run.ended_ns, f"{len(run.waits)} waits since {since_start(session, run.began_ns)}")
