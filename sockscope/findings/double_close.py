"""A descriptor is closed twice.

What it reports:
    A close that failed with EBADF on a number whose socket the same process had closed before; or, worse,
    a second close that hit another connection, which had been given the number in the meantime.

Why it matters:
    Numbers are reused at once. In a server with threads the second close sooner or later hits a
    connection that was accepted in between: its client is cut off in the middle, its handler
    fails with EBADF, or writes into a third client's connection.

Evidence:
    Both closes, with their threads; where another connection was hit also the accept that reused the
    number, and the call of its handler that then failed with EBADF.

Example:
    `close(7) = 0`, then `accept4(3) = 7` in another thread, then `close(7) = 0` by the first thread again,
    then `write(7, …) = -1 EBADF` by the handler of the new connection.

Mend:
    Close in one place, by the owner; forget the number when it is closed (fd = -1, a descriptor class, a
    `with` block). Never go on after EBADF from close: it says that a descriptor is not the program's.

False positives:
    Sweeps over many consecutive numbers (before exec) are not reported. A thread that closes what others
    have opened is reported only where a handler of that connection then ran into EBADF.

References:
    close(2) "EBADF" and the notes on multithreaded processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import from_event, kept, plural, program, since_start, span, who
from sockscope.findings.shared.generations import (
    Generations,
    connection_of,
    failed_with_ebadf,
    fd_of,
    in_a_sweep,
)
from sockscope.findings.shared.holding import USES, uses_of
from sockscope.model.calls import USUAL_GROUPS, Call, CallGroup
from sockscope.model.descriptors import Descriptor
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="double-close",
    severity=Severity.WARNING,
    summary="a descriptor is closed twice; the second close can hit another connection",
    groups=USUAL_GROUPS | {CallGroup.TASKS, CallGroup.MEMORY},
    times=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Twice:
    """One number closed twice.

    Attributes:
        first: what the closing thread meant.
        victim: what its second close hit; None where that failed with EBADF.
        second_close: the event of the second close.
        proof: the handler's call that failed because of it; -1 where there is no victim.
    """

    first: Descriptor
    victim: Descriptor | None
    second_close: int
    proof: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program; the cases that hit another connection come first."""
    if not len(failed_with_ebadf(session, {*USES, Call.close})):
        return
    generations = Generations.of(session)
    hits = _victims(session, generations)
    victims = {case.victim.id for case in hits if case.victim is not None}
    groups: defaultdict[str, list[_Twice]] = defaultdict(list)
    for case in (*hits, *_in_vain(session, generations, victims)):
        groups[program(session, int(session.events.records["tgid"][case.second_close]))].append(case)
    for cases in groups.values():
        yield _finding(session, cases)


def _victims(session: Session, generations: Generations) -> list[_Twice]:
    """Connections that were closed by a thread which had none of its business with them.

    Found from their handlers' EBADF: the closer never used the victim, did not open it, and had itself
    closed what the number stood for before.
    """
    found: dict[int, _Twice] = {}
    for event in map(int, failed_with_ebadf(session, {*USES, Call.close})):
        victim = generations.closed_before(session, event)
        if victim is None or victim.id in found or victim.closed_event < 0:
            continue
        first = generations.before(victim)
        if first is None or first.closed_event < 0:
            continue
        closer = _tid(session, victim.closed_event)
        strangers = {_tid(session, int(use)) for use in uses_of(session, session.events_of_descriptor(victim.id))}
        opener = _tid(session, victim.opened_event) if victim.opened_event >= 0 else -1
        if (
            closer == _tid(session, first.closed_event)
            and closer not in {*strangers, opener}
            and _tid(session, event) != closer
            and not in_a_sweep(session, victim.closed_event)
        ):
            found[victim.id] = _Twice(first=first, victim=victim, second_close=victim.closed_event, proof=event)
    return list(found.values())


def _in_vain(session: Session, generations: Generations, victims: set[int]) -> Iterator[_Twice]:
    """Second closes that found nothing to close: one a descriptor."""
    seen: set[int] = set()
    for event in map(int, failed_with_ebadf(session, {Call.close})):
        first = generations.closed_before(session, event)
        if first is None or first.id in victims or first.id in seen or in_a_sweep(session, event):
            continue
        if first.closed_event >= 0 and in_a_sweep(session, first.closed_event):
            continue
        seen.add(first.id)
        yield _Twice(first=first, victim=None, second_close=event, proof=-1)


def _tid(session: Session, event: int) -> int:
    return int(session.events.records["tid"][event])


def _finding(session: Session, cases: list[_Twice]) -> Finding:
    worst = cases[0]
    event, count, hits = worst.second_close, len(cases), sum(case.victim is not None for case in cases)
    row = session.events.records[event]
    tgid, fd = int(row["tgid"]), fd_of(session, event)
    thread = who(session, tgid, int(row["tid"]))
    first_ns = worst.first.closed_ns or 0
    between = span(int(session.effective_ns[event]) - first_ns)
    same_thread = worst.first.closed_event >= 0 and _tid(session, worst.first.closed_event) == int(row["tid"])
    closer = "the same thread" if same_thread else thread
    told = f"fd {fd} was closed at {since_start(session, first_ns)}, and again {between} later by {closer}"
    if worst.victim is not None:
        opened = since_start(session, worst.victim.opened_ns)
        told += (
            f". By then the number belonged to another connection, opened at {opened}: that one was closed, and "
            f"{who(session, tgid, _tid(session, worst.proof))}, which served it, ran into EBADF"
        )
        severity, confidence = Severity.ERROR, Confidence.CERTAIN
        title = f"double close: {plural(hits, 'other connection')} closed by mistake"
        told += f". So it went for {plural(hits, 'connection')}." if hits > 1 else "."
        in_vain = count - hits
        if in_vain:
            told += f" Closed twice in vain (EBADF): {plural(in_vain, 'more descriptor')}."
    else:
        told += (
            f": EBADF. {plural(count, 'descriptor')} {'was' if count == 1 else 'were'} closed twice like this. Had the "
            "number been reused in between, the second close would have hit another connection."
        )
        severity = Severity.WARNING
        confidence = Confidence.CERTAIN if same_thread else Confidence.LIKELY
        title = f"{plural(count, 'descriptor')} closed twice (EBADF)"
    hit = [case.victim if case.victim is not None else case.first for case in cases]
    connections = tuple(dict.fromkeys(c for c in (connection_of(session, one) for one in hit) if c >= 0))
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=confidence,
        title=title,
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=connections,
        count=count,
        worst=connections[0] if connections else None,
        explanation=told,
        remedy=(
            f"Let one owner close fd {fd}, once, and forget the number at that moment (fd = -1); do not ignore EBADF "
            "from close: it means the number is not yours."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, case: _Twice) -> Iterator[Evidence]:
    yield from_event(session, case.second_close, "the second close")
    if case.first.closed_event >= 0:
        yield from_event(session, case.first.closed_event, "the first close")
    if case.victim is not None and case.victim.opened_event >= 0:
        yield from_event(session, case.victim.opened_event, "the number now stands for another connection")
    if case.proof >= 0:
        yield from_event(session, case.proof, "its handler, afterwards")
