"""How long data waited for its acknowledgment: round trips, and ACKs that a receiver held back.

Source: RFC 6298 section 3 (Karn: what was sent again tells nothing), RFC 9293 section 3.8.6.3 (delayed ACKs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sockscope.analysis.wire.chains import unwrapped
from sockscope.analysis.wire.columns import Ints, Mask
from sockscope.analysis.wire.marks import Marks
from sockscope.analysis.wire.neighbours import answers, neighbours
from sockscope.analysis.wire.segments import Segments
from sockscope.model.tcp import SegmentMark, TcpFlag

HELD_BACK_NS = 35_000_000
"""A delayed ACK takes 40 ms on Linux (TCP_DELACK_MIN), which counts in ticks of up to 10 ms; 200 ms elsewhere."""
_LONGEST_NS = 600_000_000
"""500 ms is the longest that RFC 9293 allows; what takes longer waits for something else."""
_AT_ONCE_NS = 10_000_000
_UNTRUSTED = np.uint16(SegmentMark.RETRANSMISSION | SegmentMark.OUT_OF_ORDER | SegmentMark.LOST_BEFORE)
_NO_DATA = np.uint16(SegmentMark.ZERO_WINDOW_PROBE | SegmentMark.KEEP_ALIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrips:
    """Columns of shape (samples,).

    Attributes:
        gid: flow * 2 + side, of who sent the data.
        sent, acked: rows of the table: the data, and the first segment that acknowledges all of it.
        lasted_ns: from one to the other.
    """

    gid: Ints
    sent: Ints
    acked: Ints
    lasted_ns: Ints


def round_trips(table: Segments, marks: Marks) -> RoundTrips:
    """Of every segment with data, but those that were sent again, or sent while something was."""
    acks = table.has(TcpFlag.ACK) & ~table.has(TcpFlag.RST)
    answer = answers(table.begins, table.side, acks)
    sent = np.flatnonzero((table.length > 0) & (answer >= 0) & (table.flags & np.uint8(TcpFlag.SYN | TcpFlag.RST) == 0))
    sent = sent[marks[sent] & (_UNTRUSTED | _NO_DATA) == 0]
    acked = answer[sent].astype(np.int64)
    end = table.seq[sent] + table.length[sent].astype(np.uint32)
    early = np.flatnonzero((table.ack[acked] - end).view(np.int32) < 0)
    if len(early):
        acked[early] = _first_acks(table, acks, end[early], acked[early])
    found = acked >= 0
    sent, acked = sent[found], acked[found]
    if (marks & _UNTRUSTED).any():
        again = np.cumsum(marks & _UNTRUSTED != 0, dtype=np.int32)
        whole = again[sent] == again[acked]
        sent, acked = sent[whole], acked[whole]
    return RoundTrips(gid=table.gid[sent], sent=sent, acked=acked, lasted_ns=table.when[acked] - table.when[sent])


def _first_acks(table: Segments, acks: Mask, end: np.ndarray[tuple[int], np.dtype[np.uint32]], after: Ints) -> Ints:
    """The first rows that acknowledge up to `end`, where the row `after` does not yet; -1 where none does."""
    flows = np.zeros(table.flow_count, np.bool_)
    flows[table.flow[after]] = True
    rows = np.flatnonzero(flows[table.flow] & acks)
    # Rows of a flow lie together; within it, side after side, in order of time.
    group = np.cumsum(np.append(True, table.flow[rows[1:]] != table.flow[rows[:-1]])) * 2 + (table.gid[rows] & 1)
    rows = rows[np.argsort(group, kind="stable")]
    begins = np.append(True, table.gid[rows[1:]] != table.gid[rows[:-1]])
    rank = np.cumsum(begins) - 1
    offset = unwrapped(table.ack[rows], begins, rank)
    place = np.full(len(table.flow), -1, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    at = place[after]
    wanted = offset[at] + (end - table.ack[after]).view(np.int32)
    low = min(int(offset.min()), int(wanted.min()))
    spread = max(int(offset.max()), int(wanted.max())) - low + 2
    lifted = np.maximum.accumulate(offset - low + rank * spread)
    found = np.searchsorted(lifted, wanted - low + rank[at] * spread)
    inside = found < len(rows)
    inside[inside] &= rank[found[inside]] == rank[at[inside]]
    result: Ints = np.where(inside, rows[np.minimum(found, len(rows) - 1)], -1)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """ACKs that kept the other side's data waiting. Shape (stalls,): gid of who held it back, and for how long."""

    gid: Ints
    lasted_ns: Ints


def delayed_acks(table: Segments, marks: Marks, trips: RoundTrips, path_ns: Ints) -> HeldBack:
    """Data waited so long for a bare ACK, and as soon as that came the next data went out: Nagle meets a delayed ACK.

    Args:
        path_ns: shape (flows,), what a round trip takes without any waiting; -1: not known.
    """
    path = np.maximum(path_ns[trips.gid >> 1], 0)
    long = np.flatnonzero((trips.lasted_ns - path >= HELD_BACK_NS) & (trips.lasted_ns - path <= _LONGEST_NS))
    sent, acked, path = trips.sent[long], trips.acked[long], path[long]
    if not len(long):
        return HeldBack(gid=np.zeros(0, np.int64), lasted_ns=np.zeros(0, np.int64))
    flows = np.zeros(table.flow_count, np.bool_)
    flows[table.flow[sent]] = True
    rows = np.flatnonzero(flows[table.flow])
    place = np.full(len(table.flow), -1, np.int32)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    begins, side = table.begins[rows], table.gid[rows] & 1
    near = neighbours(begins, side)
    later = answers(begins, side, np.ones(len(rows), np.bool_))
    at = place[acked]
    bare = (table.length[acked] == 0) & (table.flags[acked] & np.uint8(TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST) == 0)
    last = rows[near.other[at]] == sent
    released = later[at] >= 0
    data = rows[later[at]]
    released &= (table.length[data] > 0) & (marks[data] & _UNTRUSTED == 0)
    released &= table.when[data] - table.when[acked] <= path + _AT_ONCE_NS
    stalled = bare & last & released
    return HeldBack(gid=table.gid[acked[stalled]], lasted_ns=trips.lasted_ns[long[stalled]] - path[stalled])
