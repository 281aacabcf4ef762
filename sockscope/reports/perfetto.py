"""A trace for the Perfetto UI (ui.perfetto.dev): the syscalls of every thread, the connections, packets and findings.

What lies where:

- *Findings*: an instant each, at the time of its primary evidence, with explanation and remedy; the same instant on the
  thread (or process) whose call is that evidence.
- *Connections*: every connection's life on shared tracks; for those that findings name (then the first ones, 200 in
  all) a track of the kernel's states with the packets below. *Packets* has all other packets.
- a track a process, below it a track a thread, a slice a syscall. What overlaps (io_uring) has tracks of its own, and
  so have the requests that the process answered.
- flows: one a connection, through its life, its syscalls in all processes, and the packets that carry something.
- *open connections*: a counter.

The format is TrackEvent protobuf with interned strings, on CLOCK_MONOTONIC. It is written by own code, in columns: a
million syscalls with all that is told of them take as long as a million bare slices by the `perfetto` package, which
makes an object a packet and would bring protobuf to every user. Chrome's JSON, the other format that the UI reads, has
floating-point microseconds and no groups of tracks. The tests read what is written with the official schema, and load
it into Perfetto's own trace processor (benchmarks/exports.py measures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sockscope.model.findings import Finding, Source
from sockscope.model.kernel import KERNEL_REF
from sockscope.model.report import Report
from sockscope.model.tables import SessionTables
from sockscope.reports.escape import safe
from sockscope.reports.export_file import Progress, no_progress, private_file
from sockscope.reports.format import process_name
from sockscope.reports.perfetto_calls import CallRows, Calls, lay_out
from sockscope.reports.perfetto_connections import Connections, PacketRows, title
from sockscope.reports.perfetto_names import Names, Tracks
from sockscope.reports.perfetto_requests import request_rows
from sockscope.reports.perfetto_wire import INSTANT, Rows, encode, nested, note, number, track_event

MOST_FINDINGS = 1000

_REALTIME, _MONOTONIC = 1, 3
"""BuiltinClock."""
_STATE_CLEARED = 1
"""SEQ_INCREMENTAL_STATE_CLEARED."""
_AT_ONCE = 1 << 15


def write_perfetto(report: Report, tables: SessionTables, path: Path, *, progress: Progress | None = None) -> None:
    """Write the session as a trace.

    Args:
        path: made with mode 0600, or overwritten.
        progress: told after every few thousand calls and packets.

    Raises:
        UsageError: the file cannot be written.
    """
    told = progress or no_progress
    tracks, names = Tracks(), Names()
    findings_track = tracks.plain("Findings", about="what is wrong, when it showed") if report.findings else 0
    connections = Connections(report, tables, tracks)
    calls = lay_out(report, tables, tracks)
    strings = np.array([*(names.strings.id(title(row)) for row in report.connections), 0], np.int64)
    call_rows = CallRows(report, tables, calls, names, strings)
    packet_rows = PacketRows(tables, names, connections.packets_track(), strings)
    requests = request_rows(tables, calls.process_tracks, tracks, names, strings)
    with private_file(path) as file:
        file.write(_opening(report))
        for part in (names.packets(), tracks.packets()):
            file.writelines(part)
        file.writelines(_findings(report, tables, calls, findings_track))
        file.writelines(connections.lives())
        file.writelines(connections.states())
        file.write(connections.open_count())
        file.writelines(_chunks(requests.part, len(requests.track), "requests", told))
        file.writelines(_chunks(call_rows.rows, len(calls.rows), "syscalls", told))
        file.writelines(_chunks(packet_rows.rows, len(tables.packets), "packets", told))


def _chunks(rows: Callable[[int, int], Rows], total: int, what: str, told: Progress) -> Iterator[bytes]:
    for begin in range(0, total, _AT_ONCE):
        end = min(begin + _AT_ONCE, total)
        yield encode(rows(begin, end))
        told(what, end, total)


def _opening(report: Report) -> bytes:
    """The clocks, and the packet that begins the sequence: all its times are CLOCK_MONOTONIC."""
    monotonic, realtime = (report.info.clock_samples or ((report.info.started_ns, report.info.started_realtime_ns),))[0]
    clocks = b"".join(
        nested(1, number(1, clock) + number(2, max(when, 0)))
        for clock, when in ((_MONOTONIC, monotonic), (_REALTIME, realtime))
    )
    snapshot = nested(6, clocks + number(2, _MONOTONIC))
    defaults = nested(59, number(58, _MONOTONIC))
    first = number(10, 1) + number(13, _STATE_CLEARED) + number(87, 1) + defaults
    return nested(1, number(10, 1) + snapshot) + nested(1, first)


def _findings(report: Report, tables: SessionTables, calls: Calls, track: int) -> Iterator[bytes]:
    for finding in report.findings[:MOST_FINDINGS]:
        when = _when(finding, report)
        name = safe(f"{finding.rule}: {finding.title}")
        notes = _about(finding)
        flow = finding.worst + 1 if finding.worst is not None else 0
        for place in (track, _place(finding, tables, calls)):
            if place:
                yield track_event(INSTANT, place, when, name=name, notes=notes, flow=flow if place != track else 0)


def _when(finding: Finding, report: Report) -> int:
    """The time of its primary evidence; where there is none, the end of the watching."""
    when = finding.evidence[0].time_ns if finding.evidence else report.info.ended_ns
    return when if when > 0 else report.info.ended_ns


def _place(finding: Finding, tables: SessionTables, calls: Calls) -> int:
    """The thread whose call is the primary evidence, else the process."""
    if finding.evidence:
        first = finding.evidence[0]
        if first.source is Source.SYSCALL and 0 <= first.ref < min(len(tables.events), KERNEL_REF):
            track = calls.track_of(first.ref)
            if track:
                return track
    return calls.process_tracks.get(finding.tgid, 0)


def _about(finding: Finding) -> bytes:
    said: Sequence[tuple[str, str | int]] = (
        ("severity", finding.severity.label),
        ("confidence", str(finding.confidence)),
        ("process", process_name(finding.comm, finding.tgid)),
        ("explanation", finding.explanation),
        ("remedy", finding.remedy),
        ("connections", len(finding.connections)),
        *((f"evidence {index}", evidence.text) for index, evidence in enumerate(finding.evidence[:9], start=1)),
    )
    notes = b"".join(note(name, safe(value) if isinstance(value, str) else value) for name, value in said)
    return notes if finding.fd is None else notes + note("fd", finding.fd)
