"""A line on the terminal while something long goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

_AFTER_S = 1.0
"""What takes less needs no progress."""
_EVERY_S = 0.2


class Line:
    """One line that is written over, on a terminal alone; `clear` takes it away.

    Attributes:
        wanted: standard error is a terminal.
    """

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._shown = False
        self.wanted = sys.stderr.isatty()

    def put(self, text: str) -> None:
        """Show this in place of what is shown."""
        if self.wanted:
            self._shown = True
            print(f"\r\x1b[Ksockscope: {text}", end="", file=sys.stderr, flush=True)

    def show(self, what: str, done: int, whole: int) -> None:
        """How far it is; nothing at first, and not all too often."""
        now = time.monotonic()
        if now - self._began < _AFTER_S or now - self._last < _EVERY_S:
            return
        self._last = now
        self.put(f"{what}: {100 * done // whole} %" if whole > 0 else f"{what}: {done}")

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False


def told(path: Path) -> Callable[[str, int, int], None]:
    """Progress of writing a file: called with what is being written, how much of it is, and all."""
    line = Line()

    def show(what: str, done: int, whole: int) -> None:
        if done >= whole:
            line.clear()
        else:
            line.show(f"writing {path.name}: {what}", done, whole)

    return show
