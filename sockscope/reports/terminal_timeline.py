"""The interleaved timeline of a finding's worst connection, with the evidence marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sockscope.model.findings import Evidence, Finding
from sockscope.model.report import ConnectionRow, Lane, Report, TimelineItem
from sockscope.reports import format as words
from sockscope.reports.escape import safe

SHORT_COUNT = 14
"""Lines of a timeline that is not verbose, but for the evidence itself."""
FULL_LIMIT = 200
LANE_STYLES = {Lane.WIRE: "cyan", Lane.KERNEL: "yellow", Lane.SYSCALL: "magenta"}
LANE_NAMES = {Lane.WIRE: "wire", Lane.KERNEL: "state", Lane.SYSCALL: ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One line: an item, or evidence that is on no item. `mark`: the evidence's index, -1 for none."""

    time_ns: int
    lane: Lane | None
    actor: str
    text: str
    meaning: str = ""
    failed: bool = False
    mark: int = -1


def story(report: Report, finding: Finding, *, verbose: bool, ascii_only: bool) -> list[RenderableType] | None:
    """Heading, timeline table and legend; None where there is nothing to tell."""
    items: Sequence[TimelineItem] = ()
    if finding.worst is not None:
        items = report.timelines(finding.worst, limit=FULL_LIMIT)
    entries = _entries(items, finding.evidence)
    if not entries:
        return None
    shown = set(range(len(entries))) if verbose else _telling(entries)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", max_width=26)
    table.add_column(overflow="fold", ratio=1)
    table.expand = True
    left_out = 0
    for index, entry in enumerate(entries):
        if index not in shown:
            left_out += 1
            continue
        if left_out:
            _gap(table, left_out, ascii_only)
            left_out = 0
        _row(table, report, entry, ascii_only)
    if left_out:
        _gap(table, left_out, ascii_only)
    return [_heading(report, finding, ascii_only), table]


def _heading(report: Report, finding: Finding, ascii_only: bool) -> Text:
    text = Text()
    row = _row_of(report, finding.worst)
    if row is None:
        text.append("Evidence", "bold")
    else:
        connection = row.connection
        text.append("Evidence" if len(finding.connections) < 2 else "Evidence, of the worst", "bold")
        text.append(f"  #{connection.id} {safe(words.address(connection.local))} ")
        text.append(words.arrow(connection.role, ascii_only=ascii_only))
        text.append(f" {safe(words.address(connection.peer))}  {words.state_name(connection)}")
    return text


def _row_of(report: Report, connection: int | None) -> ConnectionRow | None:
    if connection is None:
        return None
    if connection < len(report.connections) and report.connections[connection].connection.id == connection:
        return report.connections[connection]
    return next((row for row in report.connections if row.connection.id == connection), None)


def _entries(items: Sequence[TimelineItem], evidence: Sequence[Evidence]) -> list[_Entry]:
    marks = words.evidence_marks(items, evidence)
    entries = [
        _Entry(
            time_ns=item.time_ns,
            lane=item.lane,
            actor=item.actor,
            text=item.text,
            meaning=words.meaning(item, evidence[marks[index]] if index in marks else None),
            failed=item.failed,
            mark=marks.get(index, -1),
        )
        for index, item in enumerate(items)
    ]
    placed = set(marks.values())
    entries += [
        _Entry(
            time_ns=fact.time_ns,
            lane=words.SOURCE_LANES.get(fact.source),
            actor=words.actor_and_text(fact)[0],
            text=words.actor_and_text(fact)[1],
            mark=index,
        )
        for index, fact in enumerate(evidence)
        if index not in placed
    ]
    return sorted(entries, key=lambda entry: entry.time_ns)


def _telling(entries: Sequence[_Entry]) -> set[int]:
    """What to show when space is short: the evidence, what stands beside it, what failed, both ends."""
    marked = [i for i, e in enumerate(entries) if e.mark >= 0]
    wanted = set(marked)
    beside = [i + step for step in (-1, 1, -2, 2) for i in marked]
    told = [i for i, e in enumerate(entries) if e.failed or e.meaning]
    ends = [i for pair in zip(range(len(entries)), reversed(range(len(entries))), strict=True) for i in pair]
    room = SHORT_COUNT + len(marked)
    for index in [*beside, *ends[:4], *told, *ends]:
        if len(wanted) >= min(room, len(entries)):
            break
        if 0 <= index < len(entries):
            wanted.add(index)
    # A gap line takes as much room as the line it hides.
    return wanted | {i for i in range(1, len(entries) - 1) if i - 1 in wanted and i + 1 in wanted}


def _gap(table: Table, count: int, ascii_only: bool) -> None:
    sign = ":" if ascii_only else "⋮"
    table.add_row("", Text(sign, "dim"), "", Text(f"{words.number(count)} more", "dim"))


def _row(table: Table, report: Report, entry: _Entry, ascii_only: bool) -> None:
    primary, other = ("=>", " >") if ascii_only else ("▶", "›")
    mark = Text(
        primary if entry.mark == 0 else other if entry.mark > 0 else "", "bold red" if entry.mark == 0 else "red"
    )
    style = LANE_STYLES[entry.lane] if entry.lane is not None else "blue"
    actor = Text()
    if entry.lane is not None and LANE_NAMES[entry.lane]:
        actor.append(LANE_NAMES[entry.lane], style)
    if entry.actor and entry.actor != "--":
        shown = entry.actor if ascii_only else {"->": "→", "<-": "←"}.get(entry.actor, entry.actor)
        actor.append((" " if actor else "") + safe(shown), style)
    line = Text(safe(entry.text), "red" if entry.failed else "bold" if entry.mark == 0 else "")
    if entry.meaning:
        line.append(f" — {safe(entry.meaning)}", "dim")
    if ascii_only:
        line = Text(words.to_ascii(line.plain))
    table.add_row(mark, Text(words.since_start(entry.time_ns, report.info), "dim"), actor, line)
