"""When the bytes of each exchange crossed the wire: matched by their place in the stream, not by nearness in time.

The n-th byte that the program read is the n-th after the peer's SYN. So what was sent again, or came in pieces, or
lies unread in the socket's queue for an hour, is still found. Of a connection that was there before the watching the
first byte read is taken for the first one captured; where the bytes then do not add up (some lay unread at that
moment), or would have been read before they came, nothing is said.

Source: RFC 9293 section 3.4 (sequence numbers), 3.10.7.4 (acknowledgments).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.assign import kernel_tls
from sockscope.analysis.session import Ids, Session
from sockscope.analysis.wire.streams import Reach, running, sent_by_second, stream_offsets
from sockscope.model.columns import group_pieces, rows_of
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpFlag


def tell_wire(session: Session, made: npt.NDArray[np.void]) -> None:
    """Fill `arrived_ns`, `arrived_whole_ns`, `sent_ns` and `acked_ns`; rows stay -1 where bytes cannot be matched.

    Args:
        made: shape (n,), EXCHANGE_DTYPE, connection after connection; all else of it is filled.
    """
    if not session.flows or session.info.syscalls.lost_count:
        # One read missed, and every later byte would be taken for another.
        return
    rows, bounds = session.packets_of_flows()
    if not len(rows):
        return
    usable, witnessed = _usable(session), _witnessed(session)
    flow_of = np.array([c.flow for c in session.connections], np.int64)
    # Pieces of whole connections: counts of bytes begin with each.
    starts = rows_of(made, lambda part: np.diff(part["connection"], prepend=NO_ID) != 0)
    # A piece's first row begins no connection where the row before is of the same.
    again = (starts > 0) & (made["connection"][starts] == made["connection"][np.maximum(starts - 1, 0)])
    bounds_made = np.append(starts[~again], len(made))
    watched = np.zeros(len(session.flows), np.bool_)
    present = made["connection"][bounds_made[:-1]]
    watched[flow_of[present[usable[present]]]] = True
    if not watched.any():
        return
    flow = np.repeat(np.arange(len(session.flows)), np.diff(bounds))
    mine = watched[flow]
    rows, flow = rows[mine], flow[mine]
    streams = _Streams.of(session, rows, flow)
    for begin, end in group_pieces(bounds_made):
        part = made[bounds_made[begin] : bounds_made[end]]
        _tell_piece(session, part, np.flatnonzero(usable[part["connection"]]), flow_of, witnessed, streams)


def _tell_piece(
    session: Session,
    made: npt.NDArray[np.void],
    kept: Ids,
    flow_of: Ids,
    witnessed: npt.NDArray[np.bool_],
    streams: _Streams,
) -> None:
    """Of the exchanges of some connections, all of each.

    Args:
        kept: rows that bytes on the wire can be found for.
    """
    of_exchange = flow_of[made["connection"][kept]]
    known = streams.known[of_exchange]
    kept, of_exchange = kept[known], of_exchange[known]
    if not len(kept):
        return
    read_end = running(made["connection"], made["read_bytes"].astype(np.int64))[kept]
    written_end = running(made["connection"], made["written_bytes"].astype(np.int64))[kept]
    has_read, has_written = made["read_count"][kept] > 0, made["write_count"][kept] > 0
    read_start = read_end - made["read_bytes"][kept].astype(np.int64)
    for name, stream, offset, asked in (
        ("arrived_ns", streams.arrived, read_start + 1, has_read),
        ("arrived_whole_ns", streams.arrived, read_end, has_read),
        ("sent_ns", streams.sent, written_end, has_written),
        ("acked_ns", streams.acked, written_end, has_written),
    ):
        if len(stream.keys):
            made[name][kept[asked]] = stream.reached(of_exchange[asked], offset[asked])
    late = streams.late[of_exchange] | ~witnessed[made["connection"][kept]]
    if late.any():
        _forget_doubtful(session, made, kept[late], of_exchange[late], streams)


def _forget_doubtful(session: Session, made: npt.NDArray[np.void], rows: Ids, flow: Ids, streams: _Streams) -> None:
    """Take back what was found of connections whose first bytes were not seen, where it does not hold together.

    Args:
        rows: all exchanges of those connections, in order; flow: shape (rows,).
    """
    mine = made[rows]
    last = np.append(mine["connection"][1:] != mine["connection"][:-1], True)
    first = np.append(True, last[:-1])
    group = np.cumsum(first) - 1
    of_group = flow[last]
    read_total = np.bincount(group, weights=mine["read_bytes"]).astype(np.int64)
    written_total = np.bincount(group, weights=mine["written_bytes"]).astype(np.int64)
    # What nobody has read yet came after the last read, or it is not what nobody has read.
    unread_ns = streams.arrived.reached(of_group, read_total + 1)
    last_read_ns = np.maximum.reduceat(mine["last_read_ns"], np.flatnonzero(first))
    bad_in = (unread_ns >= 0) & (unread_ns < last_read_ns)
    early = (mine["read_count"] > 0) & ((mine["arrived_ns"] < 0) | (mine["arrived_whole_ns"] > mine["last_read_ns"]))
    bad_in |= np.bincount(group, weights=early) > 0
    bad_out = streams.sent.reached(of_group, written_total + 1) >= 0
    early = (mine["sent_ns"] >= 0) & (mine["sent_ns"] < mine["first_write_ns"])
    bad_out |= np.bincount(group, weights=early) > 0
    for names, bad in ((("arrived_ns", "arrived_whole_ns"), bad_in), (("sent_ns", "acked_ns"), bad_out)):
        for name in names:
            made[name][rows[bad[group]]] = NO_ID


def _witnessed(session: Session) -> npt.NDArray[np.bool_]:
    """Connections whose syscalls were seen from the beginning."""
    return np.array([c.witnessed for c in session.connections], np.bool_)


def _usable(session: Session) -> npt.NDArray[np.bool_]:
    """Connections which move as many bytes as the wire does."""
    usable = np.array([c.flow >= 0 for c in session.connections], np.bool_)
    layered = session.event_connection[kernel_tls(session.events)]
    usable[layered[layered >= 0]] = False
    return usable


@dataclass(frozen=True, slots=True)
class _Streams:
    """The two directions of the watched flows, and the peer's acknowledgments.

    `known`, `late`: shape (flows,), where the first bytes' numbers are known at all; where it is by what came first.
    """

    known: npt.NDArray[np.bool_]
    late: npt.NDArray[np.bool_]
    arrived: Reach
    sent: Reach
    acked: Reach

    @classmethod
    def of(cls, session: Session, rows: Ids, flow: Ids) -> _Streams:
        records = session.packets.records
        flags, seq, ack = records["flags"][rows], records["seq"][rows], records["ack"][rows]
        length = records["payload_bytes"][rows].astype(np.int64)
        local = _from_local(session, rows, flow)
        when = session.packet_ns[rows]
        opens, acks = (flags & TcpFlag.SYN) != 0, (flags & TcpFlag.ACK) != 0
        known, late = np.zeros(len(session.flows), np.bool_), np.zeros(len(session.flows), np.bool_)
        ours = np.zeros(len(session.flows), np.uint32)
        theirs = np.zeros(len(session.flows), np.uint32)
        answers = np.flatnonzero(opens & acks & local)[::-1]
        known[flow[answers]] = True
        # The first byte's number; a SYN counts one.
        ours[flow[answers]] = seq[answers] + np.uint32(1)
        theirs[flow[answers]] = ack[answers]
        syns = np.flatnonzero(opens & ~local)[::-1]
        theirs[flow[syns]] = seq[syns] + np.uint32(1)
        start = seq + opens.astype(np.uint32)
        came = np.flatnonzero((length > 0) & ~local)
        went = np.flatnonzero((length > 0) & local)
        for firsts, numbers in ((came[::-1], theirs), (went[::-1], ours)):
            firsts = firsts[~known[flow[firsts]]]
            numbers[flow[firsts]] = start[firsts]
            late[flow[firsts]] = True
        known |= late
        # What acknowledges bytes of before says nothing of these.
        heard = np.flatnonzero(acks & ~local & ((flags & TcpFlag.RST) == 0) & known[flow])
        return cls(
            known,
            late,
            Reach.of(flow[came], stream_offsets(flow[came], start[came], theirs) + length[came], when[came]),
            Reach.of(flow[went], stream_offsets(flow[went], start[went], ours) + length[went], when[went]),
            Reach.of(flow[heard], stream_offsets(flow[heard], ack[heard], ours), when[heard]),
        )


def _from_local(session: Session, rows: Ids, flow: Ids) -> npt.NDArray[np.bool_]:
    """Which packets the target's side sent."""
    local_is_second = np.zeros(len(session.flows), np.bool_)
    for one in session.connections:
        if one.flow >= 0:
            local_is_second[one.flow] = one.local_side == 1
    found: npt.NDArray[np.bool_] = sent_by_second(session.packets, rows, flow, session.flows) == local_is_second[flow]
    return found
