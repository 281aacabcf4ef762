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
    """Shows how far it is, on a terminal alone; `clear` takes it away."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._shown = False
        self._wanted = sys.stderr.isatty()

    def show(self, what: str, done: int, whole: int) -> None:
        now = time.monotonic()
        if not self._wanted or now - self._began < _AFTER_S or now - self._last < _EVERY_S:
            return
        self._last, self._shown = now, True
        share = f"{100 * done // whole} %" if whole > 0 else f"{done}"
        print(f"\r\x1b[Ksockscope: {what}: {share}", end="", file=sys.stderr, flush=True)

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
