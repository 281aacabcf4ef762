"""JSON, schema `sockscope/1`: a contract, only ever extended (`sockscope-1.schema.json` beside this file)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources

from sockscope.model.descriptors import Process
from sockscope.model.findings import Finding
from sockscope.model.info import SessionInfo
from sockscope.model.latency import FEWEST_FOR_PERCENTILES, PLACES, PhaseLatency, ServerLatency
from sockscope.model.report import ConnectionRow, Report
from sockscope.reports.format import state_name
from sockscope.reports.json_stops import stop_document
from sockscope.reports.json_value import Json, relative
from sockscope.reports.json_wire import wire_document

SCHEMA = "sockscope/1"
SCHEMA_FILE = "sockscope-1.schema.json"
PIECE_COUNT = 500
"""Connections a piece."""


def render_json(report: Report) -> str:
    """The report as one JSON document, pure ASCII (safe on any terminal), newline at its end.

    Times ending in `_ns` are nanoseconds since the session's start, but `duration_ns` and
    `clock_skew_ns`; a time that is not known is null.
    """
    return "".join(json_pieces(report))


def json_pieces(report: Report) -> Iterator[str]:
    """`render_json` piece by piece, for a file: of many connections the whole text would take a gigabyte.

    A connection takes one line, so that line tools can do something with it.
    """
    opening = "{\n "
    for name, value in _document(report).items():
        yield f'{opening}"{name}": '
        opening = ",\n "
        if name == "connections":
            yield from _connection_lines(report)
        else:
            # No string holds a line break: JSON escapes it.
            yield json.dumps(value, indent=1, ensure_ascii=True).replace("\n", "\n ")
    yield "\n}\n"


def _connection_lines(report: Report) -> Iterator[str]:
    """The list of all connections, some hundreds a piece."""
    if not report.connections:
        yield "[]"
        return
    opening = "[\n  "
    for low in range(0, len(report.connections), PIECE_COUNT):
        lines = [
            json.dumps(
                {
                    **_connection(row, report.info),
                    **_told(row, report),
                    "wire": wire_document(report.wire_facts(row.connection.id), row.wire),
                },
                ensure_ascii=True,
            )
            for row in report.connections[low : low + PIECE_COUNT]
        ]
        yield opening + ",\n  ".join(lines)
        opening = ",\n  "
    yield "\n ]"


def schema_text() -> str:
    """The published JSON Schema (draft 2020-12) of what `render_json` writes."""
    return resources.files("sockscope.reports").joinpath(SCHEMA_FILE).read_text("utf-8")


def _document(report: Report) -> dict[str, Json]:
    """All but the connections, which keep their place."""
    info = report.info
    return {
        "schema": SCHEMA,
        "started": datetime.fromtimestamp(info.started_realtime_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "duration_ns": max(0, info.ended_ns - info.started_ns),
        "target": {
            "command": list(info.target.command),
            "pids": list(info.target.pids),
            "ports": list(info.target.ports),
            "files": list(info.target.files),
        },
        "coverage": _coverage(report),
        "architecture": list(report.architecture),
        "processes": [_process(p, info) for p in report.processes],
        "connections": [],
        "latency": [_latency(server, info) for server in report.latency],
        "stops": [stop_document(stop, info) for stop in report.stops],
        "findings": [_finding(f, info) for f in report.findings],
        "skipped": [{"rule": s.rule, "reason": s.reason} for s in report.skipped],
    }


def _coverage(report: Report) -> Json:
    info = report.info
    return {
        "syscalls": {
            "engine": info.syscalls.engine or None,
            "events": info.syscalls.event_count,
            "lost": info.syscalls.lost_count,
        },
        "packets": {
            "available": info.packets.available,
            "seen": info.packets.seen_count,
            "lost": info.packets.lost_count,
        },
        "sockets": {"snapshots": info.sockets.snapshot_count},
        "kernel": {
            "state_changes": report.kernel.state_change_count,
            "retransmits": report.kernel.retransmit_count,
            "resets": report.kernel.reset_count,
            "unassigned": report.kernel.unassigned_count,
        },
        "clock_skew_ns": info.clock_skew_ns,
        "alignments": [
            {
                "source": one.source,
                "offset_ns": one.offset_ns,
                "uncertainty_ns": None if one.uncertainty_ns < 0 else one.uncertainty_ns,
                "basis": one.basis,
                "beside": one.beside,
            }
            for one in info.alignments
        ],
        "unassigned": dict(report.unassigned),
        "complete": info.complete,
        "notes": list(info.notes),
    }


def _process(process: Process, info: SessionInfo) -> Json:
    return {
        "tgid": process.tgid,
        "parent": process.parent if process.parent >= 0 else None,
        "comm": process.comm,
        "exe": process.exe,
        "cmdline": list(process.cmdline),
        "started_ns": relative(process.started_ns, info),
        "ended_ns": relative(process.exited_ns, info),
        "exit_status": process.exit_status,
    }


def _connection(row: ConnectionRow, info: SessionInfo) -> dict[str, Json]:
    connection = row.connection
    return {
        "id": connection.id,
        "protocol": connection.protocol.value,
        "role": connection.role.value,
        "local": None if connection.local is None else str(connection.local),
        "peer": None if connection.peer is None else str(connection.peer),
        "state": state_name(connection),
        "first_ns": connection.first_ns - info.started_ns,
        "last_ns": connection.last_ns - info.started_ns,
        "pids": list(row.processes),
        "read_bytes": connection.read_bytes,
        "written_bytes": connection.written_bytes,
        "recv_q": connection.recv_q,
        "send_q": connection.send_q,
        "never_accepted": connection.never_accepted,
        "owners": [{"tgid": tgid, "fd": fd if fd >= 0 else None} for tgid, fd in connection.owners],
        "events": row.event_count,
        "io_uring_events": row.uring_count,
        "packets": row.packet_count,
        "summary": row.summary,
        "other_end": row.far,
    }


def _latency(server: ServerLatency, info: SessionInfo) -> Json:
    slowest = server.slowest
    return {
        "local": server.local,
        "connections": server.connection_count,
        "exchanges": server.exchange_count,
        "on_wire": server.wire_count,
        "phases": [_phase(one) for one in server.phases],
        "whole": _phase(server.whole),
        "slowest": {
            "connection": slowest.connection,
            "number": slowest.number,
            "duration_ns": slowest.duration_ns,
            "tgid": slowest.tgid,
            "comm": slowest.comm,
            "request": slowest.request,
            "read_bytes": slowest.read_bytes,
            "written_bytes": slowest.written_bytes,
            "fin_ns": relative(slowest.fin_ns, info),
            "phases": [
                {
                    "phase": span.phase.value,
                    "place": PLACES[span.phase].value,
                    "start_ns": span.start_ns - info.started_ns,
                    "duration_ns": span.duration_ns,
                }
                for span in slowest.phases
            ],
        },
    }


def _phase(one: PhaseLatency) -> Json:
    """Percentiles, or where there are too few for them all durations."""
    many = one.count >= FEWEST_FOR_PERCENTILES
    return {
        "phase": one.phase.value if one.phase is not None else None,
        "place": PLACES[one.phase].value if one.phase is not None else None,
        "count": one.count,
        "p50_ns": one.p50_ns if many else None,
        "p95_ns": one.p95_ns if many else None,
        "p99_ns": one.p99_ns if many else None,
        "max_ns": one.max_ns,
        "durations_ns": None if many else list(one.each_ns),
    }


def _told(row: ConnectionRow, report: Report) -> dict[str, Json]:
    """What the kernel told of the connection; nulls where it was not heard at all."""
    if not report.kernel.count:
        return {"state_changes": None, "retransmits": None, "resets": None}
    story, began = report.kernel_stories(row.connection.id), report.info.started_ns
    return {
        "state_changes": [
            {"time_ns": change.time_ns - began, "from": change.before.name, "to": change.after.name}
            for change in story.state_changes
        ],
        "retransmits": story.retransmit_count,
        "resets": [{"time_ns": reset.time_ns - began, "sent": reset.sent} for reset in story.resets],
    }


def _finding(finding: Finding, info: SessionInfo) -> Json:
    holder = finding.holder
    return {
        "rule": finding.rule,
        "severity": finding.severity.label,
        "confidence": finding.confidence.value,
        "title": finding.title,
        "tgid": finding.tgid,
        "comm": finding.comm,
        "fd": finding.fd,
        "holder": None if holder is None else {"tgid": holder.tgid, "comm": holder.comm, "fd": holder.fd},
        "connections": list(finding.connections),
        "count": finding.count,
        "explanation": finding.explanation,
        "remedy": finding.remedy,
        "consequences": [{"rule": each.rule, "title": each.title} for each in finding.consequences],
        "evidence": [
            {"source": fact.source.value, "time_ns": fact.time_ns - info.started_ns, "text": fact.text}
            for fact in finding.evidence
        ],
    }
