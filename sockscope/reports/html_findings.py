"""The findings as the page's cards show them."""

from __future__ import annotations

from dataclasses import dataclass

from sockscope.model.findings import Consequence, Finding
from sockscope.model.report import Report
from sockscope.reports import format as words

CHIP_COUNT = 12
"""Connections named on a card; the others are a filter away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    source: str
    when: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One finding in strings."""

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
    more_count: int
    facts: tuple[Fact, ...]
    consequences: tuple[Consequence, ...]


def cards(report: Report) -> list[Card]:
    """One card a finding, in the report's order."""
    return [_card(index, finding, report) for index, finding in enumerate(report.findings)]


def _card(index: int, finding: Finding, report: Report) -> Card:
    holder = finding.holder
    chips = finding.connections[:CHIP_COUNT]
    if finding.worst is not None:
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
        more_count=len(set(finding.connections) - set(chips)),
        facts=tuple(
            Fact(source=f.source.value, when=words.since_start(f.time_ns, report.info), text=f.text)
            for f in finding.evidence
        ),
    )
