"""Makes a report of a joined session: judge, sum up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from sockscope.analysis.collection import no_collection
from sockscope.analysis.exchanges.latency import server_latencies
from sockscope.analysis.joining.unix_ends import UnixEnds
from sockscope.analysis.narration.architecture import architecture
from sockscope.analysis.narration.idle import idle_words
from sockscope.analysis.narration.kernel_story import coverage
from sockscope.analysis.narration.summary import summarise_all
from sockscope.analysis.narration.wire_words import wire_words_all
from sockscope.analysis.session import Ids, Session
from sockscope.analysis.stops.stops import stops
from sockscope.findings.run import run_rules
from sockscope.model.columns import group_pieces, rows_of
from sockscope.model.events import EventFlag, Unassigned
from sockscope.model.findings import Finding
from sockscope.model.kernel import KernelCoverage
from sockscope.model.report import ConnectionRow, Report
from sockscope.pipeline.guard import Guard, GuardedParts


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChoice:
    """`--select` and `--ignore`; empty select: all."""

    select: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()


def make_report(session: Session, choice: RuleChoice | None = None) -> Report:
    """Judge a session and sum it up.

    A bug in what sums it up leaves that part of the report empty, with a note.

    Raises:
        UsageError: a chosen rule does not exist.
    """
    with no_collection():
        return _report(session, choice or RuleChoice())


def _report(session: Session, choice: RuleChoice) -> Report:
    findings, skipped, rules = run_rules(session, select=choice.select or None, ignore=choice.ignore or None)
    guard, told = Guard(), GuardedParts(session)
    report = Report(
        info=session.info,
        processes=tuple(session.processes[tgid] for tgid in sorted(session.processes)),
        connections=_rows(session, findings, guard),
        findings=tuple(findings),
        skipped=tuple(skipped),
        rules=tuple(rules),
        timeline_tables=told.timeline_tables,
        unassigned=_unassigned(session),
        idle_words=guard.part("what is done at rest", lambda: idle_words(session), ()),
        architecture=guard.part("the architecture", lambda: architecture(session), ()),
        stories=told.story,
        latency=guard.part("the latencies", lambda: server_latencies(session), ()),
        stops=guard.part("the stops", lambda: stops(session), ()),
        kernel=guard.part("what the kernel told", lambda: coverage(session), KernelCoverage()),
        kernel_stories=told.kernel_story,
        wire_facts=told.wire,
    )
    if not guard.notes:
        return report
    return replace(report, info=replace(report.info, notes=(*report.info.notes, *guard.notes)))


def _rows(session: Session, findings: Sequence[Finding], guard: Guard) -> tuple[ConnectionRow, ...]:
    found: dict[int, list[int]] = {}
    for index, finding in enumerate(findings):
        for connection in finding.connections:
            found.setdefault(connection, []).append(index)
    events, bounds = session.events_of_all()
    ringed = rows_of(events, lambda rows: session.events.records["flags"][rows] & EventFlag.URING != 0)
    uring_counts = np.diff(np.searchsorted(ringed, bounds)).tolist()
    packet_counts = np.diff(session.packets_of_flows()[1]).tolist()
    nothing = [""] * len(session.connections)
    summaries = guard.part("the summaries", lambda: summarise_all(session), nothing)
    far = guard.part("the other ends of unix connections", lambda: _far_ends(session), nothing)
    wire = guard.part("what the wire tells", lambda: wire_words_all(session), nothing)
    nobody: tuple[int, ...] = ()
    return tuple(
        ConnectionRow(
            connection=each,
            processes=processes,
            event_count=event_count,
            packet_count=packet_counts[each.flow] if each.flow >= 0 else 0,
            finding_indexes=tuple(found[each.id]) if each.id in found else nobody,
            summary=summary,
            far=end,
            uring_count=uring_count,
            wire=told,
        )
        for each, processes, event_count, uring_count, summary, end, told in zip(
            session.connections,
            _processes(session),
            np.diff(bounds).tolist(),
            uring_counts,
            summaries,
            far,
            wire,
            strict=True,
        )
    )


def _far_ends(session: Session) -> list[str]:
    ends = UnixEnds(session)
    return [ends.words(each) for each in session.connections]


def _processes(session: Session) -> list[tuple[int, ...]]:
    """Of each connection the processes that touched it, in order, each once."""
    events, bounds = session.events_of_all()
    return [
        processes
        for first, stop in group_pieces(bounds)
        for processes in _processes_of(
            session, events[bounds[first] : bounds[stop]], bounds[first : stop + 1] - bounds[first]
        )
    ]


def _processes_of(session: Session, events: Ids, bounds: Ids) -> list[tuple[int, ...]]:
    """The same of some connections: `bounds`, shape (connections + 1,), is where the events of each begin."""
    count = len(bounds) - 1
    connection = np.repeat(np.arange(count), np.diff(bounds))
    both = (connection << 32) | session.events.records["tgid"][events].astype(np.int64) & 0xFFFFFFFF
    # Most events follow one of the same process: sorting is for the others.
    changes = both[np.append(True, both[1:] != both[:-1])] if len(both) else both
    _, firsts = np.unique(changes, return_index=True)
    distinct = changes[np.sort(firsts)]
    tgids = (distinct & 0xFFFFFFFF).astype(np.uint32).view(np.int32).tolist()
    ends = np.searchsorted(distinct >> 32, np.arange(count + 1)).tolist()
    return [tuple(tgids[low:high]) for low, high in pairwise(ends)]


def _unassigned(session: Session) -> dict[str, int]:
    reasons, counts = np.unique(session.event_reason, return_counts=True)
    return {
        Unassigned(reason).name.lower().replace("_", " "): count
        for reason, count in zip(reasons.tolist(), counts.tolist(), strict=True)
        if reason not in (Unassigned.ASSIGNED, Unassigned.KERNEL_EVENT, Unassigned.SEEDED)
    }
