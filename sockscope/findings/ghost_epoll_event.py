"""epoll goes on telling of a descriptor that was closed, because its open file lives on elsewhere.

What it reports:
    A process closed a descriptor that it had registered with epoll, without EPOLL_CTL_DEL, while another
    descriptor (a dup, a forked child's copy, one passed by SCM_RIGHTS) keeps the open file alive. epoll_wait goes on
    reporting it to the process, under a number that names nothing any more, or something else.

Why it matters:
    The registration belongs to the open file, not to the number. The program cannot take it out any more
    (EPOLL_CTL_DEL of the closed number fails with EBADF, or hits another descriptor), so each event wakes it for
    nothing; level-triggered and unread it spins. Where `data` is a pointer to the freed connection, each event is a
    use after free; where it is the number, events go to whatever connection has the number next.

Evidence:
    The registration, the close after it, who still holds the open file, and the events that were reported afterwards.

Example:
    `epoll_ctl(4, EPOLL_CTL_ADD, 7, {EPOLLIN, data=7})`, `fork()`, `close(7)`, `epoll_wait(4, [{EPOLLIN, data=7}])`.

Mend:
    EPOLL_CTL_DEL before close, wherever the descriptor may have been copied (dup, fork, SCM_RIGHTS).

False positives:
    Only events reported after the close count. Where another registration of the instance has the same data (the
    number was given to a new connection), they may be meant for that one: there a read that found nothing must have
    followed at once, three times. A close that
    ended the open file removes the registration by itself and is not reported. Where another rule explains who
    keeps the open file (fin-withheld, inherited-connection-fd, passed-fd-leak) that one speaks. The severity is a
    warning: each event is wasted work, and dangerous, but what the clients see may be right. A worker that closes
    its listener in order to end, and did end, is an info: it spins for as long as its last clients take (Apache's
    event MPM does, at each graceful restart).

References:
    epoll(7) Q6; epoll_ctl(2) EPOLL_CTL_DEL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    from_event,
    from_proc,
    kept,
    listed,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.holding import DELIBERATE
from sockscope.model.calls import EPOLL_WAITS, READS, USUAL_GROUPS, Call, CallGroup
from sockscope.model.descriptors import Descriptor, EpollInterest, How
from sockscope.model.event_rows import find_sections, words_at
from sockscope.model.events import Section
from sockscope.model.findings import Confidence, Evidence, Finding, Holder, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="ghost-epoll-event",
    severity=Severity.WARNING,
    summary="epoll tells of a descriptor that was closed: its open file lives on under another",
    yields_to=frozenset({"fin-withheld", "inherited-connection-fd", "passed-fd-leak"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_EPOLL_WAITS, _READS = by_call(EPOLL_WAITS), by_call(READS)
_LAYOUTS = ((Section.EPOLL_EVENTS, 12, 4), (Section.EPOLL_EVENTS_ALIGNED, 16, 8))
"""Section, bytes of a struct epoll_event, where its data begins."""
_EBADF, _ENOENT, _EAGAIN = -9, -2, -11
_LOOKED_AT = 500
_VAIN_ENOUGH = 3
_TRIES_LOOKED_AT = 8
_FOREVER = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ghost:
    """A registration that outlived its descriptor.

    Attributes:
        closed: the descriptor that was registered; None: closed before watching began.
        since_ns: from when on its events are ghosts.
        waits: those that reported it.
        tried: what the program then tried with the number, in vain; -1.
        others: descriptors that keep the open file, the longest first.
    """

    interest: EpollInterest
    tgid: int
    closed: Descriptor | None
    since_ns: int
    waits: Ids
    tried: int
    others: tuple[Descriptor, ...]


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    groups: defaultdict[str, list[_Ghost]] = defaultdict(list)
    told = _Told(session)
    for interest in session.interests:
        file = session.open_files[interest.open_file] if interest.open_file >= 0 else None
        # One descriptor only: with its close the registration went.
        if file is None or (len(file.descriptors) < 2 and interest.added_event >= 0) or file.connection in explained:
            continue
        ghost = _judge(session, interest, told)
        if ghost is not None:
            groups[program(session, ghost.tgid)].append(ghost)
    for ghosts in groups.values():
        yield _finding(session, ghosts)


def _judge(session: Session, interest: EpollInterest, told: _Told) -> _Ghost | None:
    """The registration as a ghost that was reported; None where it is none, or was never told of."""
    tables = _tables(session, interest)
    every = [session.descriptors[number] for number in session.open_files[interest.open_file].descriptors]
    own = [d for d in every if d.table in tables and d.fd == interest.fd and _meets(d, interest)]
    closed = max(own, key=lambda one: one.opened_ns, default=None)
    if closed is None:
        if interest.added_event >= 0 or any(d.table in tables and d.fd == interest.fd for d in every):
            return None
        since = session.info.started_ns
    elif closed.closed_ns is None or closed.ended not in DELIBERATE:
        return None
    else:
        since = closed.closed_ns
    if interest.removed_ns is not None and interest.removed_ns <= since:
        return None
    others = [d for d in every if d is not closed and (d.closed_ns is None or d.closed_ns > since)]
    others.sort(key=lambda one: -(_FOREVER if one.closed_ns is None else one.closed_ns))
    waits = told.of(interest, since)
    if not len(waits) or not others:
        return None
    return _Ghost(
        interest=interest,
        tgid=int(session.events.records["tgid"][waits[0]]),
        closed=closed,
        since_ns=since,
        waits=waits,
        tried=_tried(session, interest, waits),
        others=tuple(others),
    )


def _meets(descriptor: Descriptor, interest: EpollInterest) -> bool:
    """Whether the descriptor was there when the registration was made."""
    gone_before = descriptor.closed_ns is not None and descriptor.closed_ns < interest.added_ns
    return descriptor.opened_ns <= interest.added_ns and not gone_before


def _tables(session: Session, interest: EpollInterest) -> set[int]:
    """The files table in which it was registered; of one found at the attach, those that hold the instance."""
    if interest.added_event >= 0:
        return {int(session.event_table[interest.added_event])}
    return {session.descriptors[number].table for number in session.open_files[interest.epoll].descriptors}


class _Told:
    """What each instance's waits reported, taken apart at the first question. For one rule's run over a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._by_epoll: dict[int, tuple[Ids, Ids]] = {}
        self._by_data: defaultdict[tuple[int, int], list[EpollInterest]] | None = None

    def of(self, interest: EpollInterest, since_ns: int) -> Ids:
        """Waits that began later and reported the registration, and did not mean another."""
        waits, data = self._entries(interest.epoll)
        records = self._session.events.records
        hits: Ids = waits[data == np.uint64(interest.data).astype(np.int64)]
        until = interest.removed_ns if interest.removed_ns is not None else _FOREVER
        left = records["exit_ns"][hits]
        hits = hits[(left > since_ns) & (left < until) & (records["enter_ns"][hits] > since_ns)]
        if not len(hits):
            return hits
        left = records["exit_ns"][hits]
        meant = np.zeros(len(hits), np.bool_)
        for other in self._same_data(interest):
            meant |= (left >= other.added_ns) & (left <= (_FOREVER if other.removed_ns is None else other.removed_ns))
        vain = [self._came_to_nothing(hit, interest.fd) for hit in hits[meant][:_LOOKED_AT].tolist()]
        alone: Ids = np.sort(np.concatenate([hits[~meant], hits[meant][:_LOOKED_AT][np.array(vain, np.bool_)]]))
        return alone if not meant.all() or len(alone) >= _VAIN_ENOUGH else alone[:0]

    def _came_to_nothing(self, wait: int, fd: int) -> bool:
        """Whether the first the thread did with the number afterwards was a read that found nothing."""
        records = self._session.events.records
        events = self._session.events_of_tid(int(records["tid"][wait]))
        at = int(np.searchsorted(self._session.effective_ns[events], self._session.effective_ns[wait], "right"))
        for event in events[at : at + _TRIES_LOOKED_AT].tolist():
            call = int(records["call"][event])
            if _EPOLL_WAITS[call]:
                return False
            if int(records["args"][event, 0]) & 0xFFFF_FFFF == fd:
                return bool(_READS[call]) and int(records["ret"][event]) == _EAGAIN
        return False

    def _same_data(self, interest: EpollInterest) -> list[EpollInterest]:
        if self._by_data is None:
            self._by_data = defaultdict(list)
            for one in self._session.interests:
                self._by_data[one.epoll, one.data].append(one)
        return [one for one in self._by_data[interest.epoll, interest.data] if one is not interest]

    def _entries(self, epoll: int) -> tuple[Ids, Ids]:
        """(wait, data) of every event that the instance's waits reported."""
        if epoll not in self._by_epoll:
            events, records = self._session.events, self._session.events.records
            waits = self._session.events_of_open_file(epoll)
            waits = waits[_EPOLL_WAITS[records["call"][waits]] & (records["ret"][waits] > 0)]
            parts = []
            for kind, size, offset in _LAYOUTS:
                place, length = find_sections(events, waits, kind)
                counts = np.where(place >= 0, length // size, 0)
                first = np.cumsum(counts) - counts
                nth = np.arange(int(counts.sum())) - np.repeat(first, counts)
                at = np.repeat(place, counts) + nth * size + offset
                parts.append(
                    (np.repeat(waits, counts), words_at(events.blob, at) | words_at(events.blob, at + 4) << 32)
                )
            self._by_epoll[epoll] = (
                np.concatenate([part[0] for part in parts]),
                np.concatenate([part[1] for part in parts]),
            )
        return self._by_epoll[epoll]


def _tried(session: Session, interest: EpollInterest, waits: Ids) -> int:
    """The first call that failed because the number names nothing, or is not registered any more; -1."""
    records = session.events.records
    for wait in waits[:_TRIES_LOOKED_AT].tolist():
        events = session.events_of_tid(int(records["tid"][wait]))
        at = int(np.flatnonzero(events == wait)[0])
        following: list[int] = events[at + 1 : at + 1 + _TRIES_LOOKED_AT].tolist()
        for event in following:
            argument = 2 if session.events.call(event) is Call.epoll_ctl else 0
            named = int(records["args"][event, argument]) & 0xFFFF_FFFF == interest.fd
            if named and int(records["ret"][event]) in (_EBADF, _ENOENT):
                return event
    return NO_ID


_KEPT_BY = {
    How.FORK: "a forked copy",
    How.DUP: "a dup",
    How.SCM_RIGHTS: "a descriptor passed by SCM_RIGHTS",
    How.PIDFD_GETFD: "a copy taken by pidfd_getfd",
}


def _finding(session: Session, ghosts: list[_Ghost]) -> Finding:
    worst = max(ghosts, key=lambda one: len(one.waits))
    connections = tuple(sorted({session.open_files[one.interest.open_file].connection for one in ghosts} - {NO_ID}))
    fds = sorted({one.interest.fd for one in ghosts})
    events = sum(len(one.waits) for one in ghosts)
    fd, keeper = worst.interest.fd, worst.others[0]
    holder_tgid = session.tgid_of_table(keeper.table)
    mine = who(session, worst.tgid)
    closed = (
        f"closed fd {fd} at {since_start(session, worst.since_ns)}"
        if worst.closed is not None
        else f"had closed fd {fd} before watching began"
    )
    keeps = (
        f"{_KEPT_BY.get(keeper.how, 'another descriptor')} (fd {keeper.fd} of {who(session, holder_tgid)}) keeps "
        "the open file alive"
    )
    is_draining = all(_drains(session, ghost) for ghost in ghosts)
    drains = " It was ending: it accepted no more, and then exited." if is_draining else ""
    first, last = (int(session.effective_ns[worst.waits[end]]) for end in (0, -1))
    lasted = f" within {span(last - first)}" if len(worst.waits) > 1 else ""
    tried = f" It tried {session.events.call(worst.tried).name} on it in vain." if worst.tried >= 0 else ""
    of = f" So it is with {len(ghosts)} registrations, {events} events in all." if len(ghosts) > 1 else ""
    return Finding(
        rule=RULE.slug,
        severity=Severity.INFO if is_draining else Severity.WARNING,
        confidence=Confidence.CERTAIN,
        title=f"epoll reported {plural(events, 'event')} of {plural(len(ghosts), 'descriptor')} that "
        f"{'was' if len(ghosts) == 1 else 'were'} closed (fd {listed(map(str, fds))})",
        tgid=worst.tgid,
        comm=session.comm(worst.tgid),
        fd=fd if len(fds) == 1 else None,
        holder=Holder(tgid=holder_tgid, comm=session.comm(holder_tgid), fd=keeper.fd),
        connections=connections,
        count=len(ghosts),
        worst=session.open_files[worst.interest.open_file].connection if connections else None,
        explanation=(
            f"{mine} {closed} without EPOLL_CTL_DEL, and {keeps}: the registration in epoll fd "
            f"{_epoll_fd(session, worst)} stays with it. epoll_wait reported fd {fd} "
            f"{plural(len(worst.waits), 'time')} since, first at {since_start(session, first)}{lasted}; by then "
            f"the number is closed, or something else.{tried}{of}{drains}"
        ),
        remedy=(
            f"Call epoll_ctl(EPOLL_CTL_DEL) on fd {fd} before it is closed: only the close of the last copy takes the "
            "registration out, and after its own close the program cannot."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _drains(session: Session, ghost: _Ghost) -> bool:
    """Whether what was closed is a listener, of a process that has ended since."""
    process = session.processes.get(ghost.tgid)
    ended = process is not None and process.exited_ns is not None
    return ended and session.open_files[ghost.interest.open_file].listening


def _epoll_fd(session: Session, ghost: _Ghost) -> int:
    """The number by which the waiting process names its instance."""
    return int(session.events.records["args"][ghost.waits[0], 0])


def _evidence(session: Session, ghost: _Ghost) -> Iterator[Evidence]:
    yield from_event(session, int(ghost.waits[0]), f"tells of fd {ghost.interest.fd}, which is closed")
    if ghost.interest.added_event >= 0:
        yield from_event(session, ghost.interest.added_event, "registered")
    else:
        yield from_proc(
            session.info.started_ns, f"/proc/{ghost.tgid}/fdinfo: tfd: {ghost.interest.fd}, registered before"
        )
    if ghost.closed is not None and ghost.closed.closed_event >= 0:
        yield from_event(session, ghost.closed.closed_event, "closed, and not taken out of the epoll set")
    for one in ghost.others[:2]:
        by = who(session, session.tgid_of_table(one.table))
        if one.opened_event >= 0:
            yield from_event(session, one.opened_event, f"the open file is also fd {one.fd} of {by}")
        else:
            yield from_proc(one.opened_ns, f"the open file is also fd {one.fd} of {by}")
    if ghost.tried >= 0:
        yield from_event(session, ghost.tried, "the number names nothing")
    yield from_event(session, int(ghost.waits[-1]), "the last such event")
