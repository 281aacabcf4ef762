"""Bounds of an offset: intersected, with outliers, with a drift."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.analysis.alignment.bounds import Bounds, Fit, fit

SECOND = 1_000_000_000


def bounds(values: npt.ArrayLike, at: npt.ArrayLike | None = None) -> Bounds:
    offsets = np.array(values, np.int64)
    times = np.zeros(len(offsets), np.int64) if at is None else np.array(at, np.int64)
    return Bounds(talk=np.arange(len(offsets)), at_ns=times, offset_ns=offsets)


def test_the_intersection() -> None:
    found = fit(bounds([90, 50, 70]), bounds([10, 30, -5]), 3)
    assert found is not None
    assert (found.offset_ns, found.below_ns, found.above_ns) == (40, 10, 10)


def test_one_wrong_of_five() -> None:
    found = fit(bounds([90, 50, 70, -(10**9), 80]), bounds([10, 30, -5, -(10**10), 0]), 5)
    assert found is not None
    assert (found.offset_ns, found.uncertainty_ns) == (40, 10)


def test_what_contradicts_by_little_widens() -> None:
    found = fit(bounds([50, 50, 50, 20, 50]), bounds([30, 30, 30, 10, 30]), 5)
    assert found is not None
    assert found.offset_ns - found.below_ns <= 20
    assert found.offset_ns + found.above_ns >= 50


def test_contradiction() -> None:
    assert fit(bounds([0, 10**9, 3 * 10**9]), bounds([5 * 10**8, 2 * 10**9, 4 * 10**9]), 3) is None


def test_nothing() -> None:
    assert fit(bounds([]), bounds([]), 0) is None


def test_one_side_only() -> None:
    found = fit(bounds(np.arange(100) * 1000), bounds([]), 100)
    assert found is not None
    assert found.one_sided
    assert found.uncertainty_ns == 1_000_000


@given(
    seed=st.integers(0, 2**32 - 1),
    ppm=st.floats(-200, 200),
    base=st.integers(-(10**17), 10**17),
    count=st.integers(20, 300),
    wrong=st.integers(0, 1),
)
def test_a_drift_within_what_is_said(seed: int, ppm: float, base: int, count: int, wrong: int) -> None:
    random = np.random.default_rng(seed)
    at = np.sort(random.integers(0, 1000 * SECOND, count))
    truth = base + np.rint(at * ppm / 1e6).astype(np.int64)
    upper = truth + random.integers(1_000, 100_000, count)
    lower = truth - random.integers(1_000, 100_000, count)
    if wrong:
        upper[count // 2] -= 3 * SECOND
    found = fit(bounds(upper, at), bounds(lower, at), count)
    assert found is not None
    apart = found.offsets(at) - truth
    assert apart.min() >= -found.above_ns
    assert apart.max() <= found.below_ns


@pytest.mark.parametrize("ppm", [5_000.0])
def test_no_quartz_is_that_bad(ppm: float) -> None:
    at = np.arange(100) * SECOND
    truth = np.rint(at * ppm / 1e6).astype(np.int64)
    assert fit(bounds(truth + 10, at), bounds(truth - 10, at), 100) is None


def test_clocks_that_may_be_one_are_one() -> None:
    near = Fit(offset_ns=-28_000, below_ns=26_000, above_ns=26_000)
    assert near.at_zero() == near
    assert near.at_zero(1_000) == near
    assert near.at_zero(2_000) == Fit(offset_ns=0, below_ns=54_000, above_ns=2_000)
    assert Fit(offset_ns=20, below_ns=50, above_ns=60).at_zero(100) == Fit(offset_ns=0, below_ns=30, above_ns=80)
    drifting = Fit(offset_ns=1, below_ns=5, above_ns=5, slope=1e-6)
    assert drifting.at_zero(100) == drifting
