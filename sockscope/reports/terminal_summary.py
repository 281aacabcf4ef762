"""Below the findings: connections, processes, what they do at rest, and how far all this can be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sockscope.model.report import ConnectionRow, Report
from sockscope.reports import format as words
from sockscope.reports.escape import safe

ROW_COUNT = 9
EACH_FINDING = 4
VERBOSE_ROW_COUNT = 100
GROUP_COUNT = 5
PROCESS_COUNT = 12
WIDE_COLUMNS = 110

Clean: TypeAlias = Callable[[str], str]
"""Any text → what this terminal may be given."""


def summary(report: Report, *, console: Console, verbose: bool, ascii_only: bool) -> Iterator[RenderableType]:
    """The parts to print, one after another, an empty line after each."""

    def clean(text: str) -> str:
        return words.to_ascii(safe(text)) if ascii_only else safe(text)

    if report.connections:
        wide = console.width >= WIDE_COLUMNS
        yield from _connections(report, clean, verbose=verbose, wide=wide, ascii_only=ascii_only)
        yield ""
    if report.processes:
        yield from _processes(report, clean, verbose=verbose)
        yield ""
    if report.idle_words:
        yield _listed("At rest", [("", Text(clean(line))) for line in report.idle_words])
        yield ""
    lines = words.coverage_lines(report)
    yield _listed("Coverage", [(n.name, Text(clean(n.text), "yellow" if n.doubt else "")) for n in lines])
    yield ""
    groups = words.skip_groups(report)
    if groups:
        yield Text("Rules that could not judge", "bold")
        for reason, slugs in groups:
            yield Text(clean(f"{reason}: "), "dim").append(", ".join(slugs), "")
        yield ""


def _grid(title: str, columns: Sequence[tuple[str, bool]]) -> Table:
    table = Table(
        title=Text(title, "bold", no_wrap=False),
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def _listed(title: str, lines: Sequence[tuple[str, Text]]) -> Table:
    named = any(name for name, _ in lines)
    table = _grid(title, [("", False)] * (2 if named else 1))
    table.show_header = False
    for name, text in lines:
        table.add_row(*([Text(name, "dim"), text] if named else [text]))
    return table


def _connections(
    report: Report, clean: Clean, *, verbose: bool, wide: bool, ascii_only: bool
) -> Iterator[RenderableType]:
    rows = _worst_first(report.connections)
    room = VERBOSE_ROW_COUNT if verbose else ROW_COUNT
    shown, rest = rows[:room], rows[room:]
    locals_ = {words.address(row.connection.local) for row in rows}
    total = words.counted(len(rows), "connection")
    where = clean(next(iter(locals_))) if len(locals_) == 1 else ""
    columns = [("#", True)]
    columns += [] if where else [("local", False)]
    columns += [("peer", False), ("state", False), ("held by", False)]
    columns += [("read", True), ("written", True)] if wide else []
    columns += [("finding, or what it did", False)]
    roles = {row.connection.role for row in rows}
    table = _grid(f"{total} at {where}" if where else total, columns)
    for row in shown:
        connection = row.connection
        cells = [Text(str(connection.id))]
        if not where:
            cells.append(Text(clean(words.address(connection.local))))
        arrow = f"{words.arrow(connection.role, ascii_only=ascii_only)} " if len(roles) > 1 else ""
        cells += [
            Text(arrow + clean(words.address(connection.peer))),
            Text(words.state_name(connection), "yellow" if row.finding_indexes else ""),
            Text(clean(_held_by(row, report)), "magenta"),
        ]
        if wide:
            cells += [Text(words.byte_count(n)) for n in (connection.read_bytes, connection.written_bytes)]
        cells.append(_what(row, report, clean, wide))
        table.add_row(*cells)
    yield table
    if rest:
        yield Text(clean(_groups(rest, report)), "dim")


def _worst_first(connections: Sequence[ConnectionRow]) -> list[ConnectionRow]:
    """Some of each finding first, so that a finding with hundreds leaves room for the others."""
    seen: Counter[int] = Counter()
    ranked = []
    for row in connections:
        first = min(row.finding_indexes, default=-1)
        seen[first] += 1
        ranked.append((first < 0, seen[first] > EACH_FINDING, first, row.connection.id, row))
    return [row for *_, row in sorted(ranked, key=lambda entry: entry[:4])]


def _held_by(row: ConnectionRow, report: Report) -> str:
    connection = row.connection
    if connection.never_accepted:
        return "nobody: not accepted"
    comms = {process.tgid: process.comm for process in report.processes}
    named = [f"{words.process_name(comms.get(tgid, '?'), tgid)} fd {fd}" for tgid, fd in connection.owners[:2]]
    more = len(connection.owners) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _what(row: ConnectionRow, report: Report, clean: Clean, wide: bool) -> Text:
    text = Text(", ".join(dict.fromkeys(report.findings[i].rule for i in row.finding_indexes)), "bold")
    if row.summary and (wide or not text):
        text.append("  " if text else "").append(clean(row.summary), "")
    return text


def _groups(rest: Sequence[ConnectionRow], report: Report) -> str:
    """The connections that are not shown, by state and process."""
    comms = {process.tgid: process.comm for process in report.processes}

    def group(row: ConnectionRow) -> str:
        who = [words.process_name(comms.get(tgid, "?"), tgid) for tgid in row.processes[-1:]]
        slugs = dict.fromkeys(report.findings[i].rule for i in row.finding_indexes)
        about = [f"({', '.join(slugs)})"] if slugs else []
        return " ".join([words.state_name(row.connection), *(f"in {name}" for name in who), *about])

    counts = Counter(group(row) for row in rest).most_common()
    parts = [f"{words.number(count)} {name}" for name, count in counts[:GROUP_COUNT]]
    others = sum(count for _, count in counts[GROUP_COUNT:])
    if others:
        parts.append(f"{words.number(others)} others")
    return f"and {words.number(len(rest))} more: {', '.join(parts)}"


def _processes(report: Report, clean: Clean, *, verbose: bool) -> Iterator[RenderableType]:
    touched = Counter(tgid for row in report.connections for tgid in row.processes)
    table = _grid("Processes", [("process", False), ("connections", True), ("life", False), ("command", False)])
    shown = report.processes if verbose else report.processes[:PROCESS_COUNT]
    for process in shown:
        started = process.started_ns
        life = "there before" if started is None else f"from {words.since_start(started, report.info)[:-3]} s"
        ended = words.ended_words(process)
        table.add_row(
            Text(clean(words.process_name(process.comm, process.tgid)), "magenta"),
            words.number(touched[process.tgid]),
            Text(f"{life}, {ended}" if ended else life, "yellow" if ended not in ("", "exit 0") else ""),
            Text(clean(" ".join(process.cmdline) or process.exe)),
        )
    yield table
    if len(report.processes) > len(shown):
        yield Text(f"and {words.number(len(report.processes) - len(shown))} more", "dim")
