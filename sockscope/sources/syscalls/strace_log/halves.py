"""Calls that strace printed in two halves, joined in bulk.

While several threads run, most calls of a busy server come as `recvfrom(5,  <unfinished ...>` and
`<... recvfrom resumed>"GET…) = 51`. Where the second half is the next line of its thread in the same chunk,
nothing needs to be remembered; all others go through `odd_lines`, which reads the same out of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.sources.syscalls.strace_log.prefix import Lines

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_UNFINISHED_BYTES = len(b" <unfinished ...>")
_RESUMED = b" resumed>"
_RESUMING = b"<... "
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Pairs:
    """Calls joined: shape (k,) each. `first` and `second`: their lines; `texts`: what they make together."""

    first: Ids
    second: Ids
    texts: list[bytes]


def in_order_of(numbers: Ids) -> Ids:
    """Rows sorted by a number, those of the same number in their order: shape (n,)."""
    if not len(numbers):
        return np.zeros(0, np.int64)
    low, high = int(numbers.min()), int(numbers.max())
    if high - low < 1 << 16:
        # Radix sort; five times as fast as the merge sort of wide integers.
        return np.argsort((numbers - low).astype(np.uint16), kind="stable")
    return np.argsort(numbers, kind="stable")


def join_halves(data: bytes, chunk: npt.NDArray[np.uint8], lines: Lines, tid: Ids, candidates: Flags) -> Pairs:
    """Pairs of lines that are one call.

    Args:
        data, chunk: the bytes, `chunk` with zeros behind.
        tid: the thread of each line, shape (n,).
        candidates: lines that hold something and nothing special, shape (n,).
    """
    at, end = lines.at, lines.end
    last = np.maximum(end - 1, 0)
    tail = np.maximum(end - _UNFINISHED_BYTES, 0)
    first_byte = chunk[np.minimum(at, len(chunk) - 1)]
    cut = (chunk[last] == 0x3E) & (chunk[np.maximum(end - 2, 0)] == 0x2E)  # `...>`
    begins = cut & (end - at > _UNFINISHED_BYTES) & (first_byte >= 0x61) & (first_byte <= 0x7A)
    begins &= (chunk[tail] == 0x20) & (chunk[tail + 1] == 0x3C) & (chunk[tail + 2] == 0x75)  # ` <u`
    ends = ~cut & (first_byte == 0x3C) & (chunk[np.minimum(at + 1, len(chunk) - 1)] == 0x2E) & candidates
    filled = np.flatnonzero(end > at)
    by_thread = filled[in_order_of(tid[filled])]
    before, after = by_thread[:-1], by_thread[1:]
    paired = (begins & candidates)[before] & ends[after] & (tid[before] == tid[after])
    first, second = before[paired], after[paired]
    if not len(first):
        return Pairs(first, second, [])
    size, good = _same_names(chunk, at[first], at[second] + len(_RESUMING))
    # `<... recvfrom resumed>`, and a blank behind it before strace 5.
    rest = at[second] + len(_RESUMING) + size + len(_RESUMED)
    good &= (rest <= end[second]) & (chunk[np.minimum(rest, len(chunk)) - 1] == 0x3E)
    rest += chunk[np.minimum(rest, len(chunk) - 1)] == 0x20
    following = chunk[np.minimum(rest, len(chunk) - 1)]
    good &= (following != 0x20) & (following != 0x3C) & (rest <= end[second])
    first, second = first[good], second[good]
    columns = (at[first], tail[first], rest[good], end[second])
    texts = [data[a:b] + data[c:d] for a, b, c, d in zip(*(column.tolist() for column in columns), strict=True)]
    return Pairs(first, second, texts)


def _same_names(chunk: npt.NDArray[np.uint8], one: Ids, other: Ids) -> tuple[Ids, Flags]:
    """How long the names that begin at `one` (up to a bracket) and `other` (up to a blank) are; whether they agree."""
    size = np.zeros(len(one), np.int64)
    good = np.zeros(len(one), np.bool_)
    live = np.arange(len(one))
    for place in range(_LONGEST_NAME):
        left = chunk[np.minimum(one[live] + place, len(chunk) - 1)]
        right = chunk[np.minimum(other[live] + place, len(chunk) - 1)]
        ended = live[(left == 0x28) & (right == 0x20)]
        good[ended] = True
        size[ended] = place
        live = live[(left == right) & (left != 0x20)]
        if not len(live):
            break
    return size, good
