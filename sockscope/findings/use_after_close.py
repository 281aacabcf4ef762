"""A descriptor is used after it was closed.

What it reports:
    Reads, writes and accepts that failed with EBADF on a number whose socket the same process had closed
    before, and that it still keeps somewhere: in a list of subscribers, a timer, another thread.

Why it matters:
    EBADF is the lucky outcome. As soon as the number is reused, the same call succeeds, and one client's
    data goes to another client.

Evidence:
    The close, the calls that failed afterwards, and how many connections the number has stood for
    since.

Example:
    `close(7) = 0` at +1.2 s; `write(7, "tick\\n", 5) = -1 EBADF` at +1.3 s, and every 100 ms from there.

Mend:
    Forget the number where it is closed: take it out of every list, timer and event loop in the same
    place. Keep an object that knows it is closed rather than a bare number.

False positives:
    Asking about a number is not using it (fcntl, epoll_ctl, getsockopt), nor is shutdown while
    cleaning up. What a stranger's second close caused is a `double-close`.

References:
    close(2), notes on multithreaded processes; read(2) and write(2), EBADF.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import from_event, kept, listed, plural, program, since_start, span, who
from sockscope.findings.shared.generations import Generations, connection_of, failed_with_ebadf, fd_of
from sockscope.findings.shared.holding import USES
from sockscope.model.calls import USUAL_GROUPS, Call, CallGroup
from sockscope.model.descriptors import Descriptor
from sockscope.model.findings import Confidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="use-after-close",
    severity=Severity.WARNING,
    summary="a number is used after its socket was closed: EBADF, or another client's connection",
    yields_to=frozenset({"double-close", "ghost-epoll-event"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS, CallGroup.MEMORY},
    times=False,
)

_CALLS = (USES | {Call.accept, Call.accept4, Call.listen, Call.bind}) - {Call.shutdown}
_SHOWN = 4


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    failed = failed_with_ebadf(session, _CALLS)
    if not len(failed):
        return
    generations = Generations.of(session)
    groups: defaultdict[str, dict[int, tuple[Descriptor, list[int]]]] = defaultdict(dict)
    for event in map(int, failed):
        closed = generations.closed_before(session, event)
        if closed is None or connection_of(session, closed) in explained:
            continue
        name = program(session, int(session.events.records["tgid"][event]))
        groups[name].setdefault(closed.id, (closed, []))[1].append(event)
    for cases in groups.values():
        yield _finding(session, list(cases.values()))


def _finding(session: Session, cases: list[tuple[Descriptor, list[int]]]) -> Finding:
    cases.sort(key=lambda case: -len(case[1]))
    closed, failed = cases[0]
    row = session.events.records[failed[0]]
    tgid, fd = int(row["tgid"]), fd_of(session, failed[0])
    count, calls = len(cases), sum(len(events) for _, events in cases)
    closed_ns = closed.closed_ns or 0
    connections = tuple(dict.fromkeys(c for c in (connection_of(session, one) for one, _ in cases) if c >= 0))
    evidence = [from_event(session, failed[0], "the number is closed")]
    if closed.closed_event >= 0:
        evidence.append(from_event(session, closed.closed_event, "closed here"))
    evidence += [from_event(session, event) for event in failed[1:_SHOWN]]
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING,
        confidence=Confidence.CERTAIN,
        title=f"{plural(calls, 'call')} on {plural(count, 'closed descriptor')}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=connections,
        count=count,
        worst=connections[0] if connections else None,
        explanation=(
            f"{who(session, tgid)} closed fd {fd} at {since_start(session, closed_ns)} and went on using the number: "
            f"first {span(int(session.effective_ns[failed[0]]) - closed_ns)} later, "
            f"{plural(len(failed), 'time')} in all, each ending in EBADF. In the whole program "
            f"{plural(calls, 'call')} on {plural(count, 'closed descriptor')} "
            f"(fd {listed(dict.fromkeys(str(one.fd) for one, _ in cases))}). When a number is reused, the same call "
            "reaches another client's connection."
        ),
        remedy=(
            f"Where fd {fd} is closed, take it out of whatever still names it (lists, timers, event loops, "
            "other threads), and look at the result of the calls: EBADF is always a bug."
        ),
        evidence=kept(evidence),
    )
