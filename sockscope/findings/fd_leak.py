"""Sockets are made faster than they are closed, and stay unused.

What it reports:
    A process in which the number of open sockets of one origin grows all the time that it works: sockets that were
    made and never connected or used, connections that it opened and is done with, connections that it accepted
    and never touched. 20 at least, more in every third of the time, and none of them is used again.

Why it matters:
    Every one takes a descriptor for good. At RLIMIT_NOFILE accept, socket and open fail with EMFILE: the server
    serves nobody, hours after the fault, and a restart hides it until the next time. The peers of such connections
    keep a socket (and often a thread or a database session) each. It is an error where the growth, going on like
    this, reaches the limit within a day, or has; else a warning. Confidence is certain for sockets that nothing was
    ever done with, likely for connections: they may be kept for a use that was not seen.

Evidence:
    The calls that made the first and the last one, how many were made and closed, the last use of the oldest, how
    many descriptors the process has, and its limit.

Example:
    93 times `socket`, `connect(…, 127.0.0.1:5000)`, `sendto`, `recvfrom`, and not one `close`: 31 more a second,
    130 of 1024 descriptors open, the limit in 29 s.

Mend:
    Close the socket on every path when its answer has been read (`with`, `finally`, a destructor), the error paths
    too; or keep it, and take it again for the next request (a pool with a limit).

False positives:
    Pools are bounded and used again: growth must go on through the whole time in which the process works, and
    where connections of the group come back into use after half a second at rest, nothing is said. What some
    loop waits for (epoll, poll, select), what a thread is blocked on, what was used within the last second, and
    accepted connections that were ever used are in somebody's care. Where the peer has closed, close-wait-leak
    tells of it; passed descriptors are passed-fd-leak's.

References:
    socket(2); close(2); getrlimit(2) RLIMIT_NOFILE; accept(2) EMFILE.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    NS_PER_S,
    from_event,
    from_proc,
    kept,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.holding import DELIBERATE, USES, Holdings
from sockscope.model.calls import READS, USUAL_GROUPS, WRITES, Call, CallGroup
from sockscope.model.descriptors import How, OpenFile
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.seed import FileKind

RULE = Rule(
    slug="fd-leak",
    severity=Severity.ERROR,
    summary="sockets are made faster than closed, and stay unused",
    yields_to=frozenset(
        {
            "close-wait-leak",
            "fin-withheld",
            "passed-fd-leak",
            "accept-result-misused",
            "inherited-connection-fd",
            "event-loop-spin",
        }
    ),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_LEAST = 20
_LEAST_A_THIRD = 3
_SHARE_A_THIRD = 0.12
_LEAST_SPAN_NS = NS_PER_S
_AT_REST_NS = NS_PER_S // 2
_REUSED_SHARE = 0.1
_LOOKED_AT = 100
_SOON_NS = 86_400 * NS_PER_S
_UNLIMITED = 1 << 30
_NEVER_NS = 1 << 62
_EMFILE = -24
_USES = by_call(USES)
_MOVES = by_call(READS | WRITES | {Call.splice})
_ACCEPTS = by_call(ACCEPTS)
_MAKERS = frozenset({How.SOCKET, How.SOCKETPAIR, How.ACCEPT})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """What the sockets of a group have in common, in words; `touched`: something was done with them."""

    tgid: int
    words: str
    touched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Growth:
    """A group that grows.

    Attributes:
        files: those still open, in order of creation. unused: those of them that nobody uses any more.
        made_count: with those that were closed since the first of `files` was made.
        began_ns, until_ns: the time in which it grew.
    """

    origin: _Origin
    files: tuple[OpenFile, ...]
    unused: tuple[OpenFile, ...]
    made_count: int
    began_ns: int
    until_ns: int

    @property
    def per_second(self) -> float:
        return len(self.files) * NS_PER_S / max(1, self.until_ns - self.began_ns)


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and origin."""
    open_files = _open_at_end(session)
    if len(open_files) < _LEAST:
        return
    last_use = _last_uses(session, open_files)
    groups: defaultdict[_Origin, list[OpenFile]] = defaultdict(list)
    for file in open_files:
        if file.connection < 0 or file.connection not in explained:
            origin = _origin(session, file, touched=last_use[file.id] >= 0)
            if origin is not None:
                groups[origin].append(file)
    large = {origin: files for origin, files in groups.items() if len(files) >= _LEAST}
    if not large:
        return
    holdings, made = Holdings(session), _made(session)
    found: defaultdict[tuple[str, str], list[_Growth]] = defaultdict(list)
    for origin, files in large.items():
        growth = _growth(session, holdings, origin, files, last_use, made)
        if growth is not None:
            found[program(session, origin.tgid), origin.words].append(growth)
    for growths in found.values():
        yield _finding(session, growths, last_use)


def _open_at_end(session: Session) -> list[OpenFile]:
    """Sockets whose making was seen and that their program never closed."""
    started = session.info.started_ns
    return [
        file
        for file in session.open_files
        if file.witnessed
        and file.kind is FileKind.SOCKET
        and not file.listening
        and file.created_ns >= started
        and not file.in_flight
        and len(file.descriptors) == 1
        and session.descriptors[file.descriptors[0]].ended not in DELIBERATE
    ]


def _last_uses(session: Session, files: list[OpenFile]) -> npt.NDArray[np.int64]:
    """When each open file was used last: shape (open files,); -1: never; the session's end: a call is under way."""
    wanted = np.zeros(len(session.open_files) + 1, np.bool_)
    wanted[[file.id for file in files]] = True
    rows = np.flatnonzero(wanted[session.event_open_file] & _USES[session.event_call])
    when = np.where(session.events.records["exit_ns"][rows] < 0, session.info.ended_ns, session.effective_ns[rows])
    last = np.full(len(session.open_files), -1, np.int64)
    np.maximum.at(last, session.event_open_file[rows], when)
    return last


def _origin(session: Session, file: OpenFile, *, touched: bool) -> _Origin | None:
    first = session.descriptors[file.descriptors[0]]
    if first.how not in _MAKERS:
        return None
    tgid = session.tgid_of_table(first.table)
    if first.how is How.ACCEPT:
        # Used once, somebody may hold it for its client: a stream of events, an answer that takes its time.
        if touched:
            return None
        listener = session.open_files[file.listener].local if file.listener >= 0 else None
        words = f"connections accepted on {listener or 'its listener'} and never touched"
        return _Origin(tgid=tgid, words=words, touched=False)
    if first.how is How.SOCKETPAIR:
        return _Origin(tgid=tgid, words="socketpairs' ends", touched=touched)
    if file.peer is not None:
        return _Origin(tgid=tgid, words=f"connections to {file.peer}", touched=True)
    if touched:
        return _Origin(tgid=tgid, words=f"sockets ({_family(file)})", touched=True)
    return _Origin(tgid=tgid, words=f"sockets ({_family(file)}) that nothing was done with", touched=False)


def _family(file: OpenFile) -> str:
    families = {1: "unix", 2: "IPv4", 10: "IPv6", 16: "netlink", 17: "packet"}
    types = {1: "stream", 2: "datagram"}
    return " ".join([families.get(file.family, f"family {file.family}"), types.get(file.socket_type, "")]).strip()


def _made(session: Session) -> dict[tuple[int, str], list[tuple[int, int]]]:
    """(tgid, origin in words) → when each of its sockets was made and went, also those that were closed."""
    made: defaultdict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    touched = np.zeros(len(session.open_files) + 1, np.bool_)
    touched[session.event_open_file[_USES[session.event_call]]] = True
    for file in session.open_files:
        if file.witnessed and file.kind is FileKind.SOCKET and not file.listening:
            origin = _origin(session, file, touched=bool(touched[file.id]))
            if origin is not None:
                closed = session.descriptors[file.descriptors[0]].ended in DELIBERATE
                gone_ns = file.released_ns if closed and file.released_ns is not None else _NEVER_NS
                made[origin.tgid, origin.words].append((file.created_ns, gone_ns))
    return made


def _growth(
    session: Session,
    holdings: Holdings,
    origin: _Origin,
    files: list[OpenFile],
    last_use: npt.NDArray[np.int64],
    made: dict[tuple[int, str], list[tuple[int, int]]],
) -> _Growth | None:
    """The group, if it grows to the end of the process's work and nobody has a use for its sockets."""
    files.sort(key=lambda file: file.created_ns)
    numbers = np.array([file.id for file in files], np.int64)
    created = np.array([file.created_ns for file in files], np.int64)
    process = session.processes.get(origin.tgid)
    end = session.info.ended_ns if process is None or process.exited_ns is None else process.exited_ns
    idle = end - np.maximum(last_use[numbers], created) >= GRACE_NS
    if int(idle.sum()) * 2 < _LEAST or _comes_back(session, numbers) or _is_watched(session, holdings, files):
        return None
    lives = np.array(made[origin.tgid, origin.words], np.int64)
    began, until = int(lives[:, 0].min()), max(_works_until(session, origin.tgid, numbers, end), int(created[-1]))
    if until - began < _LEAST_SPAN_NS:
        return None
    thirds = [began - 1, *(began + (until - began) * part // 3 for part in (1, 2, 3))]
    live = [int(((lives[:, 0] <= at) & (lives[:, 1] > at)).sum()) for at in thirds]
    if np.diff(live).min() < max(_LEAST_A_THIRD, _SHARE_A_THIRD * len(files)):
        return None
    return _Growth(
        origin=origin,
        files=tuple(files),
        unused=tuple(file for file, rests in zip(files, idle.tolist(), strict=True) if rests),
        made_count=len(lives),
        began_ns=began,
        until_ns=until,
    )


def _works_until(session: Session, tgid: int, numbers: Ids, end_ns: int) -> int:
    """The last time the process accepted or moved bytes elsewhere: after that, no growth is to be expected."""
    events = session.events_of_tgid(tgid)
    records = session.events.records
    calls, returned = records["call"][events], records["ret"][events]
    works = (_MOVES[calls] & (returned > 0)) | (_ACCEPTS[calls] & (returned >= 0))
    works &= session.event_open_file[events] >= 0
    events = events[works]
    events = events[~np.isin(session.event_open_file[events], numbers)]
    return int(session.effective_ns[events].max()) if len(events) else end_ns


def _comes_back(session: Session, numbers: Ids) -> bool:
    """Whether sockets of the group are used again after a rest, as those of a pool are."""
    member = np.zeros(len(session.open_files) + 1, np.bool_)
    member[numbers] = True
    rows = np.flatnonzero(member[session.event_open_file] & _MOVES[session.event_call])
    files, when = session.event_open_file[rows], session.effective_ns[rows]
    order = np.lexsort((when, files))
    files, when = files[order], when[order]
    again = (files[1:] == files[:-1]) & (when[1:] - when[:-1] >= _AT_REST_NS)
    return len(np.unique(files[1:][again])) > _REUSED_SHARE * len(numbers)


def _is_watched(session: Session, holdings: Holdings, files: list[OpenFile]) -> bool:
    """Whether the process waits for them, judged by some that are spread over the group."""
    some = files[:: max(1, len(files) // _LOOKED_AT)]
    watched = sum(any(holdings.watches(copy) for copy in holdings.copies(file.id)) for file in some)
    return watched > _REUSED_SHARE * len(some)


def _limit(session: Session, tgid: int) -> int:
    """Its soft RLIMIT_NOFILE as sampled last; 0 where it is not known or is none."""
    rows = session.facts.processes
    rows = rows[rows["tgid"] == tgid]
    limit = int(rows["nofile"][-1]) if len(rows) else 0
    return limit if limit < _UNLIMITED else 0


def _exhausted(session: Session, tgid: int) -> bool:
    events = session.events_of_tgid(tgid)
    return bool((session.events.records["ret"][events] == _EMFILE).any())


def _finding(session: Session, growths: list[_Growth], last_use: npt.NDArray[np.int64]) -> Finding:
    growths.sort(key=lambda growth: -len(growth.files))
    worst = growths[0]
    tgid, origin, count = worst.origin.tgid, worst.origin, len(worst.files)
    fd = session.descriptors[worst.files[0].descriptors[0]].fd
    grew = worst.until_ns - worst.began_ns
    closed = worst.made_count - count
    table = session.descriptors[worst.files[0].descriptors[0]].table
    held = sum(one.table == table and one.closed_ns is None for one in session.descriptors)
    held = max(held, count)
    told = (
        f"{who(session, tgid)} made {worst.made_count} {origin.words} since {since_start(session, worst.began_ns)} and "
        f"closed {closed or 'none'} of them: {count} are open, {worst.per_second:.1f} more a second for {span(grew)}. "
        f"{len(worst.unused)} have been unused for a second or longer, and nothing waits for them."
    )
    limit, exhausted = _limit(session, tgid), _exhausted(session, tgid)
    left_ns = int(max(0, limit - held) / worst.per_second * NS_PER_S) if limit else None
    if exhausted:
        told += f" The limit ({limit or 'RLIMIT_NOFILE'} descriptors) is reached: calls fail with EMFILE."
    elif left_ns is not None:
        told += f" It has {held} of {limit} descriptors open: at this pace the limit is reached in {_long(left_ns)}."
    else:
        told += f" It has {held} descriptors open; its limit is not known."
    if len(growths) > 1:
        told += f" {plural(len(growths) - 1, 'other process', 'other processes')} of the same program likewise."
    severe = exhausted or (left_ns is not None and left_ns < _SOON_NS)
    every = [file for growth in growths for file in growth.files]
    connections = tuple(file.connection for file in every if file.connection >= 0)
    where = "when its answer has been read, on every path" if origin.touched else "where it is no longer wanted"
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR if severe else Severity.WARNING,
        confidence=Confidence.LIKELY if origin.touched else Confidence.CERTAIN,
        title=f"{len(every)} {origin.words}: never closed, {worst.per_second:.1f} more a second",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=connections,
        count=len(every),
        worst=connections[0] if connections else None,
        explanation=told,
        remedy=(
            f"Close each socket {where} (with, finally, a destructor; here fd {fd} for one)"
            f"{', or keep it and use it again for the next request' if origin.touched else ''}."
        ),
        evidence=kept(_evidence(session, worst, last_use, held, limit)),
    )


def _long(duration_ns: int) -> str:
    hours = duration_ns / NS_PER_S / 3600
    return span(duration_ns) if hours < 2 else f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def _evidence(
    session: Session, growth: _Growth, last_use: npt.NDArray[np.int64], held: int, limit: int
) -> Iterator[Evidence]:
    oldest, newest = growth.files[0], growth.files[-1]
    yield from_event(session, oldest.created_event, "the first that stays open")
    events = session.events_of_open_file(oldest.id)
    uses = events[_USES[session.events.records["call"][events]]]
    if len(uses):
        note = f"its last use, {span(growth.until_ns - int(last_use[oldest.id]))} before the last one was made"
        yield from_event(session, int(uses[-1]), note)
    middle = growth.files[len(growth.files) // 2]
    yield from_event(session, middle.created_event, f"number {len(growth.files) // 2 + 1}")
    yield from_event(session, newest.created_event, f"number {len(growth.files)}")
    text = f"{who(session, growth.origin.tgid)}: {plural(held, 'descriptor')} open{f' of {limit}' if limit else ''}"
    yield from_proc(session.info.ended_ns, text)
