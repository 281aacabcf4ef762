"""Which syscall gave each packet its bytes, or took them: matched by place in the stream, not by nearness in time.

The n-th byte that the program wrote is the n-th after its SYN: a segment sent again an hour later still belongs to the
write that made it. A segment with bytes of several calls belongs to the call of its first byte. Without payload: a
SYN belongs to the connect or accept it led to, a FIN or RST of the target to the last close or shutdown before it, a
FIN of the peer to the read that returned 0.

Of a connection that was there before the watching, the first byte moved is taken for the first one captured; where
that would have bytes sent before they were written, or read before they came, nothing is said.

Source: RFC 9293 section 3.4 (sequence numbers).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.assign import kernel_tls, moved_bytes
from sockscope.analysis.session import Ids, Session
from sockscope.analysis.wire.streams import Reach, running, stream_offsets
from sockscope.model.calls import Call
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpFlag

_SKEW_NS = 1_000_000
"""So far the clocks of calls and packets may be off before the order of two times says anything."""

Int32s = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def packet_events(session: Session, packet_connection: Int32s, local_is_source: Mask) -> Int32s:
    """The event that each packet's bytes came from (the target sent it) or went to.

    Args:
        session: joined.
        packet_connection: shape (packets,), connection ids; -1: none.
        local_is_source: shape (packets,), the target's side of that connection sent it.

    Returns:
        Shape (packets,), event ids; -1: not known, or nobody's.
    """
    out = np.full(len(session.packets), NO_ID, np.int32)
    rows, bounds = session.packets_of_flows()
    flow = np.repeat(np.arange(len(session.flows)), np.diff(bounds))
    connection = packet_connection[rows]
    mine = connection >= 0
    if not mine.any() or not len(session.events):
        return out
    rows, flow, connections = rows[mine], flow[mine], connection[mine].astype(np.int64)
    local = local_is_source[rows]
    _tell_ends(session, out, rows, connections, local)
    if session.info.syscalls.lost_count:
        # One call missed, and every later byte would be taken for another's.
        return out
    usable = _usable(session)
    taken, put = moved_bytes(session.events)
    for sent, moved in ((True, put), (False, taken)):
        picked = (local == sent) & usable[connections]
        _tell_bytes(session, out, (rows[picked], flow[picked], connections[picked]), moved, sent=sent)
    return out


def _usable(session: Session) -> Mask:
    """Connections of which every byte on the wire passed a call that counts bytes."""
    usable = np.ones(len(session.connections), np.bool_)
    call = session.event_call
    # splice names no direction.
    odd = np.append(kernel_tls(session.events), np.flatnonzero((call == Call.splice) | (call == Call.vmsplice)))
    concerned = session.event_connection[odd]
    usable[concerned[concerned >= 0]] = False
    return usable


def _tell_bytes(session: Session, out: Int32s, packets: tuple[Ids, Ids, Ids], moved: Ids, *, sent: bool) -> None:
    """One direction of all connections.

    Args:
        packets: rows, their flows and connections; flow after flow, each in time.
        moved: shape (events,), bytes each event moved in this direction.
    """
    rows, flow, connection = packets
    records = session.packets.records
    begins = (records["flags"][rows] & TcpFlag.SYN) != 0
    first, known = np.zeros(len(session.flows), np.uint32), np.zeros(len(session.flows), np.bool_)
    number = records["seq"][rows] + begins.astype(np.uint32)
    data = records["payload_bytes"][rows] > 0
    # The earliest of a flow is written last, and stays.
    for which, is_start in ((np.flatnonzero(data)[::-1], False), (np.flatnonzero(begins)[::-1], True)):
        first[flow[which]] = number[which]
        known[flow[which]] |= is_start
    rows, flow, connection, number = rows[data], flow[data], connection[data], number[data]
    if not len(rows):
        return
    start = stream_offsets(flow, number, first)
    event = _mover(session, moved, connection, start)
    witnessed = np.array([c.witnessed for c in session.connections], np.bool_)
    doubtful = ~known[flow] | ~witnessed[connection]
    if doubtful.any():
        wrong = doubtful & _impossible(session, rows, flow, start, event, sent=sent)
        event[np.isin(connection, connection[wrong])] = NO_ID
    out[rows] = event


def _mover(session: Session, moved: Ids, connection: Ids, offset: Ids) -> Ids:
    """Per asked byte of a connection's stream the event that moved it: shape (k,), -1 where none did."""
    in_order = session.order
    in_order = in_order[(moved[in_order] > 0) & (session.event_connection[in_order] >= 0)]
    by_connection = np.argsort(session.event_connection[in_order], kind="stable")
    events = in_order[by_connection]
    if not len(events):
        return np.full(len(offset), NO_ID, np.int64)
    owner = session.event_connection[events].astype(np.int64)
    reach = Reach.of(owner, running(owner, moved[events]), events)
    found: Ids = np.where(offset >= 0, reach.reached(connection, offset + 1), NO_ID)
    return found


def _impossible(session: Session, rows: Ids, flow: Ids, start: Ids, event: Ids, *, sent: bool) -> Mask:
    """Where bytes would have left before they were written, or unwritten, or been read before they came."""
    records, when = session.events.records, session.packet_ns[rows]
    if sent:
        entered = records["enter_ns"][event]
        late: Mask = (event < 0) | (entered - _SKEW_NS > when)
        return late
    returned = records["exit_ns"][event]
    # What comes again has been read already.
    stop = start + session.packets.records["payload_bytes"][rows]
    span = np.int64(int(np.abs(stop).max(initial=0)) + 1)
    lifted = np.maximum.accumulate(flow * 2 * span + stop)
    fresh = np.append(True, lifted[1:] > lifted[:-1])
    early: Mask = fresh & (event >= 0) & (returned >= 0) & (returned + _SKEW_NS < when)
    return early


def _tell_ends(session: Session, out: Int32s, rows: Ids, connection: Ids, local: Mask) -> None:
    """Packets that begin or end a connection."""
    flags = session.packets.records["flags"][rows]
    calls = session.events.records["call"]
    opened = np.array([c.opened_event for c in session.connections], np.int64)
    eof = np.array([c.eof_event for c in session.connections], np.int64)
    connects = (opened >= 0) & (calls[opened] == Call.connect)
    opens = ((flags & TcpFlag.SYN) != 0) & ((flags & TcpFlag.ACK) == 0) & (connects[connection] == local)
    out[rows[opens]] = opened[connection[opens]]
    peer_ends = ((flags & TcpFlag.FIN) != 0) & ~local
    out[rows[peer_ends]] = eof[connection[peer_ends]]
    ends = np.flatnonzero(((flags & (TcpFlag.FIN | TcpFlag.RST)) != 0) & local)
    if len(ends):
        out[rows[ends]] = _last_close(session, connection[ends], session.packet_ns[rows[ends]])


def _last_close(session: Session, connection: Ids, when: Ids) -> Ids:
    """The last close or shutdown of each asked connection that was entered by then: shape (k,), -1: none."""
    records, of_event = session.events.records, session.event_connection
    call = records["call"]
    events = np.flatnonzero(((call == Call.close) | (call == Call.shutdown)) & (of_event >= 0))
    if not len(events):
        return np.full(len(when), NO_ID, np.int64)
    entered = records["enter_ns"][events]
    # Ranks in place of times: with the connection's number they fit one word.
    ranks = np.unique(entered)
    keys = of_event[events].astype(np.int64) * (len(ranks) + 1) + np.searchsorted(ranks, entered)
    by_key = np.argsort(keys, kind="stable")
    asked = connection * (len(ranks) + 1) + np.searchsorted(ranks, when + _SKEW_NS, side="right")
    place = np.searchsorted(keys[by_key], asked) - 1
    found = events[by_key[np.maximum(place, 0)]]
    good = (place >= 0) & (of_event[found] == connection)
    last: Ids = np.where(good, found, NO_ID)
    return last
