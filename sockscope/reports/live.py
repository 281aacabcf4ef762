"""The live view on a terminal or in a pipe: one line an event, a colour a connection."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from sockscope.model.live import LineKind, LiveBatch, LiveLine
from sockscope.reports.escape import safe
from sockscope.reports.format import counted, duration

_CONNECTION_STYLES = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green", "bright_magenta")
_KIND_STYLES = {
    LineKind.WAIT: "dim",
    LineKind.TASK: "bold",
    LineKind.SOCKET: "",
    LineKind.CONNECTION: "",
    LineKind.KERNEL: "bold",
}
_LONG_NS = 1_000_000
"""Calls that took longer say how long."""


def print_batch(batch: LiveBatch, *, console: Console, started_ns: int) -> None:
    """Print what is new; nothing where there is nothing.

    Args:
        started_ns: CLOCK_MONOTONIC that times are counted from.
    """
    for said in batch.known:
        console.print(Text(f"            {safe(said)}", style="dim"), soft_wrap=True, highlight=False)
    for line in batch.lines:
        console.print(line_text(line, started_ns), soft_wrap=True, highlight=False)
    if batch.left_out_count:
        note = Text(f"          … {counted(batch.left_out_count, 'event')} more, faster than can be shown", style="dim")
        console.print(note, soft_wrap=True, highlight=False)


def live_printer() -> Callable[[LiveBatch, int], None]:
    """A function that prints batches on standard output."""
    console = Console(highlight=False)

    def show(batch: LiveBatch, started_ns: int) -> None:
        print_batch(batch, console=console, started_ns=started_ns)

    return show


def line_text(line: LiveLine, started_ns: int) -> Text:
    """One line; the styles show on a terminal only, the text is the same everywhere.

    `+12.345678 python3[77/812] 127.0.0.1:40112  recvfrom(7, "GET / HTTP/1.1"..., 8192, 0) = 78  # request GET /`
    """
    style = _KIND_STYLES[line.kind]
    text = Text(f"{(line.time_ns - started_ns) / 1e9:+11.6f} ", style="dim")
    who = f"{line.comm}[{line.tgid}]" if line.tid == line.tgid else f"{line.comm}[{line.tgid}/{line.tid}]"
    if line.kind is LineKind.KERNEL:
        who = line.comm
    text.append(f"{safe(who)} ", style="not dim")
    if line.connection:
        text.append(f"{safe(line.connection)} ", style=f"not dim {_colour(line.connection)}")
    text.append(f" {safe(line.text)}", style=f"not dim {'red' if line.failed else style}")
    if line.duration_ns >= _LONG_NS:
        text.append(f" <{duration(line.duration_ns)}>")
    if line.repeated:
        text.append(f"  ×{line.repeated} more, every {duration(line.period_ns)}", style="not dim bold")
    elif line.words:
        text.append(f"  # {safe(line.words)}", style="not dim italic")
    return text


def _colour(connection: str) -> str:
    """Always the same for the same connection."""
    return _CONNECTION_STYLES[zlib.crc32(connection.encode("utf-8", "replace")) % len(_CONNECTION_STYLES)]
