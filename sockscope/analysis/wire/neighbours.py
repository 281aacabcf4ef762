"""What each segment follows: the segment before it of its own side, and of the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import Ints, Mask

Places = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Places in the table, -1 where there is none. Shape (n,) each.

    Attributes:
        own: the last segment of the same flow and side before.
        other: the last segment of the same flow's other side before.
    """

    own: Places
    other: Places


def neighbours(begins: Mask, side: Ints, counts: Mask | None = None) -> Neighbours:
    """Of rows flow after flow, in order of time.

    Args:
        begins: shape (n,), where flows begin. side: shape (n,), 0 or 1.
        counts: shape (n,), which rows may be a neighbour; None: all.
    """
    rows = np.arange(len(begins), dtype=np.int32)
    begin = np.maximum.accumulate(np.where(begins, rows, np.int32(0)))
    first = side == 0
    before = []
    for of_side in (first, ~first):
        at = np.full(len(rows), -1, np.int32)
        seen = np.where(of_side if counts is None else of_side & counts, rows, np.int32(-1))
        at[1:] = np.maximum.accumulate(seen)[:-1]
        at[at < begin] = -1
        before.append(at)
    return Neighbours(own=np.where(first, *before), other=np.where(first, *before[::-1]))


def answers(begins: Mask, side: Ints, counts: Mask) -> Places:
    """Of each row the next row of its flow's other side; -1 where there is none. As `neighbours`, the other way."""
    ends = np.ones(len(begins), np.bool_)
    ends[:-1] = begins[1:]
    backwards = neighbours(ends[::-1], side[::-1], counts[::-1]).other[::-1]
    return np.where(backwards >= 0, np.int32(len(begins) - 1) - backwards, np.int32(-1))
