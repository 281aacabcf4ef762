"""Names and what they stand for, in lines: folded into columns for people, one line each for grep."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

INDENT = 2


def print_groups(groups: Iterable[tuple[str, Sequence[tuple[str, str]]]], *, console: Console) -> None:
    """Print each group's heading (where it has one) and its lines `(name, text)`, all in the same columns.

    Where nobody reads along (no terminal, no COLUMNS), no line is folded.
    """
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from sockscope.reports.trimmed import Trimmed

    shown = [(heading, lines) for heading, lines in groups if lines]
    names = max((cell_len(name) for _, lines in shown for name, _ in lines), default=0)
    for number, (heading, lines) in enumerate(shown):
        if number:
            console.print()
        if heading:
            console.print(Text(heading, "bold"))
        if not console.is_terminal and "COLUMNS" not in os.environ:
            for name, text in lines:
                print(f"{name:{names}}  {text}")
            continue
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="cyan", min_width=names)
        table.add_column()
        for name, text in lines:
            table.add_row(Text(name), Text(text))
        console.print(Trimmed(Padding(table, (0, 0, 0, INDENT if heading else 0), expand=False)))
