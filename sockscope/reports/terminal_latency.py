"""Where the time of the answers went: a table a server, and its slowest exchange as bars one under another."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from sockscope.model.latency import PLACES, Place, ServerLatency
from sockscope.model.report import Report
from sockscope.reports import format as words
from sockscope.reports import latency_words as told
from sockscope.reports.terminal_connections import Clean

STYLES = {Place.WIRE: "cyan", Place.QUEUE: "yellow", Place.PROGRAM: "magenta"}
_PLACE, _PHASE, _COUNT, _TIME = 14, 21, 7, 9
_BAR = 28
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def latencies(report: Report, clean: Clean, *, verbose: bool, ascii_only: bool) -> Iterator[RenderableType]:
    """The parts to print; nothing where no request was seen answered."""
    shown = report.latency if verbose else report.latency[: told.SHOWN_SERVERS]
    for number, server in enumerate(shown):
        if number:
            yield ""
        yield Text(clean(f"Latency of {server.local}"), "bold").append(f"  {told.counts(server)}", "not bold dim")
        reservation = told.reservation(server)
        if reservation:
            yield Text(clean(reservation), "yellow")
        yield from _table(server, clean)
        yield Text("Slowest: ", "dim").append(clean(told.slowest(server)), "not dim")
        yield from _bars(server, clean, ascii_only=ascii_only)
    more = len(report.latency) - len(shown)
    if more:
        yield Text(f"and {words.counted(more, 'server')} more", "dim")


def _table(server: ServerLatency, clean: Clean) -> Iterator[Text]:
    rows = told.rows(server)
    if any(row.percentiles for row in rows):
        names = "".join(name.rjust(_TIME) for name in ("p50", "p95", "p99", "max"))
        yield Text(" " * (_PLACE + _PHASE) + "count".rjust(_COUNT) + names, "dim")
    for row in rows:
        line = Text((row.place.value if row.place else "").ljust(_PLACE), STYLES[row.place] if row.place else "")
        line.append(row.name.ljust(_PHASE), "" if row.place else "bold")
        line.append(row.count.rjust(_COUNT))
        times = "".join(clean(time).rjust(_TIME) for time in row.percentiles)
        line.append(times or f"  {clean(row.each)}", "" if row.place else "bold")
        yield line


def _bars(server: ServerLatency, clean: Clean, *, ascii_only: bool) -> Iterator[Text]:
    """Each phase where it lies in the whole; time in which the client had not asked is left out."""
    one = server.slowest
    total = max(1, one.duration_ns)
    before = 0
    for span in one.phases:
        if not span.duration_ns:
            continue
        low, high = before * _BAR / total, (before + span.duration_ns) * _BAR / total
        before += span.duration_ns
        place = PLACES[span.phase]
        line = Text("  " + span.phase.value.ljust(_PHASE))
        line.append(clean(words.duration(span.duration_ns)).rjust(_TIME) + "  ")
        line.append(_bar(low, high, ascii_only=ascii_only), STYLES[place])
        yield line
    closing = told.closing(server)
    if closing:
        yield Text(f"  {clean(closing)}", "dim")


def _bar(low: float, high: float, *, ascii_only: bool) -> str:
    """From one place to another; never nothing at all."""
    start = min(int(low), _BAR - 1)
    if ascii_only:
        return " " * start + "#" * max(1, round(high) - start)
    whole, part = divmod(max(1, round((high - start) * 8)), 8)
    return " " * start + "█" * whole + (_EIGHTHS[part] if part else "")
