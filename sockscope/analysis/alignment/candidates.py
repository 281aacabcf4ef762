"""Which end of which flow may be which connection of the log: by addresses alone, irrespective of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.sides import Sides
from sockscope.analysis.alignment.talks import Key, Talks
from sockscope.analysis.wire.columns import NEVER

Ints = npt.NDArray[np.int64]

PAIR_LIMIT = 2_000_000
"""So many pairs are looked at; more add nothing."""
NO_KEY = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Moments that both tell of, which may be one: those of equal key.

    Attributes:
        talk, talk_key, talk_ns: shape (n,), of the log.
        side, side_key, side_ns: shape (m,), of the capture, in order of (key, time).
        exact: the key names one connection at a time.
    """

    talk: Ints
    talk_key: Ints
    talk_ns: Ints
    side: Ints
    side_key: Ints
    side_ns: Ints
    exact: bool

    def differences(self) -> tuple[Ints, Ints]:
        """Log minus capture, of all pairs of equal key (of a sample, where those are too many), and their talks."""
        low = np.searchsorted(self.side_key, self.talk_key)
        count = np.searchsorted(self.side_key, self.talk_key, "right") - low
        # What has few candidates says most. Among equals, a sample from all over.
        by_count = np.lexsort((np.random.default_rng(0).permutation(len(count)), count))
        within = by_count[np.cumsum(count[by_count]) <= PAIR_LIMIT]
        talks, sides = expanded(within, low[within], count[within])
        return self.talk_ns[talks] - self.side_ns[sides], self.talk[talks]

    def between(self, least: int, most: int) -> tuple[Ints, Ints, Ints]:
        """Pairs whose difference lies within: talks, sides, differences; shape (k,) each."""
        if not len(self.talk) or not len(self.side):
            return (np.zeros(0, np.int64),) * 3
        begin = min(int(self.side_ns.min()), int(self.talk_ns.min()) - most)
        span = max(int(self.side_ns.max()), int(self.talk_ns.max()) - least) - begin + 2
        if span > (1 << 62) // (int(max(self.talk_key.max(), self.side_key.max())) + 2):
            # Years apart: in units that leave room. The bounds are checked again below.
            unit = span // ((1 << 62) // (int(max(self.talk_key.max(), self.side_key.max())) + 2)) + 1
        else:
            unit = 1
        place = self.side_key * (span // unit + 2) + (self.side_ns - begin) // unit
        base = self.talk_key * (span // unit + 2)
        low = np.searchsorted(place, base + (self.talk_ns - most - begin) // unit)
        high = np.searchsorted(place, base + (self.talk_ns - least - begin) // unit, "right")
        count = np.maximum(high - low, 0)
        by_count = np.argsort(count, kind="stable")
        within = by_count[np.cumsum(count[by_count]) <= PAIR_LIMIT]
        talks, sides = expanded(within, low[within], count[within])
        apart = self.talk_ns[talks] - self.side_ns[sides]
        good = (apart >= least) & (apart <= most)
        return self.talk[talks[good]], self.side[sides[good]], apart[good]


def expanded(rows: Ints, low: Ints, count: Ints) -> tuple[Ints, Ints]:
    """Each row with each of the `count` places from `low` on."""
    total = int(count.sum())
    starts = np.cumsum(count) - count
    return np.repeat(rows, count), np.repeat(low - starts, count) + np.arange(total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Connections numbered by what the log tells of their ends.

    Attributes:
        exact: it tells the peer; else the served port alone.
        talk_key: shape (talks,), NO_KEY: not among them, or no flow is like it. side_key: shape (sides,).
    """

    exact: bool
    talk_key: Ints
    side_key: Ints


def namings(talks: Talks, sides: Sides) -> list[Naming]:
    """One for each shape of what the log tells, the fullest first."""
    shapes = [(bool(key[0]), bool(key[1]), bool(key[2])) for key in talks.keys]
    found = []
    for shape in sorted(set(shapes), reverse=True):
        if not shape[0] and not shape[2]:
            continue
        numbers: dict[Key, int] = {}
        side_key = np.array([numbers.setdefault(key, len(numbers)) for key in sides.keys(shape)], np.int64)
        pairs = zip(talks.keys, shapes, strict=True)
        talk_key = np.array([numbers.get(key, NO_KEY) if one == shape else NO_KEY for key, one in pairs], np.int64)
        if not shape[0]:
            # What moved tells them apart, where all of it was seen.
            talk_key, side_key = _with_sizes(talk_key, side_key, talks, sides)
        found.append(Naming(exact=shape[0], talk_key=talk_key, side_key=side_key))
    return found


def moments(talks: Talks, sides: Sides, named: list[Naming]) -> list[Moments]:
    """All moments that may be matched: beginnings, and ends."""
    found = []
    for naming in named:
        talk_key, side_key, exact = naming.talk_key, naming.side_key, naming.exact
        is_server = np.arange(len(sides)) & 1 == 1
        for talk_ns, side_ns in (
            (talks.accepted_ns, np.where(is_server, sides.opened_ns, NEVER)),
            (talks.connecting_ns, np.where(is_server, NEVER, sides.syn_ns)),
            (talks.closing_ns, sides.our_fin_ns),
            (talks.told_end_ns, sides.their_fin_ns),
        ):
            ours = np.flatnonzero((talk_key >= 0) & (talk_ns != NEVER))
            theirs = np.flatnonzero(side_ns != NEVER)
            theirs = theirs[np.lexsort((side_ns[theirs], side_key[theirs]))]
            if len(ours) and len(theirs):
                found.append(
                    Moments(
                        talk=ours,
                        talk_key=talk_key[ours],
                        talk_ns=talk_ns[ours],
                        side=theirs,
                        side_key=side_key[theirs],
                        side_ns=side_ns[theirs],
                        exact=exact,
                    )
                )
    return found


def _with_sizes(talk_key: Ints, side_key: Ints, talks: Talks, sides: Sides) -> tuple[Ints, Ints]:
    columns = np.concatenate(
        [
            np.stack([talk_key, talks.read_bytes, talks.written_bytes], axis=1),
            np.stack([side_key, sides.received_bytes, sides.sent_bytes], axis=1),
        ]
    )
    _, number = np.unique(columns, axis=0, return_inverse=True)
    number = number.reshape(-1).astype(np.int64)
    return np.where(talk_key >= 0, number[: len(talk_key)], NO_KEY), number[len(talk_key) :]
