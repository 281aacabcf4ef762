"""The groups of a large session's connections as the page's table shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sockscope.model.findings import Finding
from sockscope.reports import format as words
from sockscope.reports.html_groups import VARIOUS, Group, Grouped


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLine:
    """One group in strings; `index` is what the page's script knows it by."""

    index: int
    server: str
    state: str
    rule: str
    severity: str
    processes: str
    did: str
    count: str
    shown: str
    read: str
    written: str
    median: str
    p95: str
    most: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTable:
    lines: tuple[GroupLine, ...]
    whole: GroupLine
    shown: str
    summed: str
    """Connections that are in no row of their own."""
    one_server: str
    """Where all groups have the same: it needs no column."""
    has_processes: bool


def group_table(grouped: Grouped, of_shown: Sequence[int], findings: Sequence[Finding]) -> GroupTable:
    """The lines, the last one the sum of all.

    Args:
        grouped: all connections.
        findings: of the report, worst first.
        of_shown: of each shown connection its group.
    """
    shown = Counter(of_shown)
    # Of a rule's severities the worst is the one that stays.
    severities = {finding.rule: finding.severity.label for finding in reversed(findings)}
    servers = {group.key.server for group in grouped.groups}
    return GroupTable(
        lines=tuple(_line(index, group, shown[index], severities) for index, group in enumerate(grouped.groups)),
        whole=_line(-1, grouped.whole, len(of_shown), {}),
        shown=words.number(len(of_shown)),
        summed=words.number(grouped.whole.count - len(of_shown)),
        one_server=next(iter(servers)) if len(servers) == 1 else "",
        has_processes=any(group.key.processes != VARIOUS for group in grouped.groups),
    )


def _line(index: int, group: Group, shown: int, severities: Mapping[str, str]) -> GroupLine:
    key, lasted = group.key, group.lasted
    return GroupLine(
        index=index,
        server=key.server,
        state=key.state,
        rule=key.rule,
        severity=severities.get(key.rule, ""),
        processes=key.processes,
        did="" if key.rule and key.did == VARIOUS else key.did,
        count=words.number(group.count),
        shown=words.number(shown),
        read=words.byte_count(group.read_bytes),
        written=words.byte_count(group.written_bytes),
        median=words.duration(max(0, lasted.median_ns)),
        p95=words.duration(max(0, lasted.p95_ns)),
        most=words.duration(max(0, lasted.max_ns)),
    )
