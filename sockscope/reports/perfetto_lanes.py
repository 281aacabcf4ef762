"""Lanes: what overlaps in time cannot lie on one Perfetto track, so it is spread over as few as it takes."""

from __future__ import annotations

import heapq
import math

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def lanes(key: Int64s, begin_ns: Int64s, end_ns: Int64s) -> Int64s:
    """A lane for each slice, such that those of one key and lane do not overlap.

    Args:
        key: shape (n,), what the slices belong to; not negative.
        begin_ns, end_ns: shape (n,), in order of (begin, end); -1 as an end: none came.

    Returns:
        Shape (n,), 0 where nothing overlaps.
    """
    out = np.zeros(len(key), np.int64)
    if not len(key):
        return out
    unended = end_ns < 0
    order = np.argsort(key, kind="stable")
    after, before = order[1:], order[:-1]
    # What does not overlap the one before it, anywhere in a key, overlaps none.
    overlaps = unended[before] | (begin_ns[after] < end_ns[before])
    crowded = np.unique(key[after[(key[after] == key[before]) & overlaps]])
    rows = np.flatnonzero(np.isin(key, crowded))
    running: dict[int, list[tuple[float, int]]] = {}
    free: dict[int, list[int]] = {}
    for row, one, begin, stop in zip(
        rows.tolist(), key[rows].tolist(), begin_ns[rows].tolist(), end_ns[rows].tolist(), strict=True
    ):
        busy, idle = running.setdefault(one, []), free.setdefault(one, [])
        while busy and busy[0][0] <= begin:
            heapq.heappush(idle, heapq.heappop(busy)[1])
        lane = heapq.heappop(idle) if idle else len(busy)
        heapq.heappush(busy, (stop if stop >= 0 else math.inf, lane))
        out[row] = lane
    return out
