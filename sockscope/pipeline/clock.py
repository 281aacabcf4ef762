"""Samples of the two clocks: syscalls are stamped CLOCK_MONOTONIC, packets CLOCK_REALTIME."""

from __future__ import annotations

import time


def sample() -> tuple[int, int]:
    """(monotonic_ns, realtime_ns) of one moment: the tightest of a few bracketed reads."""
    best: tuple[int, int, int] | None = None
    for _ in range(5):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, real)
    assert best is not None
    return best[1], best[2]
