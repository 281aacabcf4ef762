"""How far the clocks of two places are apart: no segment comes to one before it has passed the other.

Each direction's quickest segments bound the offset from one side. What is left open is the time that a segment needs
there and back, of which nobody can say how it is shared out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.bounds import Bounds, Fit, fit
from sockscope.analysis.alignment.clocks import resolution
from sockscope.analysis.alignment.places.place import FEWEST, Place, common

Ints = npt.NDArray[np.int64]

_SLOWEST_PATH_NS = 1_000_000_000
"""What differs by more is no path's delay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """Two places that have segments in common, each once.

    Attributes:
        segments: how many. connections: of how many.
        here, there: shape (segments,), their places in the two tables.
        outward: shape (segments,), 1: they go from the first place to the second, 0: the other way, -1: nothing tells.
        fit: what to add to the second place's times; None: they contradict each other.
    """

    here: Ints
    there: Ints
    connections: int
    outward: npt.NDArray[np.int8]
    fit: Fit | None

    @property
    def segments(self) -> int:
        return len(self.here)


def between(one: Place, other: Place, when: Ints) -> Between | None:
    """Compare two places.

    Args:
        one, other: the places.
        when: shape (n,), the times of the first place's table, by the clock that the second one's are to get.

    Returns:
        None where they have nothing in common.
    """
    here, there = common(one, other)
    if len(here) < FEWEST:
        return None
    at_ns = other.table.when[there]
    offset_ns = when[here] - at_ns
    flow = one.table.flow[here]
    outward = _outward(one, here, when[here], offset_ns)
    step = max(resolution(one.table.when[here]), resolution(at_ns))
    upper, lower = (
        Bounds(talk=flow[rows], at_ns=at_ns[rows], offset_ns=offset_ns[rows] + slack)
        for rows, slack in ((outward == 0, step), (outward == 1, -step))
    )
    both_ways = (outward >= 0).any()
    found = fit(upper, lower, one.flow_count) if both_ways else _one_way(flow, at_ns, offset_ns, one.flow_count)
    return Between(
        here=here,
        there=there,
        connections=len(np.unique(flow)),
        outward=outward,
        fit=found.at_zero() if found is not None else None,
    )


def _outward(one: Place, here: Ints, when: Ints, offset_ns: Ints) -> npt.NDArray[np.int8]:
    """Which way each segment goes. Of two directions, what goes out arrives later by the round trip between the places.

    Neighbours in time are compared, so that no drift matters, and all connections of two hosts together.
    """
    rows = one.table.order[here]
    source, destination = one.table.source[rows], one.table.destination[rows]
    way = source > destination
    shift = np.uint64(16)
    lower, higher = np.minimum(source, destination) >> shift, np.maximum(source, destination) >> shift
    _, first = np.unique(lower, return_inverse=True)
    _, pair = np.unique(first.reshape(-1) * (int(higher.max()) + 1) + higher.astype(np.int64), return_inverse=True)
    pair = pair.reshape(-1)
    order = np.lexsort((when, pair))
    before, after = order[:-1], order[1:]
    turns = (pair[before] == pair[after]) & (way[before] != way[after])
    before, after = before[turns], after[turns]
    ahead = np.sign(offset_ns[before] - offset_ns[after]) * np.where(way[before], 1, -1)
    count = int(pair.max()) + 1
    votes = np.bincount(pair[before], weights=ahead, minlength=count)[pair]
    told = np.bincount(pair[before], minlength=count)[pair] > 0
    # Who lags behind when it was seen at the first place goes out: its offset is the smaller one.
    return np.where(told, (votes > 0) != way, -1).astype(np.int8)


def _one_way(flow: Ints, at_ns: Ints, offset_ns: Ints, flows: int) -> Fit | None:
    """All go one way, and which is not known: what may be the path's delay is taken for that."""
    furthest = int(np.abs(offset_ns).max())
    if furthest <= _SLOWEST_PATH_NS:
        return Fit(offset_ns=0, below_ns=furthest, above_ns=furthest, one_sided=True)
    every = Bounds(talk=flow, at_ns=at_ns, offset_ns=offset_ns)
    none = Bounds(talk=flow[:0], at_ns=at_ns[:0], offset_ns=offset_ns[:0])
    return fit(every, none, flows)
