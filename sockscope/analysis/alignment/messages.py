"""Connections that neither log nor capture saw begin: matched by what was moved on them, message by message.

Where in the stream such a connection stands is not known. But a read and the segment that brought it are most often
of one size, and their difference in time is that of all others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.candidates import NO_KEY, Moments, Naming
from sockscope.analysis.alignment.sides import Sides
from sockscope.analysis.alignment.talks import Moves, Talks
from sockscope.analysis.wire.columns import NEVER

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NO_BASE = np.iinfo(np.int64).min
_LEAST_VOTES = 2


def message_moments(talks: Talks, sides: Sides, naming: Naming, wanted: Mask) -> list[Moments]:
    """Reads and the segments that may have brought them, writes and those that may carry them.

    Args:
        naming: an exact one.
        wanted: shape (talks,), those to look at.

    Returns:
        Their `talk` is a row of `talks.reads` (the first) or `talks.writes` (the second), their `side` a segment of
        `sides.carried`.
    """
    keys = np.where(wanted, naming.talk_key, NO_KEY)
    carried = sides.carried
    return [
        _same_size(talks.reads, keys, naming.side_key[carried.direction ^ 1], sides),
        _same_size(talks.writes, keys, naming.side_key[carried.direction], sides),
    ]


def _same_size(moves: Moves, talk_key: Ints, segment_key: Ints, sides: Sides) -> Moments:
    """Moments of equal key and size."""
    rows = np.flatnonzero((talk_key[moves.talk] >= 0) & (moves.when != NEVER))
    segments = np.flatnonzero(np.isin(segment_key, np.unique(talk_key[moves.talk[rows]])))
    ours = np.stack([talk_key[moves.talk[rows]], moves.count[rows]], axis=1)
    theirs = np.stack([segment_key[segments], sides.carried.size[segments]], axis=1)
    _, number = np.unique(np.concatenate([ours, theirs]), axis=0, return_inverse=True)
    number = number.reshape(-1).astype(np.int64)
    side_key, when = number[len(rows) :], sides.carried.when[segments]
    order = np.lexsort((when, side_key))
    return Moments(
        talk=rows,
        talk_key=number[: len(rows)],
        talk_ns=moves.when[rows],
        side=segments[order],
        side_key=side_key[order],
        side_ns=when[order],
        exact=True,
    )


def stream_bases(moves: Moves, sides: Sides, direction: Ints, least_ns: int, most_ns: int) -> Ints:
    """What to add to the places of a talk's moves to have those of the flow: shape (talks,), NO_BASE: not told.

    Args:
        moves: reads or writes.
        sides: the capture.
        direction: shape (talks,), which direction of which flow carries them; NO_KEY: none.
        least_ns, most_ns: how far the offset may lie.
    """
    bases = np.full(len(direction), NO_BASE, np.int64)
    near = _same_size(moves, direction, sides.carried.direction, sides)
    rows, segments, _ = near.between(least_ns, most_ns)
    if not len(rows):
        return bases
    shift = sides.carried.end[segments] - (moves.start[rows] + moves.count[rows])
    votes, count = np.unique(np.stack([moves.talk[rows], shift], axis=1), axis=0, return_counts=True)
    order = np.lexsort((count, votes[:, 0]))
    votes, count = votes[order], count[order]
    last = np.append(votes[1:, 0] != votes[:-1, 0], True)
    runner_up = np.append(0, count[:-1])
    runner_up[np.append(True, votes[1:, 0] != votes[:-1, 0])] = 0
    clear = last & (count >= _LEAST_VOTES) & (count > runner_up)
    bases[votes[clear, 0]] = votes[clear, 1]
    return bases
