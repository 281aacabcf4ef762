"""What each flow went through, counted from its segments' marks and times: `FLOW_FACT_DTYPE`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import NEVER, Ints, Mask, at_or_after, first_times, last_times
from sockscope.analysis.wire.marks import Marks
from sockscope.analysis.wire.openings import Handshakes
from sockscope.analysis.wire.round_trips import RoundTrips, delayed_acks, round_trips
from sockscope.analysis.wire.segments import Segments
from sockscope.model.flow_facts import FLOW_FACT_DTYPE
from sockscope.model.tcp import SegmentMark, TcpFlag

_COUNTED = (
    ("retransmissions", SegmentMark.RETRANSMISSION),
    ("fast_retransmissions", SegmentMark.FAST_RETRANSMISSION),
    ("spurious_retransmissions", SegmentMark.SPURIOUS_RETRANSMISSION),
    ("rtos", SegmentMark.RTO),
    ("out_of_order", SegmentMark.OUT_OF_ORDER),
    ("lost_before", SegmentMark.LOST_BEFORE),
    ("acked_unseen", SegmentMark.ACKED_UNSEEN),
    ("duplicate_acks", SegmentMark.DUPLICATE_ACK),
    ("zero_windows", SegmentMark.ZERO_WINDOW),
    ("zero_window_probes", SegmentMark.ZERO_WINDOW_PROBE),
    ("window_fulls", SegmentMark.WINDOW_FULL),
    ("keep_alives", SegmentMark.KEEP_ALIVE),
)


def count_facts(table: Segments, marks: Marks, shake: Handshakes, fin_ns: Ints) -> npt.NDArray[np.void]:
    """Shape (flows,), FLOW_FACT_DTYPE.

    Args:
        table: the segments. marks: shape (n,), of each.
        shake: the handshakes. fin_ns: shape (gids,), each side's first FIN, NEVER where it sent none.
    """
    facts = np.zeros(table.flow_count, FLOW_FACT_DTYPE)
    _count_marks(facts, table, marks)
    trips = round_trips(table, marks)
    facts["handshake_rtt_ns"] = shake.rtt_ns
    _sum_up_trips(facts, table.flow_count, trips)
    _count_stalls(facts, table, marks, trips)
    sides = np.bincount(table.gid, minlength=2 * table.flow_count).reshape(-1, 2) > 0
    facts["seen_sides"] = sides[:, 0] + 2 * sides[:, 1].astype(np.uint8)
    facts["began_before"] = (shake.syn == NEVER) & (shake.synack == NEVER)
    facts["port_reused"] = table.reused
    opens = np.flatnonzero(table.has(TcpFlag.SYN) & ~table.has(TcpFlag.ACK))
    asked = np.bincount(table.gid[opens], minlength=2 * table.flow_count).reshape(-1, 2) > 0
    facts["simultaneous_open"] = asked.all(axis=1)
    facts["simultaneous_close"] = _closed_at_once(table)
    facts["reset_side"] = _who_reset(table)
    facts["half_close_ns"] = _half_closes(table, fin_ns)
    return facts


def _count_marks(facts: npt.NDArray[np.void], table: Segments, marks: Marks) -> None:
    marked = np.flatnonzero(marks)
    gid, marks = table.gid[marked], marks[marked]
    for name, mark in _COUNTED:
        mine = gid[marks & np.uint16(mark) != 0]
        if len(mine):
            facts[name] = np.bincount(mine, minlength=2 * len(facts)).reshape(-1, 2)


def _sum_up_trips(facts: npt.NDArray[np.void], flows: int, trips: RoundTrips) -> None:
    """Smallest, median (the lower of two) and largest of each side: sides and times sorted as one number."""
    bits = min(40, 63 - (2 * flows).bit_length())
    packed = trips.gid << bits | np.clip(trips.lasted_ns, 0, (1 << bits) - 1)
    packed.sort()
    bounds = np.searchsorted(packed, np.arange(2 * flows + 1) << bits)
    low, high = bounds[:-1], bounds[1:]
    some = np.flatnonzero(high > low)
    for name, place in (
        ("rtt_min_ns", low[some]),
        ("rtt_median_ns", (low[some] + high[some] - 1) // 2),
        ("rtt_max_ns", high[some] - 1),
    ):
        column = np.full(2 * flows, -1, np.int64)
        column[some] = packed[place] & ((1 << bits) - 1)
        facts[name] = column.reshape(-1, 2)


def _count_stalls(facts: npt.NDArray[np.void], table: Segments, marks: Marks, trips: RoundTrips) -> None:
    path = np.where(facts["handshake_rtt_ns"] >= 0, facts["handshake_rtt_ns"], facts["rtt_min_ns"].max(axis=1))
    stalls = delayed_acks(table, marks, trips, path)
    if not len(stalls.gid):
        return
    facts["delayed_ack_stalls"] = np.bincount(stalls.gid, minlength=2 * len(facts)).reshape(-1, 2)
    longest = np.zeros(2 * len(facts), np.int64)
    np.maximum.at(longest, stalls.gid, stalls.lasted_ns)
    facts["longest_stall_ns"] = longest.reshape(-1, 2)


def _closed_at_once(table: Segments) -> Mask:
    """Both sides sent FIN, and neither's first FIN acknowledges the other's."""
    gids = 2 * table.flow_count
    rows = np.flatnonzero(table.has(TcpFlag.FIN))[::-1]
    first = np.full(gids, -1, np.int64)
    first[table.gid[rows]] = rows
    pairs = first.reshape(-1, 2)
    both = np.flatnonzero((pairs >= 0).all(axis=1))
    closed = np.ones(len(both), np.bool_)
    for one, two in ((0, 1), (1, 0)):
        own, other = pairs[both, one], pairs[both, two]
        end = table.seq[other] + table.length[other].astype(np.uint32) + np.uint32(1)
        closed &= ~at_or_after(table.ack[own], end)
    found = np.zeros(table.flow_count, np.bool_)
    found[both[closed]] = True
    return found


def _who_reset(table: Segments) -> npt.NDArray[np.int8]:
    """The side of each flow's first RST; -1 where there is none."""
    rows = np.flatnonzero(table.has(TcpFlag.RST))[::-1]
    found = np.full(table.flow_count, -1, np.int8)
    found[table.flow[rows]] = table.gid[rows] & 1
    return found


def _half_closes(table: Segments, fin_ns: Ints) -> Ints:
    """How long after one side's FIN the other still sent data; -1 where it did not."""
    gids = 2 * table.flow_count
    rows = np.flatnonzero(table.length > 0)
    finished = (fin_ns != NEVER).reshape(-1, 2).any(axis=1)
    rows = rows[finished[table.flow[rows]]]
    last = last_times(table.gid[rows], table.when[rows], gids)
    other = fin_ns.reshape(-1, 2)[:, ::-1].ravel()
    went_on = (last != NEVER) & (other != NEVER) & (last > other)
    longest: Ints = np.where(went_on, last - np.where(went_on, other, 0), -1).reshape(-1, 2).max(axis=1)
    return longest


def first_resets(table: Segments) -> Ints:
    """When each side sent its first RST; shape (gids,), NEVER where it sent none."""
    rows = np.flatnonzero(table.has(TcpFlag.RST))
    return first_times(table.gid[rows], table.when[rows], 2 * table.flow_count)
