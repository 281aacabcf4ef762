"""Packets of one connection as timeline items, in tcpdump's manner: flags, relative numbers, payload."""

from __future__ import annotations

from sockscope.analysis.http1 import Direction, Http1State, tell
from sockscope.analysis.payload import payload_words, quote
from sockscope.analysis.session import Session
from sockscope.model.connections import Connection
from sockscope.model.report import Lane, TimelineItem
from sockscope.model.sockaddr import Address, encode_key
from sockscope.model.tcp import TcpFlag

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
_PAYLOAD_SHOWN = 32


class WireTeller:
    """Tells packets in order of time; keeps sequence bases and where HTTP stands."""

    def __init__(self, session: Session, connection: Connection) -> None:
        self._session = session
        self._connection = connection
        self._state = Http1State()
        self._base = self._bases()
        self._highest: dict[bool, int] = {}

    def _is_sent(self, row: int) -> bool:
        """Whether the target's side sent it."""
        packet = self._session.packets.records[row]
        if self._connection.flow >= 0:
            local: Address | None = self._session.flows[self._connection.flow].ends[self._connection.local_side]
        else:
            local = self._connection.local
        if local is None:
            return bool(packet["outgoing"])
        return int(packet["sport"]) == local.port and packet["src"].tobytes() == encode_key(local)

    def _bases(self) -> dict[bool, int]:
        """The number before the first byte of each direction: its SYN's, else as its first packet tells."""
        base: dict[bool, int] = {}
        records = self._session.packets.records
        # The first packets of both directions; a handshake takes three.
        for row in self._session.packets_of(self._connection.id)[:64].tolist():
            packet = records[row]
            sent = self._is_sent(row)
            opens = int(packet["flags"]) & _SYN
            base.setdefault(sent, int(packet["seq"]) - (0 if opens else 1))
            if int(packet["flags"]) & _ACK:
                base.setdefault(not sent, int(packet["ack"]) - 1)
            if len(base) == 2:
                break
        return base

    def item(self, row: int) -> TimelineItem:
        packet = self._session.packets.records[row]
        sent = self._is_sent(row)
        payload = self._session.packets.payload_of(row)
        total = int(packet["payload_bytes"])
        is_tcp = int(packet["protocol"]) == _TCP
        again = False
        if is_tcp:
            flags = int(packet["flags"])
            name = flag_names(flags)
            seq = (int(packet["seq"]) - self._base.get(sent, 0)) % _WRAP
            again = self._seen_before(sent, seq, total, flags)
            text = f"[{name}] seq {seq}" + (f":{seq + total}" if total else "")
            if flags & _ACK:
                text += f" ack {(int(packet['ack']) - self._base.get(not sent, 0)) % _WRAP}"
            text += f" win {int(packet['window'])} len {total}"
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
            words="sent again" if again else self._words(sent, flags, payload, total),
            ref=row,
            failed=bool(flags & _RST),
        )

    def _seen_before(self, sent: bool, seq: int, total: int, flags: int) -> bool:
        length = total + bool(flags & _SYN) + bool(flags & _FIN)
        if not length or flags & _RST:
            return False
        end = seq + length
        highest = self._highest.get(sent)
        if highest is None or end > highest or highest - end > _WRAP // 2:
            self._highest[sent] = end
            return False
        return True

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


def flag_names(flags: int) -> str:
    """`SYN,ACK`; `none` for no flag. In the order people say them: SYN, FIN, RST before PSH and ACK."""
    return ",".join(title for bit, title in _IN_ORDER if flags & bit) or "none"
