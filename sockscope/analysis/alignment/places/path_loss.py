"""What passed one place and never came to the next: lost on the path between them, which no single capture can tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.places.place import Hashes, Place
from sockscope.model.tcp import TcpFlag

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_MOST_BYTES = 1 << 31
"""Of more in one direction, sequence numbers do not say where in the stream they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathLoss:
    """One direction of a path.

    Attributes:
        way: shape (n,), the directions of connections that were looked at, as `Place.way` has them.
        passed, lost: shape (n,), segments that passed the first place, and those of them that never came to the second.
        hole: the second capture lacks bytes that were acknowledged, so what it lacks was not lost on the path.
    """

    way: Hashes
    passed: Ints
    lost: Ints
    hole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Segments of one place that go the way: shape (k,) each, but for `place`.

    Attributes:
        rows: of the place's table. way: which of the ways they go. start: of their bytes, counted from the way's base.
    """

    place: Place
    rows: Ints
    way: Ints
    start: Ints

    @classmethod
    def of(cls, place: Place, ways: Hashes, base: npt.NDArray[np.uint32]) -> _Rows:
        at = np.minimum(np.searchsorted(ways, place.way), len(ways) - 1)
        rows = np.flatnonzero(ways[at] == place.way)
        way = at[rows]
        # Data of a SYN comes after the number that the SYN itself takes.
        opens = place.table.has(TcpFlag.SYN)[rows].astype(np.uint32)
        start = (place.table.seq[rows] + opens - base[way]).view(np.int32).astype(np.int64)
        return cls(place=place, rows=rows, way=way, start=start)

    @property
    def length(self) -> Ints:
        found: Ints = self.place.table.length[self.rows]
        return found

    def of_rows(self, kept: Mask) -> _Rows:
        return _Rows(place=self.place, rows=self.rows[kept], way=self.way[kept], start=self.start[kept])

    def covering(self, at: Ints) -> Ints:
        """How often the bytes at these points were brought: `_lifted` ones, shape of `at`."""
        starts = np.sort(_lifted(self.way, self.start))
        stops = np.sort(_lifted(self.way, self.start + self.length))
        found: Ints = np.searchsorted(starts, at, "right") - np.searchsorted(stops, at, "right")
        return found


def path_loss(near: Place, far: Place, passing: tuple[Ints, Ints], when: tuple[Ints, Ints]) -> PathLoss | None:
    """Count what passed the near place and did not come to the far one, while both captured.

    Data are counted by the bytes that they bring, since a network card may cut what it sends, and join what it gets: of
    every byte with which a segment begins, how often it passed here and there.

    Args:
        near, far: the places.
        passing: rows of segments, seen once at either, that go from near to far: shape (k,) each.
        when: shape (segments,) each, the times of the two tables, by one clock.

    Returns:
        None where nothing is left to be counted.
    """
    here, there = passing
    if not len(here):
        return None
    ways, first = np.unique(near.way[here], return_index=True)
    base = near.table.seq[here[first]]
    sent, came = _Rows.of(near, ways, base), _Rows.of(far, ways, base)
    acked = _acknowledged((sent, came), base)
    # What was still under way at the far capture's end did not come to be seen.
    begin, end = int(when[1].min()), int(when[1].max())
    longest = int((when[1][there] - when[0][here]).max())
    moved = [np.bincount(one.way, weights=one.length, minlength=len(ways)) for one in (sent, came)]
    told = np.maximum(*moved) < _MOST_BYTES
    left = when[0][sent.rows]
    sent = sent.of_rows(told[sent.way] & (left >= begin) & (left <= end - longest))
    if not len(sent.rows):
        return None
    passed, lost, unseen = _data(sent.of_rows(sent.length > 0), came.of_rows(came.length > 0), len(ways))
    hole = bool((unseen < acked).any())
    for count, empty in zip((passed, lost), _empty(sent, came, len(ways)), strict=True):
        count += empty
    counted = passed > 0
    return PathLoss(way=ways[counted], passed=passed[counted], lost=lost[counted], hole=hole)


def _data(sent: _Rows, came: _Rows, ways: int) -> tuple[Ints, Ints, Ints]:
    """Segments with bytes: how many passed, were lost, and where the first byte is that never came: shape (ways,)."""
    points = np.unique(np.concatenate([_lifted(one.way, one.start) for one in (sent, came)]))
    way, place = _lowered(points)
    before, after = sent.covering(points), came.covering(points)
    missing = np.maximum(before - after, 0)
    unseen = np.full(ways, _MOST_BYTES, np.int64)
    never = (before > 0) & (after == 0)
    np.minimum.at(unseen, way[never], place[never])
    return _counted(way, before, ways), _counted(way, missing, ways), unseen


def _empty(sent: _Rows, came: _Rows, ways: int) -> tuple[Ints, Ints]:
    """Segments without bytes, known by all that they say: how many passed, how many were lost: shape (ways,)."""
    sent, came = (one.of_rows(one.length == 0) for one in (sent, came))
    keys, first, count = np.unique(sent.place.key[sent.rows], return_index=True, return_counts=True)
    arrived, often = np.unique(came.place.key[came.rows], return_counts=True)
    at = np.minimum(np.searchsorted(arrived, keys), max(len(arrived) - 1, 0))
    there = np.zeros(len(keys), np.int64)
    if len(arrived):
        there = np.where(arrived[at] == keys, often[at], 0)
    way = sent.way[first]
    passed = _counted(way, count, ways)
    lost = _counted(way, np.maximum(count - there, 0), ways)
    # More than half: they were not captured (a filter), or changed on the way.
    seen = 2 * lost.sum() <= passed.sum()
    return passed * seen, lost * seen


def _acknowledged(both: tuple[_Rows, _Rows], base: npt.NDArray[np.uint32]) -> Ints:
    """How far each way's bytes were acknowledged at either place: shape (ways,), counted from its base."""
    out = np.full(len(base), -_MOST_BYTES, np.int64)
    for one in both:
        table = one.place.table
        # A way's other direction is the other side of the same flow.
        way_of = np.full(2 * one.place.flow_count, -1, np.int64)
        way_of[table.gid[one.rows] ^ 1] = one.way
        rows = np.flatnonzero((way_of[table.gid] >= 0) & table.has(TcpFlag.ACK) & ~table.has(TcpFlag.RST))
        way = way_of[table.gid[rows]]
        np.maximum.at(out, way, (table.ack[rows] - base[way]).view(np.int32).astype(np.int64))
    return out


def _counted(way: Ints, count: Ints, ways: int) -> Ints:
    return np.bincount(way, weights=count, minlength=ways).astype(np.int64)


def _lifted(way: Ints, place: Ints) -> Ints:
    return way * (4 * _MOST_BYTES) + place + 2 * _MOST_BYTES


def _lowered(points: Ints) -> tuple[Ints, Ints]:
    return points // (4 * _MOST_BYTES), points % (4 * _MOST_BYTES) - 2 * _MOST_BYTES
