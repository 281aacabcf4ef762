"""What the page shows of latency: the tables, and the slowest exchange of each server as one stacked bar."""

from __future__ import annotations

from dataclasses import dataclass

from sockscope.model.latency import PLACES, ServerLatency
from sockscope.model.report import Report
from sockscope.reports import format as words
from sockscope.reports import latency_words as told
from sockscope.reports.latency_words import PhaseRow

_WIDTH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of the bar, in its own units from 0 to 1000; `place` is a class name."""

    name: str
    place: str
    time: str
    share: str
    x: str
    width: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyCard:
    local: str
    counts: str
    reservation: str
    rows: list[PhaseRow]
    has_percentiles: bool
    slowest: str
    connection: int
    parts: list[Part]
    closing: str


def latency_cards(report: Report) -> list[LatencyCard]:
    """One card a server, in the report's order."""
    return [
        LatencyCard(
            local=server.local,
            counts=told.counts(server),
            reservation=told.reservation(server),
            rows=told.rows(server),
            has_percentiles=any(row.percentiles for row in told.rows(server)),
            slowest=told.slowest(server),
            connection=server.slowest.connection,
            parts=_parts(server),
            closing=told.closing(server),
        )
        for server in report.latency[: told.SHOWN_SERVERS]
    ]


def _parts(server: ServerLatency) -> list[Part]:
    total = max(1, server.slowest.duration_ns)
    parts, before = [], 0
    for span in (span for span in server.slowest.phases if span.duration_ns):
        parts.append(
            Part(
                name=span.phase.value,
                place=PLACES[span.phase].name.lower(),
                time=words.duration(span.duration_ns),
                share=f"{100 * span.duration_ns / total:.0f}%",
                x=f"{before * _WIDTH / total:.2f}",
                width=f"{span.duration_ns * _WIDTH / total:.2f}",
            )
        )
        before += span.duration_ns
    return parts
