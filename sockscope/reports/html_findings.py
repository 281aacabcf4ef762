"""The findings as the page's cards show them."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from sockscope.model.findings import Consequence, Evidence, Finding, Source
from sockscope.model.report import ConnectionRow, Report
from sockscope.reports import format as words
from sockscope.reports.shortened import short

CHIP_COUNT = 12
"""Connections named on a card; the others are a filter away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    source: str
    when: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One finding in strings.

    Attributes:
        chips: connections named, all of them in the page.
        shown_count: its connections in the page, and total_count all of them.
    """

    index: int
    rule: str
    severity: str
    confidence: str
    title: str
    process: str
    fd: int | None
    count: str
    paragraphs: tuple[str, ...]
    holder: str
    remedy: str
    worst: int | None
    chips: tuple[int, ...]
    shown_count: int
    total_count: int
    facts: tuple[Fact, ...]
    consequences: tuple[Consequence, ...]


def cards(report: Report, rows: Sequence[ConnectionRow]) -> list[Card]:
    """One card a finding, in the report's order.

    Args:
        report: the whole.
        rows: the connections that the page shows.
    """
    shown = frozenset(row.connection.id for row in rows)
    return [_card(index, finding, report, shown) for index, finding in enumerate(report.findings)]


def _card(index: int, finding: Finding, report: Report, shown: Set[int]) -> Card:
    holder = finding.holder
    connections = [c for c in dict.fromkeys(finding.connections) if c in shown]
    chips = tuple(connections[:CHIP_COUNT])
    if finding.worst in shown and finding.worst is not None:
        chips = (finding.worst, *(c for c in chips if c != finding.worst))[:CHIP_COUNT]
    count = words.counted(len(finding.connections), "connection") if finding.connections else ""
    if finding.count > 1 and finding.count != len(finding.connections):
        count += (" · " if count else "") + f"{words.number(finding.count)} times"
    return Card(
        index=index,
        rule=finding.rule,
        severity=finding.severity.label,
        confidence=finding.confidence.value,
        title=finding.title,
        process=words.process_name(finding.comm, finding.tgid),
        fd=finding.fd,
        count=count,
        paragraphs=tuple(finding.explanation.split("\n")),
        holder="" if holder is None else f"{words.process_name(holder.comm, holder.tgid)} fd {holder.fd}",
        remedy=finding.remedy,
        consequences=finding.consequences,
        worst=finding.worst,
        chips=chips,
        shown_count=len(connections),
        total_count=len(set(finding.connections)),
        facts=tuple(
            Fact(source=f.source.value, when=words.since_start(f.time_ns, report.info), text=_fact_text(f))
            for f in finding.evidence
        ),
    )


def _fact_text(fact: Evidence) -> str:
    """As the terminal shows it."""
    if fact.source is not Source.SYSCALL:
        return short(fact.text)
    actor, text = words.actor_and_text(fact)
    return f"{actor} {short(text)}" if actor else short(text)
