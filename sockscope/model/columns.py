"""Columns that may be long: who makes room for them, and how they are gone through piece by piece.

What is worked out row by row of ten million rows is worked out a piece at a time, so that only results take room, and
the room may be a file. The analysis does no I/O: it is given somebody who makes room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

Columns = Callable[[int, npt.DTypeLike], npt.NDArray[Any]]
"""Makes room for a column: how many elements, of what type; what is in it is not said."""

PIECE_ROWS = 1 << 18
"""Rows of a piece: what numpy needs on the way stays in the tens of MiB."""


def in_memory(count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The usual room."""
    return np.empty(count, dtype)


def pieces(count: int, most: int | None = None) -> Iterator[slice]:
    """Slices that together are `range(count)`, at least one, each of at most `most` rows (None: PIECE_ROWS)."""
    step = most or PIECE_ROWS
    for begin in range(0, max(count, 1), step):
        yield slice(begin, min(begin + step, count))


def group_pieces(bounds: Ids, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Runs of whole groups, together at most `most` rows (None: PIECE_ROWS), or one group that has more.

    Args:
        bounds: shape (groups + 1,): where each group's rows begin.

    Yields:
        First group, and the one after the last.
    """
    step = most or PIECE_ROWS
    first, count = 0, len(bounds) - 1
    while first < count:
        end = max(int(np.searchsorted(bounds, bounds[first] + step, "right")) - 1, first + 1)
        yield first, min(end, count)
        first = end


def rows_of(table: npt.NDArray[Any], test: Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]) -> Ids:
    """Rows that pass a test: shape (k,), ascending. The test is given pieces of the table (or of a column)."""
    found = [np.flatnonzero(test(table[part])) + part.start for part in pieces(len(table))]
    return np.concatenate(found)


def picked(records: npt.NDArray[np.void], rows: Ids) -> npt.NDArray[np.void]:
    """Whole rows, copied as bytes: several times faster than field by field, which numpy does to records."""
    return records.view(f"V{records.itemsize}").take(rows).view(records.dtype)


class Appended:
    """A column whose length shows only at its end.

    Args:
        columns: makes room.
    """

    def __init__(self, columns: Columns, dtype: npt.DTypeLike) -> None:
        self._columns, self._dtype = columns, np.dtype(dtype)
        self._rows = columns(0, self._dtype)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Copy rows to the end: shape (k,)."""
        end = self._count + len(rows)
        if end > len(self._rows):
            room = self._columns(max(end, self._count * 2), self._dtype)
            for part in pieces(self._count):
                room[part] = self._rows[part]
            self._rows = room
        self._rows[self._count : end] = rows
        self._count = end

    def whole(self) -> npt.NDArray[Any]:
        """All rows so far: shape (n,)."""
        return self._rows[: self._count]
