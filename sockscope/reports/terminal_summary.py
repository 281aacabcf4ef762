"""Below the findings: what the server is, connections, latency, processes, rest, and how far to trust it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sockscope.model.descriptors import Process
from sockscope.model.report import Report
from sockscope.reports import format as words
from sockscope.reports.escape import safe
from sockscope.reports.terminal_connections import GAP, Clean, connections
from sockscope.reports.terminal_latency import latencies
from sockscope.reports.terminal_stops import stops

PROCESS_COUNT = 12
SAME_COUNT = 3
"""Processes of one command that are named."""


def summary(report: Report, *, console: Console, verbose: bool, ascii_only: bool) -> Iterator[RenderableType]:
    """The parts to print, one after another, an empty line after each."""

    def clean(text: str) -> str:
        return words.to_ascii(safe(text)) if ascii_only else safe(text)

    if report.architecture:
        yield _listed("What this server is", [("", Text(clean(line))) for line in report.architecture])
        yield ""
    if report.connections:
        yield from connections(report, clean, width=console.width, verbose=verbose, ascii_only=ascii_only)
        yield ""
    if report.latency:
        yield from latencies(report, clean, verbose=verbose, ascii_only=ascii_only)
        yield ""
    yield from stops(report, clean, verbose=verbose)
    if report.processes:
        yield from _processes(report, clean, width=console.width, verbose=verbose)
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


def _processes(report: Report, clean: Clean, *, width: int, verbose: bool) -> Iterator[RenderableType]:
    """A line each; where the commands do not fit beside, they stand below, a line for those that have the same."""
    touched = Counter(tgid for row in report.connections for tgid in row.processes)
    shown = report.processes if verbose else report.processes[:PROCESS_COUNT]
    names = [clean(words.process_name(process.comm, process.tgid)) for process in shown]
    lives = [_life(process, report) for process in shown]
    commands = [clean(" ".join(process.cmdline) or process.exe) for process in shown]
    columns = [(names, "process"), ([], "connections"), ([life.plain for life in lives], "life"), (commands, "command")]
    needed = sum(max(map(cell_len, [title, *texts])) for texts, title in columns) + GAP * (len(columns) - 1)
    beside = needed <= width
    table = _grid("Processes", [(title, title == "connections") for _, title in columns[: 4 if beside else 3]])
    for process, name, life, command in zip(shown, names, lives, commands, strict=True):
        row = [Text(name, "magenta"), Text(words.number(touched[process.tgid])), life]
        table.add_row(*row, *([Text(command)] if beside else []))
    yield table
    if not beside:
        for command in dict.fromkeys(filter(None, commands)):
            theirs = [name for name, one in zip(names, commands, strict=True) if one == command]
            named = ", ".join(theirs[:SAME_COUNT])
            named += f" and {words.number(len(theirs) - SAME_COUNT)} more" if len(theirs) > SAME_COUNT else ""
            yield Text(f"{named}: ", "dim").append(command, "not dim")
    if len(report.processes) > len(shown):
        yield Text(f"and {words.number(len(report.processes) - len(shown))} more", "dim")


def _life(process: Process, report: Report) -> Text:
    started, ended = process.started_ns, words.ended_words(process)
    life = "there before" if started is None else f"from {words.since_start(started, report.info)[:-3]} s"
    return Text(f"{life}, {ended}" if ended else life, "yellow" if ended not in ("", "exit 0") else "")
