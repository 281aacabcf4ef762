"""Makes a report of what was recorded: read, join, judge, sum up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from sockscope.analysis.build import build_session
from sockscope.analysis.exchanges.latency import server_latencies
from sockscope.analysis.joining.unix_ends import UnixEnds
from sockscope.analysis.narration.architecture import architecture
from sockscope.analysis.narration.idle import idle_words
from sockscope.analysis.narration.kernel_story import coverage
from sockscope.analysis.narration.summary import summarise_all
from sockscope.analysis.session import Session
from sockscope.analysis.stops.stops import stops
from sockscope.errors import UsageError
from sockscope.findings.run import run_rules
from sockscope.model.events import EventFlag, Events, Unassigned
from sockscope.model.findings import Finding
from sockscope.model.info import PacketCoverage, SessionInfo, Target
from sockscope.model.kernel import KernelCoverage
from sockscope.model.packets import Packets
from sockscope.model.report import ConnectionRow, Report
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets
from sockscope.pipeline.guard import Guard, GuardedParts
from sockscope.recording.reader import read_recording
from sockscope.sources.packets.files import read_packets


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChoice:
    """`--select` and `--ignore`; empty select: all."""

    select: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()


def load_session(
    recording: Path | None = None, pcap: Path | None = None, ports: Sequence[int] = (), info: SessionInfo | None = None
) -> Session:
    """Join a recording, a capture file, or both.

    Args:
        recording: a folder made by `record`.
        pcap: a capture to use in place of the recording's own.
        ports: server ports, where only a capture is given and they cannot be told from it.
        info: what `record` said of the session; it knows more than a full disk could hold.

    Raises:
        DamagedInputError: a file cannot be read at all.
        UsageError: nothing was given.
    """
    if recording is None:
        if pcap is None:
            raise UsageError("nothing to analyze", help_text="name a recording folder, or --pcap FILE")
        return _session_of_capture(pcap, ports)
    data = read_recording(recording)
    known = info or data.info
    notes = [*known.notes, *data.damage]
    packets = Packets.empty()
    coverage = known.packets
    path = pcap or data.packets_path
    if path is not None and (pcap is not None or path.stat().st_size):
        capture = read_packets(path, ports=frozenset(known.target.ports) or None)
        packets = capture.packets
        coverage = replace(coverage, available=True, seen_count=max(coverage.seen_count, len(packets)))
        if capture.damage:
            notes.append(f"{path.name}: {capture.damage}")
        notes += [f"{path.name}: {note}" for note in capture.notes]
    known = replace(known, notes=tuple(notes), packets=coverage)
    known = replace(known, notes=(*known.notes, *_io_uring_notes(known.syscalls.engine, data.events)))
    return build_session(
        info=known, seed=data.seed, events=data.events, packets=packets, sockets=data.sockets, facts=data.facts
    )


def _io_uring_notes(engine: str, events: Events) -> list[str]:
    """Who speaks through an io_uring that the engine sees into; what is not seen the rule io-uring-blind-spot says."""
    ringed = events.records["flags"] & EventFlag.URING != 0
    by_engine = f"{engine} engine" if engine else "engine"
    return [
        f"process {tgid} uses io_uring: seen through the {by_engine}"
        for tgid in np.unique(events.records["tgid"][ringed]).tolist()
    ]


def _session_of_capture(path: Path, ports: Sequence[int]) -> Session:
    capture = read_packets(path)
    times = capture.packets.records["time_ns"]
    first = int(times.min()) if len(times) else 0
    last = int(times.max()) if len(times) else 0
    info = SessionInfo(
        target=Target(ports=tuple(ports)),
        started_realtime_ns=first,
        started_ns=first,
        ended_ns=last,
        clock_samples=((first, first),),
        packets=PacketCoverage(available=True, seen_count=len(capture.packets)),
        notes=tuple(f"{path.name}: {note}" for note in (capture.damage, *capture.notes) if note),
    )
    session = build_session(
        info=info, seed=Seed.empty(), events=Events.empty(), packets=capture.packets, sockets=Sockets.empty()
    )
    if ports and len(capture.packets) and not session.connections:
        asked = " or ".join(map(str, ports))
        note = f"no connection to port {asked} in {path.name}: without --port its servers are told from the packets"
        session.info = replace(session.info, notes=(*session.info.notes, note))
    return session


def make_report(session: Session, choice: RuleChoice | None = None) -> Report:
    """Judge a session and sum it up.

    A bug in what sums it up leaves that part of the report empty, with a note.

    Raises:
        UsageError: a chosen rule does not exist.
    """
    choice = choice or RuleChoice()
    findings, skipped, rules = run_rules(session, select=choice.select or None, ignore=choice.ignore or None)
    guard, told = Guard(), GuardedParts(session)
    report = Report(
        info=session.info,
        processes=tuple(session.processes[tgid] for tgid in sorted(session.processes)),
        connections=_rows(session, findings, guard),
        findings=tuple(findings),
        skipped=tuple(skipped),
        rules=tuple(rules),
        timelines=told.timeline,
        unassigned=_unassigned(session),
        idle_words=guard.part("what is done at rest", lambda: idle_words(session), ()),
        architecture=guard.part("the architecture", lambda: architecture(session), ()),
        stories=told.story,
        latency=guard.part("the latencies", lambda: server_latencies(session), ()),
        stops=guard.part("the stops", lambda: stops(session), ()),
        kernel=guard.part("what the kernel told", lambda: coverage(session), KernelCoverage()),
        kernel_stories=told.kernel_story,
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
    ringed = session.events.records["flags"][events] & EventFlag.URING != 0
    uring_counts = np.diff(np.append(0, np.cumsum(ringed))[bounds]).tolist()
    packet_counts = np.diff(session.packets_of_flows()[1]).tolist()
    nothing = [""] * len(session.connections)
    summaries = guard.part("the summaries", lambda: summarise_all(session), nothing)
    far = guard.part("the other ends of unix connections", lambda: _far_ends(session), nothing)
    rows = []
    for each, processes, event_count, uring_count, summary, end in zip(
        session.connections,
        _processes(session),
        np.diff(bounds).tolist(),
        uring_counts,
        summaries,
        far,
        strict=True,
    ):
        rows.append(
            ConnectionRow(
                connection=each,
                processes=processes,
                event_count=event_count,
                packet_count=packet_counts[each.flow] if each.flow >= 0 else 0,
                finding_indexes=tuple(found.get(each.id, ())),
                summary=summary,
                far=end,
                uring_count=uring_count,
            )
        )
    return tuple(rows)


def _far_ends(session: Session) -> list[str]:
    ends = UnixEnds(session)
    return [ends.words(each) for each in session.connections]


def _processes(session: Session) -> list[tuple[int, ...]]:
    """Of each connection the processes that touched it, in order, each once."""
    events, bounds = session.events_of_all()
    count = len(session.connections)
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
        if reason not in (Unassigned.ASSIGNED, Unassigned.KERNEL_EVENT)
    }
