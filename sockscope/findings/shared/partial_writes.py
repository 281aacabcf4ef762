"""Writes of which a stream socket took only a part: how much was asked for, taken and left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import Call
from sockscope.model.connections import Protocol
from sockscope.model.events import UNSEEN_POINTER, Events, Section

PLAIN = np.array([Call.write, Call.sendto], np.uint16)
"""One buffer: args[1] is its address, args[2] its length."""
VECTORS = np.array([Call.writev, Call.sendmsg], np.uint16)
"""Several buffers: the length is in IOV_TOTAL."""
_SIZED = by_call(map(Call, (*PLAIN, *VECTORS)))

_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """One write of which `taken` of `asked` bytes were taken.

    Attributes:
        buffer: its address; 0 for vectors, and where it is not known (strace prints what lies there).
    """

    event: int
    connection: int
    asked: int
    taken: int
    buffer: int

    @property
    def left(self) -> int:
        return self.asked - self.taken


def partial_writes(session: Session) -> list[Partial]:
    """Every write on a stream connection that was taken in part, in no order.

    sendfile is left out: it also stops short at the end of the file.
    """
    records = session.events.records
    on_stream = np.zeros(len(session.connections) + 1, np.bool_)
    on_stream[[c.id for c in session.connections if c.protocol is not Protocol.UDP]] = True
    # A connection of -1 finds the last place, which is nobody's.
    took = np.flatnonzero(_SIZED[session.event_call] & on_stream[session.event_connection])
    # Before a flight recorder's window only the last writes are known, not what followed each.
    took = took[(records["ret"][took] > 0) & (records["exit_ns"][took] >= session.info.started_ns)]
    calls = session.event_call[took]
    plain = took[np.isin(calls, PLAIN)]
    asked = records["args"][plain, 2].astype(np.int64)
    short = asked > records["ret"][plain]
    vectors = took[np.isin(calls, VECTORS)]
    totals = iov_totals(session.events, vectors)
    short_vectors = totals > records["ret"][vectors]
    rows = np.concatenate([plain[short], vectors[short_vectors]])
    sizes = np.concatenate([asked[short], totals[short_vectors]])
    return [
        Partial(
            event=event,
            connection=int(session.event_connection[event]),
            asked=size,
            taken=int(records["ret"][event]),
            buffer=_buffer(records[event]),
        )
        for event, size in zip(rows.tolist(), sizes.tolist(), strict=True)
    ]


def _buffer(row: np.void) -> int:
    address = int(row["args"][1])
    return address if int(row["call"]) in PLAIN and address != UNSEEN_POINTER else 0


def requested(session: Session, event: int) -> int:
    """Bytes that a write asked to be taken; -1 where it is not known (sendfile among others)."""
    row = session.events.records[event]
    if int(row["call"]) in PLAIN:
        return int(row["args"][2])
    if int(row["call"]) in VECTORS:
        return int(iov_totals(session.events, np.array([event], np.int64))[0])
    return -1


def iov_totals(events: Events, rows: Ids) -> npt.NDArray[np.int64]:
    """IOV_TOTAL of each event, -1 where it has none. Walks all blobs at once, a section a step.

    Args:
        rows: shape (k,), event rows.

    Returns:
        shape (k,), int64, bytes.
    """
    blob = events.blob
    totals = np.full(len(rows), -1, np.int64)
    at = events.records["blob_offset"][rows].astype(np.int64)
    end = np.minimum(at + events.records["blob_bytes"][rows].astype(np.int64), len(blob))
    live = np.nonzero(at + _HEADER_BYTES <= end)[0]
    at = at[live]
    while len(live):
        length = _little(blob, at + 4, 4)
        after = at + _HEADER_BYTES + length
        hit = (blob[at] == Section.IOV_TOTAL) & (length == 8) & (after <= end[live])
        totals[live[hit]] = _little(blob, at[hit] + _HEADER_BYTES, 8)
        going = ~hit & (after + _HEADER_BYTES <= end[live])
        live, at = live[going], after[going]
    return totals


def _little(blob: npt.NDArray[np.uint8], at: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    value = np.zeros(len(at), np.int64)
    for number in range(size):
        value |= blob[at + number].astype(np.int64) << (8 * number)
    return value
