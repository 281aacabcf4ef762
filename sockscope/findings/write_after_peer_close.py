"""The program goes on writing to peers that have gone.

What it reports:
    Connections on which writes failed with EPIPE or ECONNRESET three times or more: the program does not
    take the first failure as the end.

Why it matters:
    Nothing that is written arrives, the descriptor is never freed, and every round costs a call (and
    without SIGPIPE ignored, the process).

Evidence:
    The first write that failed, the last one, their number, and the peer's FIN or RST.

Example:
    `sendto(7, "news", 4, 0) = -1 EPIPE` 45 times, every 100 ms, and never `close(7)`.

Mend:
    At the first EPIPE or ECONNRESET drop the client and close its descriptor. Watch idle clients for
    EPOLLRDHUP, to learn of their going without writing.

False positives:
    The first EPIPE or ECONNRESET is normal (the first write after the peer closed even succeeds). A
    second may come from data that was queued. Up to ten within 100 ms, after which the connection is closed, are the
    rest of an answer that was under way.

References:
    send(2) EPIPE; tcp(7); RFC 9293 section 3.5.2 (reset generation).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from sockscope.analysis.replay.control import IS_WRITE
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    NS_PER_MS,
    from_event,
    kept,
    plural,
    program,
    share,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.halves import last_sample_evidence, packet_evidence
from sockscope.findings.shared.holding import served_by
from sockscope.model.calls import CallGroup
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.tcp import TcpFlag

RULE = Rule(
    slug="write-after-peer-close",
    severity=Severity.WARNING,
    summary="writes fail with EPIPE or ECONNRESET again and again",
    yields_to=frozenset({"sigpipe-death", "connect-not-completed"}),
    groups=frozenset({CallGroup.NETWORK, CallGroup.DESCRIPTORS, CallGroup.TRANSFERS}),
    bears_loss=True,
)

_EPIPE, _ECONNRESET = -32, -104
_NORMAL_FAILURES = 2
_ONE_ANSWER, _AT_ONCE_NS = 10, 100 * NS_PER_MS


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    records = session.events.records
    failed = np.isin(records["ret"], (_EPIPE, _ECONNRESET)) & IS_WRITE[session.event_call]
    concerned = {int(number) for number in np.unique(session.event_connection[failed])} - {-1} - explained
    groups: defaultdict[str, list[tuple[int, Ids]]] = defaultdict(list)
    for connection in sorted(concerned):
        events = session.events_of(connection)
        failures = events[failed[events]]
        if len(failures) > _NORMAL_FAILURES and not _was_learned(session, connection, failures):
            groups[program(session, int(records["tgid"][failures[-1]]))].append((connection, failures))
    for name, cases in groups.items():
        yield _finding(session, cases, served_by(session, name))


def _was_learned(session: Session, connection: int, failures: Ids) -> bool:
    """A few failures of one answer, and then the close."""
    file = session.connections[connection].open_file
    released_ns = session.open_files[file].released_ns if file >= 0 else None
    first_ns = int(session.effective_ns[failures[0]])
    return len(failures) <= _ONE_ANSWER and released_ns is not None and released_ns - first_ns <= _AT_ONCE_NS


def _finding(session: Session, cases: list[tuple[int, Ids]], total: int) -> Finding:
    cases.sort(key=lambda case: -len(case[1]))
    connection, failures = cases[0]
    row = session.events.records[int(failures[0])]
    tgid, fd = int(row["tgid"]), int(row["args"][0])
    count, calls = len(cases), sum(len(events) for _, events in cases)
    first_ns, last_ns = (int(session.effective_ns[failures[at]]) for at in (0, -1))
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING,
        confidence=Confidence.CERTAIN,
        title=f"{plural(calls, 'failed write')} to {plural(count, 'peer')} that left",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(number for number, _ in cases),
        count=count,
        worst=connection,
        explanation=(
            f"On {share(count, max(total, count))} writes of {who(session, tgid)} failed with EPIPE or ECONNRESET, "
            f"{plural(calls, 'time')} in all. On fd {fd} it was told {plural(len(failures), 'time')}, first at "
            f"{since_start(session, first_ns)}, and was still writing {span(last_ns - first_ns)} later."
        ),
        remedy=(
            f"Take the first EPIPE or ECONNRESET as the end of that client: forget it and close({fd}). "
            "EPOLLRDHUP (or a read of 0) tells of it without a write."
        ),
        evidence=kept(_evidence(session, connection, failures)),
    )


def _evidence(session: Session, connection: int, failures: Ids) -> Iterator[Evidence]:
    yield from_event(session, int(failures[1]), "told again, and it goes on")
    yield from_event(session, int(failures[0]), "the first failure, which is normal")
    yield from_event(session, int(failures[-1]), f"failure number {len(failures)}")
    known = session.connections[connection]
    for flag in (TcpFlag.FIN, TcpFlag.RST):
        yield from packet_evidence(session, known, from_peer=True, flags=flag, note="the peer leaves")
    yield from last_sample_evidence(session, known)
