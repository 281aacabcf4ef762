"""Which bytes of a stream were seen when: where a capture has holes, highest numbers do not tell.

The stream of each sender is cut at every segment's ends; of each piece the first segment that brought it is found,
by doubling: a segment that covers n pieces covers two runs of 2**k of them, and what covers a run covers its halves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sockscope.analysis.wire.columns import Ints, Mask

UNSEEN = np.int64(2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Columns of shape (pieces,): in order of sender and of place in its stream.

    Attributes:
        sender: whose. start, stop: offsets in its stream.
        first: the number of the segment that first brought it; UNSEEN where none did.
    """

    sender: Ints
    start: Ints
    stop: Ints
    first: Ints


def first_seen(sender: Ints, start: Ints, stop: Ints, number: Ints, cuts: tuple[Ints, Ints]) -> Pieces:
    """Cut streams into pieces, and tell who brought each first.

    Args:
        sender: shape (n,), of each segment. start, stop: shape (n,), its offsets, start < stop.
        number: shape (n,), increasing with time, and so are the rows of a sender.
        cuts: senders and offsets: where else to cut, for bytes that are known to be there though nobody saw them.
    """
    senders = np.concatenate((sender, sender, cuts[0]))
    offsets = np.concatenate((start, stop, cuts[1]))
    order = np.lexsort((offsets, senders))
    senders, offsets = senders[order], offsets[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (senders[1:] != senders[:-1]) | (offsets[1:] != offsets[:-1])
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(new) - 1
    senders, offsets = senders[new], offsets[new]
    first = _earliest(place[: len(start)], place[len(start) : 2 * len(start)], number, len(senders))
    whole = np.flatnonzero(senders[1:] == senders[:-1])
    return Pieces(sender=senders[whole], start=offsets[whole], stop=offsets[whole + 1], first=first[whole])


def _earliest(low: Ints, high: Ints, number: Ints, count: int) -> Ints:
    """Of each of `count` pieces the smallest number among the ranges [low, high) over it."""
    level = np.frexp((high - low).astype(np.float64))[1].astype(np.int64) - 1
    found = np.full(count, UNSEEN)
    for power in range(int(level.max(initial=0)), -1, -1):
        size = 1 << power
        mine = np.flatnonzero(level == power)
        np.minimum.at(found, low[mine], number[mine])
        np.minimum.at(found, high[mine] - size, number[mine])
        if power:
            half = size >> 1
            narrowed = found.copy()
            np.minimum(narrowed[half:], found[: count - half], out=narrowed[half:])
            found = narrowed
    return found


def brought(pieces: Pieces, below: Ints) -> Ints:
    """Numbers of the segments that brought something new below the offsets `below`, shape (numbers,), each once."""
    seen = pieces.first < UNSEEN
    number = pieces.first[seen]
    late: Mask = pieces.start[seen] < below[number]
    found: Ints = np.unique(number[late])
    return found
