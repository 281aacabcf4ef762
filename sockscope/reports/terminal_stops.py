"""How the server was stopped, below the findings on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sockscope.model.report import Report
from sockscope.reports import format as words
from sockscope.reports.stop_words import STEPS_SHOWN, STOPS_SHOWN, StopCard, stop_cards
from sockscope.reports.terminal_connections import Clean

_ALL = 1 << 20


def stops(report: Report, clean: Clean, *, verbose: bool) -> Iterator[RenderableType]:
    """The parts to print; nothing where no server was asked to end."""
    cards = stop_cards(report, step_count=_ALL if verbose else STEPS_SHOWN)
    shown = cards if verbose else cards[:STOPS_SHOWN]
    for card in shown:
        yield Text("Stop: ", "bold").append(clean(card.title), "bold")
        for line in card.lines:
            yield Padding(Text(clean(line)), (0, 0, 0, 2), expand=False)
        yield Padding(_steps(card, clean), (0, 0, 0, 2), expand=False)
        if card.more:
            yield Text(f"  and {words.counted(card.more, 'step')} between", "dim")
        yield ""
    if len(cards) > len(shown):
        yield Text(f"and {words.counted(len(cards) - len(shown), 'more stop')}", "dim")
        yield ""


def _steps(card: StopCard, clean: Clean) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(style="magenta", overflow="fold")
    table.add_column(overflow="fold")
    for step in card.steps:
        table.add_row(Text(clean(step.when)), Text(clean(step.who)), Text(clean(step.text)))
    return table
