"""accept or socket fails because there are no descriptors left.

What it reports:
    Calls that make sockets and failed with EMFILE (the process's limit) or ENFILE (the system's): how
    often, with how many descriptors open, of which kind, and how many of the connections were idle.

Why it matters:
    Clients are connected by the kernel but never served: they wait in the accept queue. A
    level-triggered event loop that only logs the error is woken for the same connection at once, and
    spins. The same process cannot open files either.

Evidence:
    The first and the last failed call, what the descriptors are, the connections left in the queue.

Example:
    `accept4(3, …) = -1 EMFILE (Too many open files)`, 41 times, with 1024 descriptors open, 1009 of
    them connections of which 990 did nothing for a second.

Mend:
    Raise RLIMIT_NOFILE (LimitNOFILE= of the unit) where the load is real; give idle connections a
    time limit; limit the number of connections. Keep one descriptor in reserve: on EMFILE close it, accept,
    close the connection, take it again.

False positives:
    A server that recovers (the reserve descriptor, as libuv does; or a short peak after which accept
    works again within a second) is reported as info: it did what can be done. Where most of the descriptors are
    connections that leak (close-wait-leak, fd-leak), or sockets that are none, it is told as a consequence of that;
    a leak that holds a few of many is not why they ran out, and both are told.

References:
    accept(2) EMFILE, ENFILE; getrlimit(2) RLIMIT_NOFILE; libuv src/unix/stream.c uv__emfile_trick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS, queues
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    from_proc,
    from_socket,
    kept,
    listed,
    plural,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.exhaustion import EMFILE, ENFILE, MAKERS, exhausted
from sockscope.model.descriptors import Descriptor
from sockscope.model.findings import Confidence, Finding, Rule, Severity, Skip
from sockscope.model.seed import FileKind

_LEAKS = frozenset({"fd-leak", "close-wait-leak"})
RULE = Rule(
    slug="descriptor-exhaustion",
    severity=Severity.ERROR,
    summary="accept or socket fails: no descriptors left (EMFILE, ENFILE)",
    yields_to=_LEAKS,
    follows=_LEAKS,
    bears_loss=True,
)

_EAGAIN = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runs:
    """The failures of one process.

    Attributes:
        longest_ns: the longest time in which no such call worked.
        ended: the last call of each kind worked again.
    """

    failed: Ids
    longest_ns: int
    ended: bool

    @property
    def recovered(self) -> bool:
        return self.ended and self.longest_ns < GRACE_NS


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a process."""
    records = session.events.records
    for tgid in np.unique(records["tgid"][exhausted(session)]).tolist():
        events = session.events_of_tgid(tgid)
        yield _finding(session, tgid, _runs(session, events[np.isin(records["call"][events], MAKERS)]), explained)


def _runs(session: Session, calls: Ids) -> _Runs:
    """Follow the calls one after the other, those on each listener and those without one apart."""
    records = session.events.records
    failing_since: dict[int, int] = {}
    longest = 0
    failed = []
    columns = records["ret"][calls], session.event_open_file[calls], session.effective_ns[calls]
    for event, ret, key, now in zip(calls.tolist(), *(column.tolist() for column in columns), strict=True):
        if ret in (-EMFILE, -ENFILE):
            failed.append(event)
            failing_since.setdefault(key, now)
            longest = max(longest, now - failing_since[key])
        elif ret >= 0 or ret == -_EAGAIN:
            began = failing_since.pop(key, now)
            longest = max(longest, now - began)
    return _Runs(failed=np.array(failed, np.int64), longest_ns=longest, ended=not failing_since)


def _open_at(session: Session, tgid: int, when_ns: int) -> list[Descriptor]:
    tables = {table.id for table in session.tables if tgid in table.tgids}
    return [
        d
        for d in session.descriptors
        if d.table in tables and d.opened_ns <= when_ns and (d.closed_ns is None or d.closed_ns > when_ns)
    ]


def _idle(session: Session, held: list[Descriptor]) -> tuple[int, int]:
    """(connections, those that did nothing in the last second) among the descriptors."""
    total = idle = 0
    for number in {session.open_files[d.open_file].connection for d in held} - {-1}:
        total += 1
        events = session.events_of(number)
        idle += not len(events) or int(session.effective_ns[events[-1]]) < session.info.ended_ns - GRACE_NS
    return total, idle


def _mostly_leaked(session: Session, held: list[Descriptor], explained: frozenset[int]) -> bool:
    """Whether the greater part is what a leak explains; a socket without a connection is good for nothing else."""
    files = [session.open_files[one.open_file] for one in held]
    useless = sum(file.kind is FileKind.SOCKET and file.connection < 0 and not file.listening for file in files)
    return 2 * (useless + sum(file.connection in explained for file in files)) > len(files)


def _finding(session: Session, tgid: int, runs: _Runs, explained: frozenset[int]) -> Finding:
    records = session.events.records
    first, last = int(runs.failed[0]), int(runs.failed[-1])
    first_ns = int(session.effective_ns[first])
    system = int(records["ret"][first]) == -ENFILE
    held = _open_at(session, tgid, first_ns)
    kinds = Counter(session.open_files[d.open_file].kind for d in held)
    connections, idle = _idle(session, held)
    names = sorted({session.events.call(int(event)).name for event in runs.failed.tolist()})
    tried = set(np.unique(session.event_open_file[runs.failed]).tolist())
    waiting = [
        one for queue in queues(session) if any(file.id in tried for file in queue.listeners) for one in queue.waiting
    ]
    recovered = runs.recovered and not waiting
    what = listed(f"{number} {_kind(kind, number)}" for kind, number in kinds.most_common())
    own = _limit(session, tgid)
    limit = "the system has no file handles left (fs.file-max)"
    if not system:
        limit = f"its limit{f' of {own}' if own else ''} (RLIMIT_NOFILE) is reached"
    left = f" {plural(len(waiting), 'connection')} still wait in the accept queue." if waiting else ""
    how_ended = (
        f"It recovered each time, within {span(runs.longest_ns)}."
        if recovered
        else f"For {span(runs.longest_ns)} no such call worked{'' if runs.ended else ', to the end of the session'}."
    )
    fd = int(records["args"][first][0]) if session.events.call(first) in ACCEPTS else None
    count = len(runs.failed)
    error = "ENFILE" if system else "EMFILE"
    return Finding(
        rule=RULE.slug,
        severity=Severity.INFO if recovered else Severity.ERROR,
        confidence=Confidence.CERTAIN,
        title=f"{' and '.join(names)} failed with {error} {'once' if count == 1 else f'{count} times'}"
        f"{': recovered' if recovered else ''}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(one.connection.id for one in waiting),
        count=count,
        worst=waiting[0].connection.id if waiting else None,
        explanation=(
            f"{who(session, tgid)} has {plural(len(held), 'descriptor')} open ({what}) and {limit}. "
            f"{plural(count, 'call')} failed, the first at {since_start(session, first_ns)}. {how_ended}{left} "
            f"{idle} of its {plural(connections, 'connection')} did nothing in the last second."
        ),
        remedy=(
            f"Give idle connections a time limit ({idle} now){'' if system else ', raise LimitNOFILE= or ulimit -n'}; "
            "and keep a descriptor in reserve, so that a client that cannot be served is accepted and closed."
        ),
        evidence=kept(
            [
                from_event(session, first, "the first that failed"),
                from_event(session, last, f"the last of {count}"),
                from_proc(first_ns, f"{who(session, tgid)}: {plural(len(held), 'descriptor')} open: {what}"),
                *(from_socket(session, int(one.rows[-1]), "not accepted") for one in waiting[:1]),
            ]
        ),
        own_cause=not _mostly_leaked(session, held, explained),
    )


def _limit(session: Session, tgid: int) -> int:
    """Its soft RLIMIT_NOFILE as sampled last; 0 where it is not known."""
    rows = session.facts.processes
    rows = rows[rows["tgid"] == tgid]
    return int(rows["nofile"][-1]) if len(rows) else 0


def _kind(kind: FileKind, count: int) -> str:
    name = kind.name.lower().replace("_", " ")
    return {FileKind.SOCKET: "socket", FileKind.OTHER: "other file"}.get(kind, name) + ("" if count == 1 else "s")
