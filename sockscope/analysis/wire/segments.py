"""TCP packets as columns, flow after flow: what everything that is said of the wire is counted from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import Ints, Mask, Words, endpoints, group_order, split_reuse
from sockscope.model.columns import group_pieces, picked
from sockscope.model.tcp import TcpFlag

PART_ROWS = 1 << 17
"""Flows of about so many packets are looked at together: their columns stay in the CPU's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """TCP rows sorted by (endpoints, time): what the facts of the flows are counted from.

    Attributes:
        order: shape (n,), row of the packet table.
        flow: shape (n,), flow number.
        gid: shape (n,), flow * 2 + side.
        when, flags, seq, ack, window, length: shape (n,), columns of the packets.
        wscale: shape (n,), int8, the window scale that a SYN offers; -1: none.
        begins: shape (n,), where a flow's rows begin; they lie together.
        reused: shape (flows,), whether the addresses had another flow before.
        first_row: shape (flows,), row of the packet table that holds the flow's first packet.
        opener_is_source: shape (flows,), whether side 0 sent that packet.
        records, source, destination: the packet table and its endpoints.
    """

    order: Ints
    flow: Ints
    gid: Ints
    when: Ints
    flags: npt.NDArray[np.uint8]
    seq: npt.NDArray[np.uint32]
    ack: npt.NDArray[np.uint32]
    window: npt.NDArray[np.uint16]
    length: Ints
    wscale: npt.NDArray[np.int8]
    begins: Mask
    reused: Mask
    first_row: Ints
    opener_is_source: Mask
    records: npt.NDArray[np.void]
    source: Words
    destination: Words

    @property
    def flow_count(self) -> int:
        return len(self.first_row)

    @classmethod
    def of(cls, records: npt.NDArray[np.void], when: Ints) -> Segments:
        """All flows of a table.

        Args:
            records: the packet table, TCP alone, in order of time. when: shape (n,), the packets' times.
        """
        return Sorted.of(records, np.arange(len(records)), when).whole()

    @property
    def side(self) -> Ints:
        """Shape (n,), 0 or 1: which end of its flow sent it."""
        return self.gid & 1

    def has(self, flag: TcpFlag) -> Mask:
        """Which carry any of these flags."""
        found: Mask = (self.flags & np.uint8(flag)) != 0
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """Which packets make which flow, and nothing else yet.

    Attributes:
        records, when, source, destination: the packet table, its times, its endpoints.
        order: shape (n,), rows of the packet table, flow after flow, each in order of time.
        begins: shape (n,), where flows begin in it.
        reused: shape (flows,), in that order: whether the addresses had another flow before.
    """

    records: npt.NDArray[np.void]
    when: Ints
    source: Words
    destination: Words
    order: Ints
    begins: Mask
    reused: Mask

    @classmethod
    def of(cls, records: npt.NDArray[np.void], rows: Ints, when: Ints) -> Sorted:
        """Sort the TCP packets of a table.

        Args:
            records: the packet table.
            rows: shape (n,), which of them to take, in order of time.
            when: shape (packets,), their times.
        """
        source, destination = endpoints(records)
        low, high = np.minimum(source, destination), np.maximum(source, destination)
        every = len(rows) == len(records) and bool((rows[1:] > rows[:-1]).all())
        order, groups = group_order(low, high) if every else group_order(low[rows], high[rows])
        if not every:
            order = rows[order]
        flags = records["flags"][order]
        opens = np.flatnonzero(flags & np.uint8(TcpFlag.SYN))
        syns = order[opens]
        begins = split_reuse(groups, opens, source[syns] > destination[syns], picked(records, syns))
        return cls(
            records=records,
            when=when,
            source=source,
            destination=destination,
            order=order,
            begins=begins,
            reused=~groups[begins],
        )

    @property
    def first_row(self) -> Ints:
        """Shape (flows,): the row of the packet table that holds the flow's first packet."""
        return self.order[self.begins]

    def parts(self) -> Iterator[Segments]:
        """All flows, some at a time, each numbered from 0 on."""
        bounds = np.append(np.flatnonzero(self.begins), len(self.order))
        for first, end in group_pieces(bounds, PART_ROWS):
            yield self._part(int(bounds[first]), int(bounds[end]), first)

    def whole(self) -> Segments:
        """All flows, numbered as they lie here."""
        return self._part(0, len(self.order), 0)

    def _part(self, low: int, high: int, first_flow: int) -> Segments:
        """The flows that lie at [low, high) of `order`; first_flow: how many lie before."""
        order, begins = self.order[low:high], self.begins[low:high]
        # Whole rows first: they lie anywhere, their columns then side by side.
        table = picked(self.records, order)
        flags = np.ascontiguousarray(table["flags"])
        flow = np.cumsum(begins) - 1
        first_row = order[begins]
        forward = self.source[order] > self.destination[order]
        direction = forward.astype(np.int64)
        opener = _openers(flow, direction, flags, len(first_row))
        return Segments(
            order=order,
            flow=flow,
            gid=flow * 2 + (direction ^ opener[flow]),
            when=self.when[order],
            flags=flags,
            seq=np.ascontiguousarray(table["seq"]),
            ack=np.ascontiguousarray(table["ack"]),
            window=np.ascontiguousarray(table["window"]),
            length=table["payload_bytes"].astype(np.int64),
            wscale=np.ascontiguousarray(table["wscale"]),
            begins=begins,
            reused=self.reused[first_flow : first_flow + len(first_row)],
            first_row=first_row,
            opener_is_source=forward[begins] == opener,
            records=self.records,
            source=self.source,
            destination=self.destination,
        )


def _openers(flow: Ints, direction: Ints, flags: npt.NDArray[np.uint8], count: int) -> Ints:
    """The opener's direction of each flow: who sent the SYN, or got the SYN-ACK, or is seen first."""
    opener = np.zeros(count, np.int64)
    opener[flow[::-1]] = direction[::-1]
    syn, ack = (flags & TcpFlag.SYN) != 0, (flags & TcpFlag.ACK) != 0
    answers = np.flatnonzero(syn & ack)[::-1]
    opener[flow[answers]] = 1 - direction[answers]
    opens = np.flatnonzero(syn & ~ack)[::-1]
    opener[flow[opens]] = direction[opens]
    return opener
