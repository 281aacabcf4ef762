"""The offset that repeats: of all differences between what may be one, those of what is one agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

WIDTHS_NS = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000)
"""How far apart agreeing differences may lie: a program takes its time, and clocks drift."""
_AROUND = 10
"""So many widths on either side tell how many lie together by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where differences lie most densely.

    Attributes:
        least_ns, most_ns: the differences within.
        votes: how many voters have one there.
        chance: how many would lie there by chance.
    """

    least_ns: int
    most_ns: int
    votes: int
    chance: float

    @property
    def weight(self) -> float:
        """By how many standard deviations it stands out."""
        return float((self.votes - self.chance) / np.sqrt(self.chance + 1))


def densest(differences: Ints, voters: Ints) -> Cluster | None:
    """The cluster that stands out most; the narrowest of equals. None: there are no differences.

    Args:
        differences: shape (n,), ns.
        voters: shape (n,), who has it: several of one voter in one place count once.
    """
    if not len(differences):
        return None
    order = np.argsort(differences, kind="stable")
    values = differences[order]
    best: Cluster | None = None
    for width in WIDTHS_NS:
        until = np.searchsorted(values, values + width, "right")
        at = int(np.argmax(until - np.arange(len(values))))
        end = int(until[at])
        low, high = np.searchsorted(values, [values[at] - _AROUND * width, values[at] + (_AROUND + 1) * width])
        around = int(high - low) - (end - at)
        found = Cluster(
            least_ns=int(values[at]),
            most_ns=int(values[end - 1]),
            votes=len(np.unique(voters[order[at:end]])),
            chance=around / (2 * _AROUND),
        )
        if best is None or found.weight > 1.05 * best.weight:
            best = found
    return best
