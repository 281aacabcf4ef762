"""The connections on a terminal: what matters first, addresses never folded while there is a way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import TypeAlias

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sockscope.model.connections import Protocol
from sockscope.model.report import ConnectionRow, Report
from sockscope.reports import format as words

ROW_COUNT = 9
EACH_FINDING = 4
VERBOSE_ROW_COUNT = 100
GROUP_COUNT = 5
GAP = 2
TOLD_COLUMNS = 30
"""What a finding or a summary needs to read well in a column of its own."""
LAST_COLUMNS = 26
"""What holders and summary need together; with less they go below the address."""

Clean: TypeAlias = Callable[[str], str]
"""Any text → what this terminal may be given."""

_PROTOCOLS = {Protocol.TCP: 0, Protocol.UDP: 1, Protocol.UNIX: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One connection in strings fit for this terminal."""

    number: str
    local: str
    peer: str
    state: str
    read: str
    written: str
    holders: str
    slugs: str
    summary: str
    wire: str
    verbose: bool

    def told(self, *, full: bool) -> Text:
        """Its findings, else (or `full`: and) what it did, and what its packets went through."""
        text = Text(self.slugs, "bold")
        if self.summary and (full or not self.slugs):
            text.append("  " if self.slugs else "").append(self.summary, "")
        if self.wire and (full or self.verbose or not text):
            text.append("  " if text else "").append(self.wire, "cyan")
        return text


def connections(
    report: Report, clean: Clean, *, width: int, verbose: bool, ascii_only: bool
) -> Iterator[RenderableType]:
    """The table and a line about what is not in it."""
    every = report.connections
    comms = {process.tgid: process.comm for process in report.processes}
    shown = telling_rows(every, VERBOSE_ROW_COUNT if verbose else ROW_COUNT, idle_too=verbose)
    kept = {row.connection.id for row in shown}
    rest = [row for row in every if row.connection.id not in kept]
    inet = [row for row in every if row.connection.protocol is not Protocol.UNIX]
    locals_ = {row.connection.local for row in inet}
    where = words.address(next(iter(locals_))) if len(locals_) == 1 else ""
    heading = words.counted(len(every), "connection")
    if where:
        heading += f" at {where}" if len(inet) == len(every) else f", {words.number(len(inet))} at {where}"
    arrows = len({row.connection.role for row in inet}) > 1
    rows = [
        _row(row, report, comms, clean, where=where, arrows=arrows, verbose=verbose, ascii_only=ascii_only)
        for row in shown
    ]
    yield _table(clean(heading), rows, width)
    if rest:
        yield Text(clean(_groups(rest, report, comms)), "dim")


def telling_rows(rows: Sequence[ConnectionRow], count: int, *, idle_too: bool) -> list[ConnectionRow]:
    """Some of each finding first, so that a finding with hundreds leaves room for the others.

    Then by protocol (TCP, UDP, unix with a name, unix without), the busiest first. Socketpairs that carried nothing
    only where `idle_too`.
    """
    seen: Counter[int] = Counter()

    def rank(row: ConnectionRow) -> tuple[int, ...]:
        connection = row.connection
        if row.finding_indexes:
            first = min(row.finding_indexes)
            seen[first] += 1
            return (0, seen[first] > EACH_FINDING, first, connection.id)
        moved = connection.read_bytes + connection.written_bytes
        return (1, _PROTOCOLS[connection.protocol], words.unnamed_pair(connection), -moved, connection.id)

    wanted = rows if idle_too else [row for row in rows if not words.idle_pair(row)]
    return nsmallest(count, wanted, key=rank)


def _row(
    row: ConnectionRow,
    report: Report,
    comms: Mapping[int, str],
    clean: Clean,
    *,
    where: str,
    arrows: bool,
    verbose: bool,
    ascii_only: bool,
) -> _Row:
    connection = row.connection
    local, peer = words.address(connection.local), words.address(connection.peer)
    if connection.protocol is Protocol.UNIX:
        local, peer = ("" if where else "unix"), words.far_end(row)
    elif arrows:
        peer = f"{words.arrow(connection.role, ascii_only=ascii_only)} {peer}"
    return _Row(
        number=str(connection.id),
        local="" if where else clean(local),
        peer=clean(peer),
        state=words.state_name(connection) if _state_known(report) else "",
        read=words.byte_count(connection.read_bytes),
        written=words.byte_count(connection.written_bytes),
        holders=clean(_held_by(row, comms)),
        slugs=", ".join(dict.fromkeys(report.findings[i].rule for i in row.finding_indexes)),
        summary=clean(row.summary),
        wire=clean(row.wire),
        verbose=verbose,
    )


def _state_known(report: Report) -> bool:
    """Packets alone tell no kernel's state: how connections ended on the wire is in what is told of each."""
    return bool(report.info.sockets.snapshot_count or report.info.syscalls.engine)


def _held_by(row: ConnectionRow, comms: Mapping[int, str]) -> str:
    connection = row.connection
    if connection.never_accepted:
        return "nobody: not accepted"
    named = [f"{words.process_name(comms.get(tgid, '?'), tgid)} fd {fd}" for tgid, fd in connection.owners[:2]]
    more = len(connection.owners) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _table(heading: str, rows: Sequence[_Row], width: int) -> Table:
    """By width: every column; holders and summary in one; or both below the addresses."""
    fixed = {"#": [r.number for r in rows], "peer": [r.peer for r in rows]}
    if any(r.state for r in rows):
        fixed["state"] = [r.state for r in rows]
    if any(r.local for r in rows):
        fixed = {"#": fixed["#"], "local": [r.local for r in rows], **fixed}
    left = width - _columns(fixed)
    amounts = {"read": [r.read for r in rows], "written": [r.written for r in rows]}
    held = _columns({"held by": [r.holders for r in rows]})
    told = max((r.told(full=True).cell_len for r in rows), default=0)
    wanted = min(told, TOLD_COLUMNS)
    if left >= held + _columns(amounts) + wanted:
        table = _grid(heading, [*fixed, "held by", *amounts, "finding, or what it did"])
        for at, row in enumerate(rows):
            cells = [Text(column[at], no_wrap=True) for column in fixed.values()]
            cells += [Text(row.holders, "magenta"), Text(row.read), Text(row.written), row.told(full=True)]
            table.add_row(*_coloured(cells, [*fixed], row))
    elif left >= held + wanted:
        table = _grid(heading, [*fixed, "held by", "finding, or what it did"])
        for at, row in enumerate(rows):
            cells = [Text(column[at]) for column in fixed.values()]
            cells += [Text(row.holders, "magenta"), row.told(full=False)]
            table.add_row(*_coloured(cells, [*fixed], row))
    elif left >= LAST_COLUMNS:
        table = _grid(heading, [*fixed, "held by, finding, or what it did"])
        for at, row in enumerate(rows):
            cells = [Text(column[at]) for column in fixed.values()]
            cells.append(_joined(row, left))
            table.add_row(*_coloured(cells, [*fixed], row))
    else:
        state = "state, " if any(r.state for r in rows) else ""
        table = _grid(heading, ["#", f"ends, {state}held by, finding, or what it did"])
        for row in rows:
            ends = " ".join(part for part in (row.local, row.peer) if part)
            first = Text(f"{ends}  " if row.state else ends).append(row.state, "yellow" if row.slugs else "")
            table.add_row(Text(row.number), first.append("\n").append(_joined(row, width - 8)))
    return table


def _columns(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(max(map(cell_len, [name, *texts])) + GAP for name, texts in columns.items())


def _joined(row: _Row, room: int) -> Text:
    """Holders and what it did: on one line where that fits."""
    text, told = Text(row.holders, "magenta"), row.told(full=False)
    if text and told:
        text.append("  " if text.cell_len + GAP + told.cell_len <= room else "\n")
    return text.append(told)


def _coloured(cells: list[Text], names: Sequence[str], row: _Row) -> list[Text]:
    if row.slugs and row.state:
        cells[names.index("state")].stylize("yellow")
    return cells


def _grid(title: str, names: Sequence[str]) -> Table:
    table = Table(
        title=Text(title, "bold"),
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        padding=(0, GAP, 0, 0),
        header_style="dim",
    )
    for name in names:
        whole = name in ("#", "local", "peer", "state", "read", "written")
        table.add_column(
            name, justify="right" if name in ("#", "read", "written") else "left", overflow="fold", no_wrap=whole
        )
    return table


def _groups(rest: Sequence[ConnectionRow], report: Report, comms: Mapping[int, str]) -> str:
    """The connections that are not shown, by state and process."""

    def named(state: str, processes: tuple[int, ...], findings: tuple[int, ...]) -> str:
        who = [words.process_name(comms.get(tgid, "?"), tgid) for tgid in processes]
        slugs = dict.fromkeys(report.findings[i].rule for i in findings)
        about = [f"({', '.join(slugs)})"] if slugs and state else [*slugs]
        return " ".join([state, *(f"in {name}" for name in who), *about]).strip()

    def state_of(row: ConnectionRow) -> str:
        return words.state_name(row.connection) if known else ""

    known = _state_known(report)

    # Put into words once a group, not once a connection.
    alike = Counter(
        ("idle ends of unix socketpairs", (), ())
        if words.idle_pair(row)
        else (state_of(row), row.processes[-1:], row.finding_indexes)
        for row in rest
    )
    groups: Counter[str] = Counter()
    for key, count in alike.items():
        groups[named(*key)] += count
    counts = sorted(groups.items(), key=lambda entry: (-entry[1], entry[0]))
    parts = [f"{words.number(count)} {name or 'without finding'}" for name, count in counts[:GROUP_COUNT]]
    others = sum(count for _, count in counts[GROUP_COUNT:])
    if others:
        parts.append(f"{words.number(others)} others")
    return f"and {words.number(len(rest))} more" + (f": {', '.join(parts)}" if any(groups) else "")
