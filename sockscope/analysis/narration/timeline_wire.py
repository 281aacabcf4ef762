"""Packets of one connection as timeline items, in tcpdump's manner: flags, relative numbers, payload."""

from __future__ import annotations

from functools import cache

from sockscope.analysis.narration.http1 import Direction, Http1State, tell
from sockscope.analysis.narration.payload import payload_words, quote
from sockscope.analysis.narration.wire_words import mark_words
from sockscope.analysis.session import Session
from sockscope.model.connections import Connection
from sockscope.model.report import Lane, TimelineItem
from sockscope.model.sockaddr import Address, encode_key
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


class WireTeller:
    """Tells packets in order of time; keeps sequence bases and where HTTP stands."""

    def __init__(self, session: Session, connection: Connection) -> None:
        self._session = session
        self._connection = connection
        self._state = Http1State()
        local: Address | None = connection.local
        if connection.flow >= 0:
            local = session.flows[connection.flow].ends[connection.local_side]
        self._local = encode_key(local) if local is not None else None
        self._port = local.port if local is not None else 0
        self._base = self._bases()

    def _is_sent(self, source: bytes, port: int, outgoing: int) -> bool:
        """Whether the target's side sent it."""
        if self._local is None:
            return bool(outgoing)
        return port == self._port and source == self._local

    def _bases(self) -> dict[bool, int]:
        """The number before the first byte of each direction: its SYN's, else as its first packet tells."""
        base: dict[bool, int] = {}
        records = self._session.packets.records
        # The first packets of both directions; a handshake takes three.
        for row in self._session.packets_of(self._connection.id)[:64].tolist():
            _, source, _, port, _, seq, ack, _, flags, *_, outgoing = records[row].tolist()
            sent = self._is_sent(source.tobytes(), port, outgoing)
            base.setdefault(sent, seq - (0 if flags & _SYN else 1))
            if flags & _ACK:
                base.setdefault(not sent, ack - 1)
            if len(base) == 2:
                break
        return base

    def item(self, row: int) -> TimelineItem:
        packets = self._session.packets
        # One conversion for the whole row, in PACKET_DTYPE's order: field by field costs three times as much.
        (_, source, _, port, _, seq, ack, window, flags, protocol, total, _, offset, captured, _, _, outgoing) = (
            packets.records[row].tolist()
        )
        sent = self._is_sent(source.tobytes(), port, outgoing)
        payload = packets.raw[offset : offset + captured].tobytes()
        mark = int(self._session.packet_marks[row]) if row < len(self._session.packet_marks) else 0
        if protocol == _TCP:
            name = flag_names(flags)
            seq = (seq - self._base.get(sent, 0)) % _WRAP
            text = f"[{name}] seq {seq}" + (f":{seq + total}" if total else "")
            if flags & _ACK:
                text += f" ack {(ack - self._base.get(not sent, 0)) % _WRAP}"
            text += f" win {window} len {total}"
        else:
            flags = 0
            name = "datagram"
            text = f"datagram len {total}"
        if payload:
            text += f" {quote(payload, more=total > len(payload), limit=_PAYLOAD_SHOWN)}"
        return TimelineItem(
            time_ns=int(self._session.packet_ns[row]),
            duration_ns=0,
            lane=Lane.WIRE,
            actor="->" if sent else "<-",
            name=name,
            text=text,
            words=self._marked(mark, sent, flags, payload, total),
            ref=row,
            failed=bool(flags & _RST),
        )

    def _marked(self, mark: int, sent: bool, flags: int, payload: bytes, total: int) -> str:
        """What it is; and what it says, unless that was said before."""
        told = mark_words(mark)
        if mark & _SAID_BEFORE:
            return told
        return ", ".join(part for part in (self._words(sent, flags, payload, total), told) if part)

    def _words(self, sent: bool, flags: int, payload: bytes, total: int) -> str:
        if flags & _SYN:
            return "agrees to connect" if flags & _ACK else "asks to connect"
        if flags & _RST:
            return "resets the connection"
        parts = []
        if total:
            direction = Direction.SENT if sent else Direction.RECEIVED
            parts.append(tell(direction, payload, total, self._state) or payload_words(payload, total))
        if flags & _FIN:
            parts.append("ends its half" if not parts else "and ends its half")
        return " ".join(parts)


@cache
def flag_names(flags: int) -> str:
    """`SYN,ACK`; `none` for no flag. In the order people say them: SYN, FIN, RST before PSH and ACK."""
    return ",".join(title for bit, title in _IN_ORDER if flags & bit) or "none"
