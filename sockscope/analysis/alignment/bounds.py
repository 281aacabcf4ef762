"""Between which bounds an offset must lie, if causality is to hold; robust against a few that are wrong.

An offset is what is to be added to the capture's times. What arrived had arrived when the call that tells of it
returned: no offset above `return - packet`. What was sent was sent after the call that did it was entered: none below
`entry - packet`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

OUTLIERS = 0.01
"""Share of talks on each side that may contradict the rest (a wrong join, a lost packet)."""
_FEW = 10
"""Of fewer talks none is left out beforehand."""
_NEAR_NS = 10_000_000
_AGREEING = 0.8
"""Share of the bounds that must hold, or they tell nothing."""
DRIFT_SPAN_NS = 60_000_000_000
"""In less time a drift is not told from noise."""
_QUICK_NS, _SLOW_NS = 1_000_000, 1_000_000_000
"""How long the quickest of many, and one alone, may have taken where nothing tells."""
_DRIFT_POINTS = 20
_DRIFT_LIMIT = 1e-3
"""Quartz is a thousand times better than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Upper and lower bounds: shape (n,) each.

    Attributes:
        talk: whose.
        at_ns: the packet's time.
        offset_ns: the bound.
    """

    talk: Ints
    at_ns: Ints
    offset_ns: Ints

    def __len__(self) -> int:
        return len(self.talk)

    def less(self, base: Ints) -> Bounds:
        """With so much taken off each."""
        return Bounds(talk=self.talk, at_ns=self.at_ns, offset_ns=self.offset_ns - base)

    def of(self, kept: npt.NDArray[np.bool_]) -> Bounds:
        """Those of the talks that are kept: shape (talks,)."""
        mine = kept[self.talk]
        return Bounds(talk=self.talk[mine], at_ns=self.at_ns[mine], offset_ns=self.offset_ns[mine])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """offset(t) = offset_ns + slope * (t - at_ns), t the packet's time; the truth lies between the two distances.

    Attributes:
        below_ns, above_ns: how far the truth may lie below and above, anywhere in the capture.
        one_sided: there were bounds on one side only.
    """

    offset_ns: int
    below_ns: int
    above_ns: int
    slope: float = 0.0
    at_ns: int = 0
    one_sided: bool = False

    @property
    def uncertainty_ns(self) -> int:
        return max(self.below_ns, self.above_ns)

    def at_zero(self, spare_ns: int = 0) -> Fit:
        """The same bounds told from no offset, where they hold it: clocks that may be one are one.

        Args:
            spare_ns: they need not hold it if they do when widened by so much.
        """
        below_ns, above_ns = self.below_ns - self.offset_ns, self.offset_ns + self.above_ns
        if self.slope or min(below_ns, above_ns) < -spare_ns:
            return self
        below_ns, above_ns = (each if each >= 0 else spare_ns for each in (below_ns, above_ns))
        return replace(self, offset_ns=0, below_ns=below_ns, above_ns=above_ns)

    def offsets(self, packet_ns: Ints) -> Ints:
        """The offset at each packet's time."""
        drifted: Ints = self.offset_ns + np.rint((packet_ns - self.at_ns) * self.slope).astype(np.int64)
        return drifted


def fit(upper: Bounds, lower: Bounds, talks: int) -> Fit | None:
    """The offset within all bounds but for outliers; with a drift, where only that fits.

    Args:
        upper, lower: no offset above, none below. One of them may be empty.
        talks: how many there are; talk ids are below.

    Returns:
        None where the bounds contradict each other.
    """
    if not len(upper) and not len(lower):
        return None
    most, least = _tightest(upper, np.minimum), _tightest(lower, np.maximum)
    low, high = room(upper, lower)
    if high is None or low is None:
        return _one_sided(most, high) if high is not None else _one_sided(least, low)
    if low <= high:
        constant, line = _between(low, high), _drifting(upper, lower, talks)
        if line is None:
            return constant
        # A drift too small to be told may still be there.
        times = np.concatenate([upper.at_ns, lower.at_ns])
        apart = line.offsets(np.array([times.min(), times.max()])) - constant.offset_ns
        return replace(
            constant,
            below_ns=max(constant.below_ns, line.below_ns - int(apart.min())),
            above_ns=max(constant.above_ns, line.above_ns + int(apart.max())),
        )
    return _drifting(upper, lower, talks) or _most_agree(most, least)


def room(upper: Bounds, lower: Bounds) -> tuple[int | None, int | None]:
    """The highest lower and the lowest upper bound, but for outliers; None: there are none."""
    high = _nth(np.sort(_tightest(upper, np.minimum)), False)
    low = _nth(np.sort(_tightest(lower, np.maximum)), True)
    return low, high


def _one_sided(bounds: Ints, tightest: int | None) -> Fit | None:
    """Nothing bounds it on the other side but that programs are not always slow: the least delay of many is small."""
    if tightest is None:
        return None
    usual = abs(int(np.median(bounds)) - tightest)
    room = max(usual, _QUICK_NS) if len(bounds) >= _FEW else _SLOW_NS
    return Fit(offset_ns=tightest, below_ns=room, above_ns=room, one_sided=True)


def _between(low: int, high: int) -> Fit:
    middle = (low + high) // 2
    return Fit(offset_ns=middle, below_ns=middle - low, above_ns=high - middle)


def _tightest(bounds: Bounds, pick: np.ufunc) -> Ints:
    """Each talk's: shape (talks that have any,)."""
    if not len(bounds):
        return np.zeros(0, np.int64)
    order = np.argsort(bounds.talk, kind="stable")
    starts = np.flatnonzero(np.diff(bounds.talk[order], prepend=-1))
    found: Ints = pick.reduceat(bounds.offset_ns[order], starts)
    return found


def _nth(ordered: Ints, last: bool) -> int | None:
    """The tightest but for outliers."""
    if not len(ordered):
        return None
    skipped = int(np.ceil(OUTLIERS * len(ordered))) if len(ordered) >= _FEW else 0
    return int(ordered[-1 - skipped] if last else ordered[skipped])


def _most_agree(most: Ints, least: Ints) -> Fit | None:
    """Where most bounds hold."""
    most, least = np.sort(most), np.sort(least)
    edges = np.unique(np.concatenate([most, least]))
    holding = len(most) - np.searchsorted(most, edges) + np.searchsorted(least, edges, "right")
    best = int(holding.max())
    if best < _AGREEING * (len(most) + len(least)):
        gap = int(least[-1] - most[0])
        # Of a few, which is wrong is not to be told; by little, each may be.
        return _between(int(most[0]) - gap, int(least[-1]) + gap) if gap <= _NEAR_NS else None
    where = np.flatnonzero(holding == best)
    low, high = int(edges[where[0]]), int(edges[where[-1]])
    # What contradicts the rest by little is as right as they are (times summed up from rounded steps, a clock that
    # is being set); by much, it is another connection's.
    over, under = high - most[most < high], least[least > low] - low
    near = [int(part.max()) for each in (over, under) if len(part := each[each <= _NEAR_NS])]
    return _between(low - max(near, default=0), high + max(near, default=0))


def _drifting(upper: Bounds, lower: Bounds, talks: int) -> Fit | None:
    """A line within all bounds but for outliers."""
    begins = int(min(upper.at_ns.min(), lower.at_ns.min()))
    ends = int(max(upper.at_ns.max(), lower.at_ns.max()))
    if ends - begins < DRIFT_SPAN_NS or len(upper) + len(lower) < _DRIFT_POINTS:
        return None
    middle = (begins + ends) // 2
    base = int(np.median(np.concatenate([upper.offset_ns, lower.offset_ns])))
    rough = _rough_slope(upper, lower, middle)
    if rough is None:
        return None
    flat_upper = upper.less(base + np.rint((upper.at_ns - middle) * rough).astype(np.int64))
    flat_lower = lower.less(base + np.rint((lower.at_ns - middle) * rough).astype(np.int64))
    kept = _without_outliers(flat_upper, flat_lower, talks)
    flat_upper, flat_lower = flat_upper.of(kept), flat_lower.of(kept)
    if not len(flat_upper) or not len(flat_lower):
        return None
    return _line(flat_upper, flat_lower, middle, base, rough, (begins, ends))


def _rough_slope(upper: Bounds, lower: Bounds, middle: int) -> float | None:
    """From the tightest bounds of each stretch of time: the median of the slopes between stretches."""
    stretches = 32
    begins = int(min(upper.at_ns.min(), lower.at_ns.min()))
    width = (int(max(upper.at_ns.max(), lower.at_ns.max())) - begins) // stretches + 1
    found = []
    for bounds, share in ((upper, 0.1), (lower, 0.9)):
        stretch = (bounds.at_ns - begins) // width
        points = []
        for at in np.unique(stretch).tolist():
            here = bounds.offset_ns[stretch == at]
            points.append((begins + at * width + width // 2 - middle, float(np.quantile(here, share))))
        table = np.array(points, np.float64)
        first, second = np.triu_indices(len(table), 1)
        run = table[second, 0] - table[first, 0]
        found.append((table[second, 1] - table[first, 1]) / run)
    slopes = np.concatenate(found)
    if not len(slopes):
        return None
    slope = float(np.median(slopes))
    return slope if abs(slope) <= _DRIFT_LIMIT else None


def _without_outliers(upper: Bounds, lower: Bounds, talks: int) -> npt.NDArray[np.bool_]:
    """Which talks to keep, the drift taken off: shape (talks,)."""
    kept = np.ones(talks, np.bool_)
    most, least = np.full(talks, np.iinfo(np.int64).max), np.full(talks, np.iinfo(np.int64).min)
    np.minimum.at(most, upper.talk, upper.offset_ns)
    np.maximum.at(least, lower.talk, lower.offset_ns)
    for values, last in ((most, False), (least, True)):
        known = np.flatnonzero(np.abs(values.astype(np.float64)) < 2**62)
        if len(known) >= _FEW:
            ordered = known[np.argsort(values[known])]
            skipped = int(np.ceil(OUTLIERS * len(known)))
            kept[ordered[-skipped:] if last else ordered[:skipped]] = False
    return kept


def _line(upper: Bounds, lower: Bounds, middle: int, base: int, rough: float, span: tuple[int, int]) -> Fit | None:
    """The line with the most room around it, and how far others that fit lie from it.

    The room is a concave function of the slope: it is looked for on a grid that grows finer.
    """
    above = _hull(upper.at_ns - middle, upper.offset_ns)
    below = _hull(lower.at_ns - middle, -lower.offset_ns)
    reach = _DRIFT_LIMIT
    best = 0.0
    for _ in range(12):
        slopes = best + np.linspace(-reach, reach, 201)
        best = float(slopes[int(np.argmax(np.subtract(*_room(above, below, slopes))))])
        reach /= 10
        if reach * (span[1] - span[0]) < 1:
            break
    high, low = _room(above, below, np.array([best]))
    if high[0] < low[0]:
        return None
    offset = (high[0] + low[0]) / 2
    ends = np.array([span[0] - middle, span[1] - middle], np.float64)
    over = under = 0.0
    # All slopes that fit: the widest deviation is at one of the ends.
    widest = 2 * (high[0] - low[0] + 1) / max(ends[1] - ends[0], 1)
    for _ in range(20):
        slopes = best + np.linspace(-widest, widest, 2001)
        highs, lows = _room(above, below, slopes)
        good = highs >= lows
        if not (good[0] or good[-1]):
            break
        widest *= 2
    for at in ends:
        line = offset + best * at
        over = max(over, float((highs[good] + slopes[good] * at).max(initial=line) - line))
        under = max(under, float(line - (lows[good] + slopes[good] * at).min(initial=line)))
    return Fit(
        offset_ns=base + round(offset),
        below_ns=int(np.ceil(under)) + 1,
        above_ns=int(np.ceil(over)) + 1,
        slope=rough + best,
        at_ns=middle,
    )


def _room(above: Floats, below: Floats, slopes: Floats) -> tuple[Floats, Floats]:
    """Highest and lowest offset at the middle, for each slope."""
    high = (above[:, 1][:, None] - slopes[None, :] * above[:, 0][:, None]).min(axis=0)
    low = (-below[:, 1][:, None] - slopes[None, :] * below[:, 0][:, None]).max(axis=0)
    return high, low


def _hull(at: Ints, values: Ints) -> Floats:
    """The lower convex hull: only its points can be the tightest bound, whatever the slope. Shape (k, 2)."""
    order = np.lexsort((values, at))
    at, values = at[order], values[order]
    first = np.append(True, at[1:] != at[:-1])
    at, values = at[first], values[first]
    if len(at) > 4096:
        # The least of each stretch, and nothing else, can be on the hull but for a hair.
        starts = np.unique(np.linspace(0, len(at) - 1, 4096).astype(np.int64))
        least = np.minimum.reduceat(values, starts)
        stretch = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(at))))
        chosen = np.flatnonzero(values == least[stretch])
        at, values = at[chosen], values[chosen]
    points: list[tuple[int, int]] = []
    for one in zip(at.tolist(), values.tolist(), strict=True):
        while len(points) > 1 and _not_below(points[-2], points[-1], one):
            points.pop()
        points.append(one)
    return np.array(points, np.float64)


def _not_below(first: tuple[int, int], second: tuple[int, int], third: tuple[int, int]) -> bool:
    """The second lies on or above the line between the others."""
    return (second[1] - first[1]) * (third[0] - first[0]) >= (third[1] - first[1]) * (second[0] - first[0])
