"""Below the findings: what the server is, connections, latency, processes, rest, and how far to trust it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sockscope.model.report import Report
from sockscope.reports import format as words
from sockscope.reports.escape import safe
from sockscope.reports.terminal_connections import Clean, connections
from sockscope.reports.terminal_latency import latencies
from sockscope.reports.terminal_stops import stops

PROCESS_COUNT = 12


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
