"""Packets of connections as timeline items, in tcpdump's manner: flags, relative numbers, payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sockscope.analysis.narration.http1 import Direction, Http1State, Standings, tell
from sockscope.analysis.narration.payload import payload_words, quote
from sockscope.analysis.narration.wire_words import mark_words
from sockscope.analysis.session import Ids, Session
from sockscope.model.columns import picked
from sockscope.model.connections import Connection
from sockscope.model.report import Lane, TimelineRow
from sockscope.model.tcp import SegmentMark, TcpFlag

_TCP = 6
_FIN, _SYN, _RST, _ACK = int(TcpFlag.FIN), int(TcpFlag.SYN), int(TcpFlag.RST), int(TcpFlag.ACK)
_IN_ORDER = tuple(
    (int(flag), flag.name)
    for flag in (
        TcpFlag.SYN,
        TcpFlag.FIN,
        TcpFlag.RST,
        TcpFlag.PSH,
        TcpFlag.URG,
        TcpFlag.ECE,
        TcpFlag.CWR,
        TcpFlag.ACK,
    )
    if flag.name
)
_WRAP = 1 << 32
_SAID_BEFORE = int(SegmentMark.RETRANSMISSION | SegmentMark.KEEP_ALIVE | SegmentMark.ZERO_WINDOW_PROBE)
_PAYLOAD_SHOWN = 32
_LOOKED_AT = 64
_REMEMBERED = 1 << 15
"""Segments whose telling is kept, and HTTP standings it hangs on: most are like one before."""
_REMEMBERED_BYTES = 1 << 24
"""Of their payloads at most: a segment of a whole capture may have 64 KiB, unlike any other."""

_Segment: TypeAlias = tuple[tuple[bool, bool, int, int, int, int, int, int], bytes, int]
"""Sent, TCP, flags, relative seq and ack, window, payload bytes, mark; what was captured; the HTTP standing before."""
_Told: TypeAlias = tuple[str, str, str, str, bool, int]
"""Actor, name, text, words, failed; the standing after it."""


class PacketTeller:
    """Tells packets of connections, each connection's in order of time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._standings = Standings()
        self._told: dict[_Segment, _Told] = {}
        self._payload_bytes = 0

    def rows(self, connections: Sequence[Connection], place: Ids, part: Ids, packets: Ids) -> Iterator[TimelineRow]:
        """One an item.

        Args:
            connections: those that the packets are of.
            place: shape (n,), index into them of each packet, ascending.
            part: shape (n,), where it changes the story begins anew: nothing is known of HTTP before.
            packets: shape (n,), their rows, of each connection in time.
        """
        if max(len(self._told), len(self._standings)) > _REMEMBERED:
            self._told, self._standings, self._payload_bytes = {}, Standings(), 0
        session, ends = self._session, _Ends(self._session, connections)
        records, raw = picked(session.packets.records, packets), session.packets.raw.data
        sent = ends.sent(place, records)
        is_tcp = records["protocol"] == _TCP
        flags = np.where(is_tcp, records["flags"], 0)
        base = ends.bases()
        seq = np.where(is_tcp, (records["seq"] - base[place, sent.astype(np.int64)]) % _WRAP, 0)
        acked = (records["ack"] - base[place, (~sent).astype(np.int64)]) % _WRAP
        marks = np.zeros(len(packets), np.int64)
        marked = packets < len(session.packet_marks)
        marks[marked] = session.packet_marks[packets[marked]]
        window = np.where(is_tcp, records["window"], 0)
        columns = (sent, is_tcp, flags, seq, np.where(flags & _ACK, acked, 0), window, records["payload_bytes"], marks)
        offset, captured = records["payload_offset"].tolist(), records["captured_payload_bytes"].tolist()
        segments = zip(*(column.tolist() for column in columns), strict=True)
        places = zip(
            session.packet_ns[packets].tolist(), packets.tolist(), part.tolist(), offset, captured, strict=True
        )
        known, current, standing = self._told, -1, 0
        for seen, (time_ns, ref, each, begin, count) in zip(segments, places, strict=True):
            if each != current:
                current, standing = each, 0
            payload = bytes(raw[begin : begin + count]) if count else b""
            key = (seen, payload, standing)
            told = known.get(key) or self._look(key)
            actor, name, text, words, failed, standing = told
            yield time_ns, 0, Lane.WIRE, actor, name, text, words, ref, failed, False, False

    def _look(self, segment: _Segment) -> _Told:
        self._payload_bytes += len(segment[1])
        if self._payload_bytes > _REMEMBERED_BYTES:
            self._told.clear()
            self._payload_bytes = len(segment[1])
        told = self._told[segment] = self._tell(segment)
        return told

    def _tell(self, segment: _Segment) -> _Told:
        (sent, is_tcp, flags, seq, ack, window, total, mark), payload, standing = segment
        if is_tcp:
            name = flag_names(flags)
            text = f"[{name}] seq {seq}" + (f":{seq + total}" if total else "")
            if flags & _ACK:
                text += f" ack {ack}"
            text += f" win {window} len {total}"
        else:
            name = "datagram"
            text = f"datagram len {total}"
        if payload:
            text += f" {quote(payload, more=total > len(payload), limit=_PAYLOAD_SHOWN)}"
        state = self._standings.state(standing)
        words = _marked(state, mark, sent, flags, payload, total)
        return "->" if sent else "<-", name, text, words, bool(flags & _RST), self._standings.number(state)


class _Ends:
    """Which side of its connection a packet comes from, and where each side's sequence numbers begin."""

    def __init__(self, session: Session, connections: Sequence[Connection]) -> None:
        self._session = session
        self._ids = np.array([one.id for one in connections], np.int64)
        flows = np.array([one.flow for one in connections], np.int64)
        sides = np.array([one.local_side for one in connections], np.int64)
        self._key = np.zeros((len(connections), 16), np.uint8)
        self._port = np.zeros(len(connections), np.uint16)
        known, columns = flows >= 0, session.flows.columns
        self._key[known] = columns.key[flows[known], sides[known]]
        self._port[known] = columns.port[flows[known], sides[known]]

    def sent(self, place: Ids, records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        """Which the target's side sent: shape (n,)."""
        same = (records["src"] == self._key[place]).all(axis=1)
        sent: npt.NDArray[np.bool_] = same & (records["sport"] == self._port[place])
        return sent

    def bases(self) -> Ids:
        """The number before the first byte of each direction: its SYN's, else as its first packet tells.

        Returns:
            Shape (connections, 2), of what came and of what was sent; 0 where nothing tells.
        """
        place, packets = self._session.packets_of_each(self._ids)
        # The first packets of both directions; a handshake takes three.
        first = np.arange(len(place)) - np.searchsorted(place, place) < _LOOKED_AT
        place, records = place[first], picked(self._session.packets.records, packets[first])
        sent, flags = self.sent(place, records), records["flags"]
        seq, ack = records["seq"].astype(np.int64), records["ack"].astype(np.int64)
        base = np.zeros((len(self._ids), 2), np.int64)
        for direction in (False, True):
            own = sent == direction
            tells = np.flatnonzero(own | (flags & _ACK != 0))
            whose, begins = np.unique(place[tells], return_index=True)
            at = tells[begins]
            base[whose, int(direction)] = np.where(own[at], seq[at] - (flags[at] & _SYN == 0), ack[at] - 1)
        return base


def _marked(state: Http1State, mark: int, sent: bool, flags: int, payload: bytes, total: int) -> str:
    """What it is; and what it says, unless that was said before."""
    told = mark_words(mark)
    if mark & _SAID_BEFORE:
        return told
    return ", ".join(part for part in (_words(state, sent, flags, payload, total), told) if part)


def _words(state: Http1State, sent: bool, flags: int, payload: bytes, total: int) -> str:
    if flags & _SYN:
        return "agrees to connect" if flags & _ACK else "asks to connect"
    if flags & _RST:
        return "resets the connection"
    parts = []
    if total:
        direction = Direction.SENT if sent else Direction.RECEIVED
        parts.append(tell(direction, payload, total, state) or payload_words(payload, total))
    if flags & _FIN:
        parts.append("ends its half" if not parts else "and ends its half")
    return " ".join(parts)


@cache
def flag_names(flags: int) -> str:
    """`SYN,ACK`; `none` for no flag. In the order people say them: SYN, FIN, RST before PSH and ACK."""
    return ",".join(title for bit, title in _IN_ORDER if flags & bit) or "none"
