"""Segments with payload that were sent again: which packets, and what made the sender do it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.analysis.wire.marks import TIMEOUT_NS
from sockscope.findings.shared.on_wire import Mask, Wire, as_offset
from sockscope.model.tcp import SegmentMark, TcpFlag


@dataclass(frozen=True, slots=True, kw_only=True)
class SentAgain:
    """Columns, shape (segments,), of all flows asked for, flow after flow.

    Attributes:
        row: packet rows. flow, side: who sent it.
        waited_ns: since that side's segment before.
        timeout: the retransmission timer ran out. Else three ACKs or a SACK told of the loss.
    """

    row: Ids
    flow: Ids
    side: Ids
    waited_ns: Ids
    timeout: Mask

    def of(self, flow: int, side: int) -> Ids:
        """Places in the columns of one side's."""
        found: Ids = np.flatnonzero((self.flow == flow) & (self.side == side))
        return found


def sent_again(session: Session, flows: Mask) -> SentAgain:
    """Retransmitted segments of these flows; shape of the mask: (flows,).

    As their marks say. Left out are tail loss probes (the last segment again, shortly after: RFC 8985 section 7): where
    the receiver only delayed its ACK, nothing was lost.
    """
    wire = Wire.of(session, flows)
    data = np.flatnonzero((wire.length > 0) & ~wire.has(TcpFlag.SYN | TcpFlag.RST))
    end = wire.flow[data] * 2 + wire.side[data]
    order = np.argsort(end, kind="stable")
    data, end = data[order], end[order]
    if not len(data):
        none = np.zeros(0, np.int64)
        return SentAgain(row=none, flow=none, side=none, waited_ns=none, timeout=none.astype(np.bool_))
    begins = np.append(True, end[1:] != end[:-1])
    rank = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)[rank]
    start = as_offset(wire.seq[data], wire.seq[data[first]])
    stop = start + wire.length[data]
    # The highest offset of the same side before each: a running maximum, each side's lifted above the one before.
    spread = int(stop.max()) - int(start.min()) + 1
    lifted = np.maximum.accumulate(stop + rank * spread)
    reach = start.copy()
    reach[1:] = np.where(begins[1:], start[1:], lifted[:-1] - rank[1:] * spread)
    waited = np.zeros(len(data), np.int64)
    waited[1:] = np.where(begins[1:], 0, np.diff(wire.time_ns[data]))
    marks = session.packet_marks[wire.rows[data]]
    timeout = marks & np.uint16(SegmentMark.RTO) != 0
    # Its ACK was captured, but a filter of the socket's own may have dropped that: the timer ran out all the same.
    timeout |= (marks & np.uint16(SegmentMark.SPURIOUS_RETRANSMISSION) != 0) & (waited >= TIMEOUT_NS)
    again = (marks & np.uint16(SegmentMark.RETRANSMISSION) != 0) & (timeout | (stop < reach))
    found = np.flatnonzero(again)
    return SentAgain(
        row=wire.rows[data[found]],
        flow=wire.flow[data[found]],
        side=wire.side[data[found]].astype(np.int64),
        waited_ns=waited[found],
        timeout=timeout[found],
    )
