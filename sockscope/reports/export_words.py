"""How exports name what comes by the million: calls, and what a segment is."""

from __future__ import annotations

from functools import cache

from sockscope.model.tables import SessionTables
from sockscope.model.tcp import SegmentMark
from sockscope.reports.escape import safe

_TEXT_LENGTH = 400
_KINDS_OF_RETRANSMISSION = SegmentMark.FAST_RETRANSMISSION | SegmentMark.SPURIOUS_RETRANSMISSION | SegmentMark.RTO
_MARK_WORDS = {
    SegmentMark.RTO: "retransmission after a timeout (RTO)",
    SegmentMark.LOST_BEFORE: "bytes before it are missing",
    SegmentMark.ACKED_UNSEEN: "acknowledges bytes that were not captured",
    SegmentMark.DUPLICATE_ACK: "duplicate ACK",
    SegmentMark.ZERO_WINDOW_PROBE_ACK: "ACK of a zero window probe",
    SegmentMark.KEEP_ALIVE: "keep-alive",
    SegmentMark.KEEP_ALIVE_ACK: "keep-alive ACK",
}


def call_text(tables: SessionTables, event: int) -> str:
    """A call decoded, cut where it is long; takes 30 µs."""
    text = tables.event_text(event)
    return safe(text if len(text) <= _TEXT_LENGTH else text[:_TEXT_LENGTH] + "…")


@cache
def mark_words(mark: int) -> str:
    """`fast retransmission`, `duplicate ACK, zero window`; empty for none."""
    if mark & _KINDS_OF_RETRANSMISSION:
        mark &= ~SegmentMark.RETRANSMISSION
    kinds = (each for each in SegmentMark if mark & each)
    return ", ".join(_MARK_WORDS.get(each, str(each.name).lower().replace("_", " ")) for each in kinds)
