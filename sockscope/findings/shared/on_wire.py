"""Packets side by side: of all flows at once, in order of flow and time, each with the side that sent it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.analysis.wire.streams import sent_by_second
from sockscope.model.connections import Connection
from sockscope.model.tcp import TcpFlag

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """All TCP packets, flow after flow, each flow's in order of time. Columns of shape (packets,).

    Attributes:
        rows: packet rows of the session.
        flow: the flow of each; side: which end of it sent the packet, 0 or 1.
        time_ns: CLOCK_MONOTONIC.
        length: payload bytes. seq, ack: as on the wire. window: as on the wire, not scaled.
    """

    rows: Ids
    flow: Ids
    side: npt.NDArray[np.int8]
    time_ns: Ids
    length: Ids
    seq: Numbers
    ack: Numbers
    window: npt.NDArray[np.uint16]
    flags: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, session: Session, flows: Mask | None = None) -> Wire:
        """Every packet of the session, or those of the flows that the mask, of shape (flows,), names."""
        rows, begins = session.packets_of_flows()
        flow = np.repeat(np.arange(len(session.flows), dtype=np.int64), np.diff(begins))
        if flows is not None:
            wanted = flows[flow]
            rows, flow = rows[wanted], flow[wanted]
        records = session.packets.records
        return cls(
            rows=rows,
            flow=flow,
            side=sent_by_second(session.packets, rows, flow, session.flows).astype(np.int8),
            time_ns=session.packet_ns[rows],
            length=records["payload_bytes"][rows].astype(np.int64),
            seq=records["seq"][rows],
            ack=records["ack"][rows],
            window=records["window"][rows],
            flags=records["flags"][rows],
        )

    def has(self, flag: TcpFlag) -> Mask:
        """Which packets carry any of these flags."""
        found: Mask = (self.flags & np.uint8(flag)) != 0
        return found


def connections_by_side(session: Session) -> dict[tuple[int, int], Connection]:
    """(flow, side of the target) → its connection. A target that connects to itself has both sides."""
    return {(one.flow, one.local_side): one for one in session.connections if one.flow >= 0}


def as_offset(seq: Numbers, base: Numbers | np.uint32) -> Ids:
    """Sequence numbers counted from `base`, modulo 2**32, within ± 2**31."""
    found: Ids = (seq - base).astype(np.uint32).view(np.int32).astype(np.int64)
    return found
