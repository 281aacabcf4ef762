"""What the options of a SYN say (RFC 9293 section 3.2, RFC 7323 section 2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.sources.packets.frames import Ints
from sockscope.sources.packets.offsets import Bytes

_MOST_OPTION_BYTES = 40
_MOST_SHIFT = 14


def window_scales(data: Bytes, begin: Ints, header: Ints, end: Ints) -> npt.NDArray[np.int8]:
    """The window scale option (kind 3) of each SYN; shape (n,), -1 where there is none.

    Args:
        data: what the offsets point into.
        begin: shape (n,), where TCP begins. header: bytes of its header. end: where the captured bytes end.
    """
    scale = np.full(len(begin), -1, np.int8)
    at, stop = begin + 20, np.minimum(begin + header, end)
    rows = np.arange(len(begin))
    for _ in range(_MOST_OPTION_BYTES):
        inside = at < stop
        at, stop, rows = at[inside], stop[inside], rows[inside]
        if not len(at):
            break
        kind = data[at]
        long = (at + 1 < stop) & (kind > 1)
        size = np.where(long, data[np.where(long, at + 1, 0)], 1).astype(np.int64)
        found = (kind == 3) & (size == 3) & (at + 2 < stop)
        scale[rows[found]] = np.minimum(data[at[found] + 2], _MOST_SHIFT).astype(np.int8)
        # End of options, a length that cannot be, or found: this row is done.
        on = (kind != 0) & ~found & ((kind == 1) | (long & (size >= 2)))
        at, stop, rows = (at + size)[on], stop[on], rows[on]
    return scale
