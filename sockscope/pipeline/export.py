"""A session as the plain tables that exports are made from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sockscope.analysis.joining.packet_events import packet_events
from sockscope.analysis.narration.describe import describe
from sockscope.analysis.session import Session
from sockscope.analysis.wire.streams import sent_by_second
from sockscope.model.ids import NO_ID
from sockscope.model.packets import RawFrame
from sockscope.model.tables import Int32s, Int64s, SessionTables
from sockscope.sources.packets.files import read_frames_of


def session_tables(session: Session) -> SessionTables:
    """Everything that was joined; nothing is copied that the session has."""
    packet_connection = _packet_connection(session)
    local_is_source = _local_is_source(session, packet_connection)
    return SessionTables(
        events=session.events,
        order=session.order,
        event_connection=session.event_connection,
        packets=session.packets,
        packet_ns=session.packet_ns,
        packet_connection=packet_connection,
        packet_marks=_marks(session),
        local_is_source=local_is_source,
        packet_event=packet_events(session, packet_connection, local_is_source),
        sockets=session.sockets,
        socket_connection=session.socket_connection,
        exchanges=session.exchanges,
        event_text=lambda event: describe(session.events, event),
        comm=session.comm,
        frames=lambda rows: _frames(session, rows),
    )


def _packet_connection(session: Session) -> Int32s:
    """Of a flow whose both ends are the target's own, the packets go to the side that accepted."""
    of_flow = np.full(len(session.flows) + 1, NO_ID, np.int32)
    for each in reversed(session.connections):
        if each.flow >= 0 and (of_flow[each.flow] < 0 or each.local_side == 1):
            of_flow[each.flow] = each.id
    # Packets of no flow have -1, which is the last.
    return of_flow[session.packet_flow]


def _local_is_source(session: Session, packet_connection: Int32s) -> npt.NDArray[np.bool_]:
    out: npt.NDArray[np.bool_] = session.packets.records["outgoing"] != 0
    rows = np.flatnonzero(packet_connection >= 0)
    if not len(rows):
        return out
    local_is_second = np.array([each.local_side == 1 for each in session.connections], np.bool_)
    by_second = sent_by_second(session.packets, rows, session.packet_flow[rows], session.flows)
    out[rows] = by_second == local_is_second[packet_connection[rows]]
    return out


def _marks(session: Session) -> npt.NDArray[np.uint16]:
    return session.packet_marks if len(session.packet_marks) else np.zeros(len(session.packets), np.uint16)


def _frames(session: Session, rows: Int64s) -> Iterator[RawFrame]:
    """The captured frames of packet rows, in that order."""
    if not session.captures:
        return
    for batch in read_frames_of(session.captures, session.packets.records["payload_offset"][rows]):
        yield from batch
