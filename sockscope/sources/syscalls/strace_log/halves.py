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
    texts: list[bytes] = []
    good = np.ones(len(first), np.bool_)
    find = data.find
    columns = (at[first], tail[first], at[second], end[second])
    for number, (a, b, c, d) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        # `<... recvfrom resumed>`: the name begins five bytes in, and must be that of the first half.
        resumed = find(_RESUMED, c, d)
        size = resumed - c - 5
        rest = data[resumed + len(_RESUMED) : d].lstrip(b" ")
        if resumed < 0 or data[c + 5 : resumed] + b"(" != data[a : a + size + 1] or rest[:1] == b"<":
            good[number] = False
        else:
            texts.append(data[a:b] + rest)
    return Pairs(first[good], second[good], texts)
