"""Places in TCP streams: how far each direction of each flow had come, and when.

Source: RFC 9293 section 3.4 (sequence numbers).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import Ints, Mask
from sockscope.analysis.wire.flow_table import Flows
from sockscope.model.ids import NO_ID
from sockscope.model.packets import Packets
from sockscope.model.tcp import TcpFlag

OFFSET_LIMIT = 1 << 38


@dataclass(frozen=True, slots=True)
class Reach:
    """How far each flow's stream had come when: keys rise, so one sorted search answers for all flows."""

    keys: Ints
    flow: Ints
    when: Ints
    span: int

    @classmethod
    def of(cls, flow: Ints, offset: Ints, when: Ints) -> Reach:
        """From rows flow after flow, in time: `offset` bytes of the stream had passed by then, or more."""
        offset = np.clip(offset, 0, OFFSET_LIMIT)
        span = int(offset.max(initial=0)) + 2
        # The flows' numbers are folded in by rank, so that the keys stay small.
        rank = np.cumsum(np.append(True, flow[1:] != flow[:-1])) - 1 if len(flow) else flow
        keys = np.maximum.accumulate(rank * span + offset) if len(flow) else offset
        return cls(keys, flow, when, span)

    def reached(self, flow: Ints, offset: Ints) -> Ints:
        """When so many bytes had passed: shape (k,), -1 where they never did."""
        if not len(self.keys):
            return np.full(len(flow), NO_ID, np.int64)
        low = np.minimum(np.searchsorted(self.flow, flow), len(self.flow) - 1)
        base = self.keys[low] // self.span * self.span
        at = np.minimum(np.searchsorted(self.keys, base + np.minimum(offset, self.span - 1)), len(self.keys) - 1)
        at = np.maximum(at, low)
        good = (self.flow[at] == flow) & (self.keys[at] >= base + offset)
        found: Ints = np.where(good, self.when[at], NO_ID)
        return found


def stream_offsets(flow: Ints, number: npt.NDArray[np.uint32], first: npt.NDArray[np.uint32]) -> Ints:
    """Sequence numbers as places in the stream, unwrapped: signed 32-bit steps, summed from the first byte on."""
    if not len(flow):
        return np.zeros(0, np.int64)
    begins = np.append(True, flow[1:] != flow[:-1])
    before = np.empty_like(number)
    before[1:] = number[:-1]
    before[begins] = first[flow[begins]]
    total = np.cumsum((number - before).view(np.int32).astype(np.int64))
    starts = np.flatnonzero(begins)
    lead = np.concatenate([[0], total[starts[1:] - 1]])
    found: Ints = total - np.repeat(lead, np.diff(np.append(starts, len(flow))))
    return found


def running(group: Ints, count: Ints) -> Ints:
    """Bytes of the group up to the end of each row: shape (n,). Group after group, no count is negative."""
    total = np.cumsum(count)
    first = np.append(True, group[1:] != group[:-1])[: len(group)]
    found: Ints = total - np.maximum.accumulate(np.where(first, total - count, 0))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What each direction of each flow carried: direction flow * 2 + the side that sent.

    Attributes:
        reach: when so many bytes of a direction had passed.
        from_start: shape (flows * 2,), its first byte's number is that of a handshake, not that of the first seen.
        direction, end, size, when: shape (k,), the segments with bytes, direction after direction, each in time: their
            place in the stream after the last byte, how many they carried.
    """

    reach: Reach
    from_start: Mask
    direction: Ints
    end: Ints
    size: Ints
    when: Ints

    @classmethod
    def of(cls, packets: Packets, packet_ns: Ints, packet_flow: npt.NDArray[np.int32], flows: Flows) -> Carried:
        """Of all flows.

        Args:
            packets: the packets.
            packet_ns: shape (packets,), their times.
            packet_flow: shape (packets,), their flows, -1: none.
            flows: as `build_flows` made them of these packets.
        """
        records = packets.records
        flags, length = records["flags"], records["payload_bytes"]
        opening = (flags & TcpFlag.SYN) != 0
        rows = np.flatnonzero((packet_flow >= 0) & (opening | (length > 0)))
        direction = 2 * packet_flow[rows].astype(np.int64) + sent_by_second(packets, rows, packet_flow[rows], flows)
        by_direction = np.lexsort((packet_ns[rows], direction))
        rows, direction = rows[by_direction], direction[by_direction]
        first = np.zeros(2 * len(flows), np.uint32)
        from_start = np.zeros(2 * len(flows), np.bool_)
        data = np.flatnonzero(length[rows] > 0)[::-1]
        first[direction[data]] = records["seq"][rows[data]]
        syns = np.flatnonzero(opening[rows])[::-1]
        answers = syns[(flags[rows[syns]] & TcpFlag.ACK) != 0]
        first[direction[answers] ^ 1] = records["ack"][rows[answers]]
        first[direction[syns]] = records["seq"][rows[syns]] + np.uint32(1)
        from_start[direction[answers] ^ 1] = True
        from_start[direction[syns]] = True
        data = data[::-1]
        carrying, direction = rows[data], direction[data]
        start = records["seq"][carrying] + opening[carrying].astype(np.uint32)
        size, when = length[carrying].astype(np.int64), packet_ns[carrying]
        end = stream_offsets(direction, start, first) + size
        reach = Reach.of(direction, end, when)
        return cls(reach=reach, from_start=from_start, direction=direction, end=end, size=size, when=when)


def sent_by_second(packets: Packets, rows: Ints, flow: npt.NDArray[np.integer], flows: Flows) -> Mask:
    """Which packets side 1 of their flow sent: shape (k,).

    Ports tell most ends apart; addresses are looked at where both ports are the same.

    Args:
        rows, flow: shape (k,), packets that are in flows, and these.
    """
    port = flows.columns.port[flow, 0]
    source = packets.records["sport"][rows]
    second: Mask = source != port
    same = np.flatnonzero(source == packets.records["dport"][rows])
    if len(same):
        second[same] = (packets.records["src"][rows[same]] != flows.columns.key[flow[same], 0]).any(axis=1)
    return second
