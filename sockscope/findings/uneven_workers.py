"""Of workers that share a listener one has nearly all connections, and others wait idle.

What it reports:
    Processes that wait for the same listener, of which one accepted three quarters of the connections and more,
    while another, alive and waiting all that time, got a tenth at most; and the one had many open at once.

Why it matters:
    What each connection asks for is done by the worker that accepted it. With one that has them all, requests
    wait behind each other in a process while CPUs and other workers are free: the server is as slow as one worker.

Evidence:
    Accepts by process, connections open at once in the busy one, how long the other was in its wait, and how
    long requests lay in the busy one's sockets until they were read.

Example:
    nginx[12] accepted 47 of 50 connections, nginx[13], in epoll_wait 99 % of the time, 3; 40 of 47 requests
    waited 50 ms and more until nginx[12] read them.

Mend:
    Give each worker a listener of its own (SO_REUSEPORT: nginx `listen … reuseport`, gunicorn `--reuse-port`): the
    kernel then deals by the client's address. Or let a worker that has more than its share stop waiting for the
    listener. EPOLLEXCLUSIVE spares wake-ups, and balances nothing.

False positives:
    epoll wakes the waiter that comes first in the listener's queue, and that is always the same one as long as it is
    waiting: at low load one worker rightly serves everybody, and nothing is said. So the busy one must have had ten
    connections open at once; and it is an interesting fact unless its clients suffer for it: a fifth of its requests
    (ten at least) lay unread for 50 ms and more while the other was idle. 40 connections and more are looked at, and
    the skew must be beyond chance (five standard deviations of a fair deal). A worker that came or went meanwhile,
    or was at work itself, is not idle.

References:
    epoll_ctl(2) EPOLLEXCLUSIVE; socket(7) SO_REUSEPORT; fs/eventpoll.c, kernel/sched/wait.c __wake_up_common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sockscope.analysis.narration.members import Member, members_of
from sockscope.analysis.replay.control import IS_WAIT, by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS
from sockscope.findings.shared.evidence import (
    NS_PER_MS,
    from_event,
    from_packet,
    from_proc,
    kept,
    listed,
    plural,
    span,
    who,
)
from sockscope.model.calls import FIRST_TASK_EVENT
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="uneven-workers",
    severity=Severity.WARNING,
    summary="one of the workers that share a listener has nearly all connections, others wait idle",
)

_IS_ACCEPT: Final = by_call(ACCEPTS)
_LEAST: Final = 40
_BUSY_SHARE: Final = 0.75
_IDLE_SHARE: Final = 0.1
_SIGMAS: Final = 5.0
_WAITING_SHARE: Final = 0.8
_OPEN_AT_ONCE: Final = 10
_LATE_NS: Final = 50 * NS_PER_MS
_LATE_SHARE: Final = 0.2
_LATE_LEAST: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Skew:
    """One listener's workers.

    Attributes:
        busy, idle: tgids; of the idle ones the idlest.
        accepts: the busy one's, in time. total: everybody's.
        workers: how many wait for the listener.
        waiting: share of the time that the idle one spent in its wait.
        at_once: connections open at once in the busy one.
        late: rows of `Session.exchanges`: requests of the busy one that lay unread.
        asked: how many requests it had of which that is known.
    """

    listener: int
    busy: int
    idle: int
    fd: int
    accepts: Ids
    total: int
    idle_count: int
    workers: int
    waiting: float
    at_once: int
    late: Ids
    asked: int

    @property
    def suffers(self) -> bool:
        return len(self.late) >= max(_LATE_LEAST, _LATE_SHARE * self.asked)


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a listener."""
    records = session.events.records
    accepts = np.flatnonzero(_IS_ACCEPT[session.event_call] & (session.event_open_file >= 0))
    accepts = accepts[records["ret"][accepts] >= 0]
    accepts = accepts[np.argsort(session.effective_ns[accepts], kind="stable")]
    files = session.event_open_file[accepts]
    members: dict[int, Member] | None = None
    for file, count in zip(*(column.tolist() for column in np.unique(files, return_counts=True)), strict=True):
        mine = accepts[files == file]
        tgids, shares = np.unique(records["tgid"][mine], return_counts=True)
        if count < _LEAST or shares.max() < _BUSY_SHARE * count:
            continue
        if members is None:
            members = members_of(session)
        skew = _skew(session, file, mine, dict(zip(tgids.tolist(), shares.tolist(), strict=True)), members)
        if skew is not None:
            yield _finding(session, skew)


def _skew(
    session: Session, listener: int, accepts: Ids, shares: dict[int, int], members: dict[int, Member]
) -> _Skew | None:
    records = session.events.records
    total = len(accepts)
    since, until = (int(session.effective_ns[event]) for event in (accepts[0], accepts[-1]))
    workers = [one for one in members.values() if listener in one.watched or one.tgid in shares]
    if len(workers) < 2:
        return None
    busy = max(shares, key=lambda tgid: shares[tgid])
    fair = total / len(workers)
    if shares[busy] - fair < _SIGMAS * (fair * (1 - 1 / len(workers))) ** 0.5:
        return None
    own = accepts[records["tgid"][accepts] == busy]
    ids, at_once = _opened(session, own)
    if at_once < _OPEN_AT_ONCE:
        return None
    late, asked, last_ns = _late(session, ids)
    found: tuple[float, Member] | None = None
    for one in workers:
        process = session.processes[one.tgid]
        came_late = process.started_ns is not None and process.started_ns > since
        gone = process.exited_ns is not None and process.exited_ns < until
        if one.tgid == busy or came_late or gone or shares.get(one.tgid, 0) > _IDLE_SHARE * total:
            continue
        share = _waiting(session, one, since, max(until, last_ns))
        if share >= _WAITING_SHARE and (found is None or share > found[0]):
            found = share, one
    if found is None:
        return None
    return _Skew(
        listener=listener, busy=busy, idle=found[1].tgid, fd=int(np.int64(records["args"][own[0], 0]).astype(np.int32)),
        accepts=own, total=total, idle_count=shares.get(found[1].tgid, 0), workers=len(workers), waiting=found[0],
        at_once=at_once, late=late, asked=asked,
    )  # fmt: skip


def _opened(session: Session, accepts: Ids) -> tuple[Ids, int]:
    """The connections that these accepts made, and how many were open at once."""
    # An accept is assigned to its listener, so the connections are asked for it.
    wanted = set(accepts.tolist())
    made = [one for one in session.connections if one.opened_event in wanted]
    began = session.effective_ns[np.array([one.opened_event for one in made], np.int64)]
    files = [session.open_files[one.open_file] for one in made if one.open_file >= 0]
    ended = np.array([file.released_ns or session.info.ended_ns for file in files], np.int64)
    times = np.concatenate([began, ended])
    steps = np.concatenate([np.ones(len(began), np.int64), -np.ones(len(ended), np.int64)])
    running = np.cumsum(steps[np.lexsort((steps, times))])
    return np.array([one.id for one in made], np.int64), int(running.max(initial=0))


def _late(session: Session, connections: Ids) -> tuple[Ids, int, int]:
    """Of these connections' requests those that lay unread, how many are known, and when the last late one was read."""
    exchanges = session.exchanges
    rows = np.flatnonzero(
        np.isin(exchanges["connection"], connections)
        & (exchanges["arrived_ns"] >= 0)
        & (exchanges["first_read_ns"] >= 0)
    )
    waited = exchanges["first_read_ns"][rows] - exchanges["arrived_ns"][rows]
    late = rows[waited >= _LATE_NS]
    return late, len(rows), int(exchanges["first_read_ns"][late].max(initial=0))


def _waiting(session: Session, one: Member, since: int, until: int) -> float:
    """Share of the time between in which some thread of it was waiting; where it made no call at all: all of it."""
    records = session.events.records
    best = 0.0
    events = session.events_of_tgid(one.tgid)
    if not (records["call"][events] < FIRST_TASK_EVENT).any():
        return 1.0
    waits = events[(IS_WAIT | _IS_ACCEPT)[records["call"][events]]]
    for tid in np.unique(records["tid"][waits]).tolist():
        own = waits[records["tid"][waits] == tid]
        began = np.where(records["enter_ns"][own] < 0, since, records["enter_ns"][own]).clip(since, until)
        ended = np.where(records["exit_ns"][own] < 0, until, records["exit_ns"][own]).clip(since, until)
        best = max(best, float((ended - began).clip(0).sum()) / max(until - since, 1))
    return best


def _finding(session: Session, skew: _Skew) -> Finding:
    count = len(skew.accepts)
    local = session.open_files[skew.listener].local
    where = f"{local} (fd {skew.fd})" if local is not None else f"fd {skew.fd}"
    busy, idle = who(session, skew.busy), who(session, skew.idle)
    exchanges = session.exchanges
    connections = tuple(dict.fromkeys(exchanges["connection"][skew.late].tolist())) if skew.suffers else ()
    worst = None
    if skew.suffers:
        waited = exchanges["first_read_ns"][skew.late] - exchanges["arrived_ns"][skew.late]
        worst = int(exchanges["connection"][skew.late[np.argmax(waited)]])
        cost = (
            f"It had up to {skew.at_once} open at once, and {len(skew.late)} of {skew.asked} requests lay unread for "
            f"{_LATE_NS // NS_PER_MS} ms and more (up to {span(int(waited.max()))}), while {idle} had nothing to do."
        )
    else:
        cost = f"It had up to {skew.at_once} open at once. Its clients did not wait for it so far."
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if skew.suffers else Severity.INFO,
        confidence=Confidence.CERTAIN if skew.suffers else Confidence.LIKELY,
        title=f"{count} of {skew.total} connections went to one of {plural(skew.workers, 'worker')}",
        tgid=skew.busy,
        comm=session.comm(skew.busy),
        fd=skew.fd,
        connections=connections,
        count=count,
        worst=worst,
        explanation=(
            f"{busy} accepted {count} of {plural(skew.total, 'connection')} from {where}; {idle}, which waits for the "
            f"same listener and was waiting {skew.waiting:.0%} of the time, accepted {skew.idle_count}. {cost} The "
            "kernel wakes the waiter that is first in the listener's queue, and while it is waiting that is always "
            "the same one."
        ),
        remedy=(
            "Give each worker a listener of its own: SO_REUSEPORT before bind in each (nginx: listen … reuseport, "
            f"gunicorn: --reuse-port); or let a worker with more connections than the others take fd {skew.fd} out of "
            "its epoll until it has fewer."
        ),
        evidence=kept(_evidence(session, skew)),
    )


def _evidence(session: Session, skew: _Skew) -> Iterator[Evidence]:
    exchanges = session.exchanges
    numbers = listed((f"{who(session, skew.busy)} {len(skew.accepts)}", f"{who(session, skew.idle)} {skew.idle_count}"))
    yield from_proc(int(session.effective_ns[skew.accepts[-1]]), f"connections accepted: {numbers}, of {skew.total}")
    yield from_event(session, int(skew.accepts[0]), "its first")
    yield from_event(session, int(skew.accepts[-1]), f"its last: number {len(skew.accepts)}")
    if skew.suffers:
        waited = exchanges["first_read_ns"][skew.late] - exchanges["arrived_ns"][skew.late]
        worst = exchanges[skew.late[np.argmax(waited)]]
        for row in session.packets_of(int(worst["connection"])).tolist():
            if session.packet_ns[row] == worst["arrived_ns"]:
                yield from_packet(session, row, "a request arrives")
                break
        yield from_event(session, int(worst["first_read_event"]), f"and is read {span(int(waited.max()))} later")
