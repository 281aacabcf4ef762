"""Columns of text made in bulk: a hundred thousand lines without a Python object a cell.

A column is a matrix of bytes, a row a line, with NUL where there is nothing: lines are matrices side by side with
their NULs taken out. What is too irregular for that is one `ODD` byte, for which a text is put in at the end. Texts
must hold neither byte; what `sockscope.reports.escape.safe` gives never does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Cells = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

ODD = 1
_BLANK = 32
_BLOCK_BYTES = 1 << 19
_BLOCK_NUMBERS = 1 << 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One text a row.

    Attributes:
        cells: shape (n, bytes), UTF-8 with NULs anywhere between.
        lengths: shape (n,), in characters.
        odd: row → text, for rows that hold `ODD`.
    """

    cells: Cells
    lengths: Ints
    odd: dict[int, str]

    def width(self, title: str, at_most: int = 200) -> int:
        """What the column takes on paper; longer texts than `at_most` stick out."""
        return min(at_most, max(len(title), int(self.lengths.max(initial=0))))


def coded(texts: Sequence[str], codes: npt.NDArray[np.integer]) -> Column:
    """`texts[code]` for every code."""
    table = np.array([text.encode() for text in texts] or [b""], dtype=np.bytes_)
    lengths = np.array([len(text) for text in texts] or [0], np.int64)
    return Column(cells=_bytes_of(table[codes]), lengths=lengths[codes], odd={})


def numbers(values: npt.NDArray[np.integer], *, zero: str = "0") -> Column:
    """In decimal, values ≥ 0; `zero`: another letter for 0."""
    rows, width = len(values), len(str(int(values.max(initial=0))))
    cells = np.zeros((rows, width), np.uint8)
    lengths = np.ones(rows, np.int64)
    for begin in range(0, rows, _BLOCK_NUMBERS):
        these = slice(begin, begin + _BLOCK_NUMBERS)
        left: npt.NDArray[np.integer] = values[these].astype(np.uint32 if width < 10 else np.uint64)
        for at in range(width - 1, -1, -1):
            rest = left // 10
            digit = left - rest * 10 + 48
            if at < width - 1:
                there = left > 0
                digit *= there
                lengths[these] += there
            cells[these, at] = digit
            left = rest
    cells[values == 0, -1] = ord(zero)
    return Column(cells=cells, lengths=lengths, odd={})


def joined(*parts: Column) -> Column:
    """Side by side. At most one part may be odd in a row."""
    odd: dict[int, str] = {}
    for part in parts:
        odd.update(part.odd)
    cells = np.concatenate([part.cells for part in parts], axis=1)
    return Column(cells=cells, lengths=np.sum([part.lengths for part in parts], axis=0), odd=odd)


def constant(text: str, rows: int) -> Column:
    return coded([text], np.zeros(rows, np.intp))


def replaced(column: Column, texts: dict[int, str]) -> Column:
    """With other texts in some rows: there is one `ODD` a text, none where it is empty."""
    if not texts:
        return column
    rows = np.fromiter(texts, np.intp, len(texts))
    cells = column.cells if column.cells.shape[1] else np.zeros((len(column.lengths), 1), np.uint8)
    cells, lengths = cells.copy(), column.lengths.copy()
    lengths[rows] = np.fromiter(map(len, texts.values()), np.int64, len(texts))
    cells[rows] = 0
    cells[rows, 0] = np.where(lengths[rows] > 0, ODD, 0)
    return Column(cells=cells, lengths=lengths, odd={row: text for row, text in texts.items() if text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a column stands on the line.

    Attributes:
        width: characters it is filled up to with blanks, before the text where it stands `right`.
        behind: the letter behind it; empty: none.
        unless: shape (n,), rows without these blanks and letter.
    """

    column: Column
    width: int = 0
    right: bool = False
    behind: str = ""
    unless: npt.NDArray[np.bool_] | None = None


def lines(places: Sequence[Place]) -> str:
    """The columns side by side, a line break behind each row."""
    return b"".join(blocks(places)).decode()


def blocks(places: Sequence[Place]) -> Iterator[bytes]:
    """The same, some hundred KiB of UTF-8 at a time: a whole text in memory would be copied again and again."""
    rows = len(places[0].column.lengths)
    # What each text lacks, as a row of this table.
    blanks = [_blanks(max(0, place.width - int(place.column.lengths.min(initial=place.width)))) for place in places]
    width = sum(
        table.shape[1] + place.column.cells.shape[1] + len(place.behind)
        for place, table in zip(places, blanks, strict=True)
    )
    odd = sorted((row, at) for at, place in enumerate(places) for row in place.column.odd)
    odd_rows = [row for row, _ in odd]
    # A block stays in the processor's cache from its making to its reading.
    step = max(1, min(rows, _BLOCK_BYTES // (width + 1)))
    buffer = bytearray(step * (width + 1))
    block = np.frombuffer(buffer, np.uint8).reshape(step, width + 1)
    block[:, -1] = ord("\n")
    for begin in range(0, rows, step):
        these = slice(begin, min(begin + step, rows))
        count, at = these.stop - begin, 0
        for place, table in zip(places, blanks, strict=True):
            missing = np.maximum(place.width - place.column.lengths[these], 0)
            if place.unless is not None:
                missing[place.unless[these]] = 0
            parts = [place.column.cells[these], table[missing]]
            for part in reversed(parts) if place.right else parts:
                block[:count, at : at + part.shape[1]] = part
                at += part.shape[1]
            if place.behind:
                letter = ord(place.behind)
                block[:count, at] = letter if place.unless is None else np.where(place.unless[these], 0, letter)
                at += 1
        text = (buffer if count == step else buffer[: count * (width + 1)]).translate(None, b"\0")
        here = odd[bisect_left(odd_rows, these.start) : bisect_left(odd_rows, these.stop)]
        yield _with_odd(text, [places[at].column.odd[row] for row, at in here]) if here else bytes(text)


def _with_odd(text: bytearray, odd: list[str]) -> bytes:
    """With the texts put in where `ODD` stands for them."""
    pieces: list[bytes | bytearray] = [b""] * (2 * len(odd) + 1)
    pieces[::2] = text.split(bytes([ODD]))
    pieces[1::2] = [each.encode("utf-8", "backslashreplace") for each in odd]
    return b"".join(pieces)


def _blanks(most: int) -> Cells:
    """Shape (most + 1, most): a row for each number of blanks."""
    return np.tri(most + 1, most, -1, np.uint8) * np.uint8(_BLANK)


def _bytes_of(texts: npt.NDArray[np.bytes_]) -> Cells:
    """Shape (n, longest): a text a row."""
    return np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), -1)
