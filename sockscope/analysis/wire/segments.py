"""TCP packets as columns, flow after flow: what everything that is said of the wire is counted from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.columns import Ints, Mask, endpoints, group_order, split_reuse
from sockscope.model.tcp import TcpFlag


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """TCP rows sorted by (endpoints, time): what the facts of the flows are counted from.

    Attributes:
        order: shape (n,), row of the unsorted table.
        flow: shape (n,), flow number, in order of the flows' first packets.
        gid: shape (n,), flow * 2 + side.
        when, flags, seq, ack, window, length: shape (n,), columns of the packets.
        wscale: shape (n,), int8, the window scale that a SYN offers; -1: none.
        begins: shape (n,), where a flow's rows begin; they lie together.
        reused: shape (flows,), whether the addresses had another flow before.
        first_row: shape (flows,), row of the unsorted table that holds the flow's first packet.
        opener_is_source: shape (flows,), whether side 0 sent that packet.
        records, source, destination: the unsorted table and its endpoints.
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
    source: npt.NDArray[np.uint64]
    destination: npt.NDArray[np.uint64]

    @property
    def flow_count(self) -> int:
        return len(self.first_row)

    @classmethod
    def of(cls, records: npt.NDArray[np.void], when: Ints) -> Segments:
        source, destination = endpoints(records)
        order, starts = group_order(np.minimum(source, destination), np.maximum(source, destination))
        flags, seq, ack = (records[name][order] for name in ("flags", "seq", "ack"))
        direction = (source > destination)[order].astype(np.int64)
        groups = starts
        starts = split_reuse(groups, direction, flags, seq, ack, records["payload_bytes"][order])
        begin = np.flatnonzero(starts)
        grouped = np.cumsum(starts) - 1
        # Flows are numbered by their first packet, not by the hash that sorted them.
        first_row = order[begin]
        by_first = np.argsort(first_row, kind="stable")
        number = np.empty(len(begin), np.int64)
        number[by_first] = np.arange(len(begin))
        flow = number[grouped]
        opener = _openers(flow, direction, flags, len(begin))
        side = direction ^ opener[flow]
        first_row = first_row[by_first]
        return cls(
            order=order,
            flow=flow,
            gid=flow * 2 + side,
            when=when[order],
            flags=flags,
            seq=seq,
            ack=ack,
            window=records["window"][order],
            length=records["payload_bytes"][order].astype(np.int64),
            wscale=records["wscale"][order],
            begins=starts,
            reused=~groups[begin][by_first],
            first_row=first_row,
            opener_is_source=(source > destination)[first_row].astype(np.int64) == opener,
            records=records,
            source=source,
            destination=destination,
        )

    @property
    def side(self) -> Ints:
        """Shape (n,), 0 or 1: which end of its flow sent it."""
        return self.gid & 1

    def has(self, flag: TcpFlag) -> Mask:
        """Which carry any of these flags."""
        found: Mask = (self.flags & np.uint8(flag)) != 0
        return found


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
