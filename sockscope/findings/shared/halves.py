"""The two halves of a TCP connection: when each side ended its own, and how the program was told."""

from __future__ import annotations

import struct

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared import told
from sockscope.findings.shared.evidence import from_event, from_packet, from_socket
from sockscope.model.calls import Call
from sockscope.model.connections import Connection, Flow
from sockscope.model.descriptors import EpollInterest
from sockscope.model.events import Section
from sockscope.model.findings import Evidence
from sockscope.model.sockaddr import encode_key
from sockscope.model.tcp import TcpFlag, TcpState

EPOLLHUP = 0x10
EPOLLRDHUP = 0x2000
_PEER_HAS_ENDED = np.array([TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING], np.uint8)


def flow_of(session: Session, connection: Connection) -> Flow | None:
    """The connection on the wire; None where no packet of it was captured."""
    return session.flows[connection.flow] if connection.flow >= 0 else None


def ended_itself(session: Session, connection: Connection, before_ns: int) -> bool:
    """Whether the target's FIN went out before that time (by packets or the kernel), or shutdown was called for it."""
    flow = flow_of(session, connection)
    fin_ns = flow.fin_ns[connection.local_side] if flow else None
    if fin_ns is None:
        fin_ns = told.when(session, told.ended_here(session, connection))
    return (fin_ns is not None and fin_ns < before_ns) or shutdown_event(session, connection, writing=True) >= 0


def was_reset(session: Session, connection: Connection, before_ns: int) -> bool:
    """Whether either side sent RST before that time."""
    flow = flow_of(session, connection)
    at_ns = told.when(session, told.reset(session, connection))
    times = (*(flow.rst_ns if flow is not None else ()), at_ns)
    return any(at is not None and at < before_ns for at in times)


def peer_fin_ns(session: Session, connection: Connection) -> int | None:
    """When the peer ended its half: its FIN on the wire, else as the kernel told, else the end of file read, else
    the first such snapshot.

    A read also returns 0 after the program's own shutdown(SHUT_RD): where there are packets, they decide.
    """
    flow = flow_of(session, connection)
    on_wire = flow.fin_ns[1 - connection.local_side] if flow else None
    if on_wire is not None:
        return on_wire
    exact = told.when(session, told.peer_ended(session, connection))
    if exact is not None:
        return exact
    seen_whole = flow is not None and session.info.packets.whole
    if connection.eof_ns is not None and not seen_whole and shutdown_event(session, connection) < 0:
        return connection.eof_ns
    rows = session.samples_of(connection.id)
    ended = rows[np.isin(session.sockets.records["state"][rows], _PEER_HAS_ENDED)]
    return int(session.sockets.records["time_ns"][ended[0]]) if len(ended) else None


def shutdown_event(session: Session, connection: Connection, *, writing: bool = False) -> int:
    """The program's first successful shutdown(2) of it (`writing`: of its own half); -1 for none."""
    events = session.events_of(connection.id)
    rows = session.events.records[events]
    fits = (rows["call"] == Call.shutdown) & (rows["ret"] == 0)
    if writing:
        fits &= rows["args"][:, 1] != 0  # SHUT_RD is 0
    found = events[fits]
    return int(found[0]) if len(found) else -1


def last_state(session: Session, connection: Connection, after_ns: int, before_ns: int) -> TcpState | None:
    """The state in the last snapshot taken between those times; None where there was none."""
    rows = session.samples_of(connection.id)
    times = session.sockets.records["time_ns"][rows]
    rows = rows[(times > after_ns) & (times < before_ns)]
    if not len(rows):
        return None
    state = int(session.sockets.records["state"][rows[-1]])
    return TcpState(state) if state in TcpState._value2member_map_ else TcpState.UNKNOWN


class HangUps:
    """Which epoll_wait first told of each connection's hang-up. Looked through once, and only if asked.

    Args:
        session: the joined session; it must not change meanwhile.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked: dict[int, list[EpollInterest]] = {}
        for interest in session.interests:
            # EPOLLHUP, which needs no asking, comes only when both halves are over.
            if interest.events & EPOLLRDHUP:
                self._asked.setdefault(interest.open_file, []).append(interest)
        self._told: dict[int, dict[int, list[int]]] = {}

    def event_of(self, connection: Connection) -> int:
        """The first epoll_wait that said EPOLLRDHUP or EPOLLHUP of it; -1 for none."""
        for interest in self._asked.get(connection.open_file, []):
            if interest.epoll not in self._told:
                self._told[interest.epoll] = _hang_ups(self._session, interest.epoll)
            for wait in self._told[interest.epoll].get(interest.data, []):
                if self._session.effective_ns[wait] >= interest.added_ns:
                    return wait
        return -1


def _hang_ups(session: Session, epoll: int) -> dict[int, list[int]]:
    """data → the waits on this epoll instance that said so of it, in order."""
    told: dict[int, list[int]] = {}
    waits = session.events_of_open_file(epoll)
    for wait in map(int, waits[session.events.records["ret"][waits] > 0]):
        packed = session.events.section(wait, Section.EPOLL_EVENTS)
        aligned = None if packed is not None else session.events.section(wait, Section.EPOLL_EVENTS_ALIGNED)
        for events, data in _pairs("<IQ", packed or b"") + _pairs("<I4xQ", aligned or b""):
            if events & (EPOLLRDHUP | EPOLLHUP):
                told.setdefault(data, []).append(wait)
    return told


def _pairs(layout: str, packed: bytes) -> list[tuple[int, int]]:
    size = struct.calcsize(layout)
    return [(e, d) for e, d in struct.iter_unpack(layout, packed[: len(packed) // size * size])]


def packet_row(session: Session, connection: Connection, *, from_peer: bool, flags: TcpFlag) -> int:
    """The first packet of that side with all these flags; -1 for none."""
    sender = connection.peer if from_peer else connection.local
    rows = session.packets_of(connection.id)
    if sender is None or not len(rows):
        return -1
    packets = session.packets.records[rows]
    key = np.frombuffer(encode_key(sender), np.uint8)
    fits = (packets["sport"] == sender.port) & (packets["src"] == key).all(axis=1)
    fits &= (packets["flags"] & int(flags)) == int(flags)
    return int(rows[int(np.argmax(fits))]) if fits.any() else -1


def packet_evidence(
    session: Session, connection: Connection, *, from_peer: bool, flags: TcpFlag, note: str
) -> list[Evidence]:
    """That packet as evidence; empty where it was not captured."""
    row = packet_row(session, connection, from_peer=from_peer, flags=flags)
    return [from_packet(session, row, note)] if row >= 0 else []


def told_evidence(session: Session, event: int) -> list[Evidence]:
    """How the program was told of the peer's FIN."""
    return [from_event(session, event, "told: the peer has ended its half")] if event >= 0 else []


def last_sample_evidence(
    session: Session, connection: Connection, note: str = "", *, before_ns: int | None = None
) -> list[Evidence]:
    """What the last snapshot (before that time) that shows the connection says of it."""
    rows = session.samples_of(connection.id)
    if before_ns is not None:
        rows = rows[session.sockets.records["time_ns"][rows] < before_ns]
    return [from_socket(session, int(rows[-1]), note)] if len(rows) else []


def _from_peer(session: Session, connection: Connection, before_ns: int | None) -> Ids:
    """Packet rows that carry the peer's payload."""
    rows = session.packets_of(connection.id)
    if connection.peer is None or not len(rows):
        return rows[:0]
    packets = session.packets.records[rows]
    key = np.frombuffer(encode_key(connection.peer), np.uint8)
    fits = (packets["sport"] == connection.peer.port) & (packets["src"] == key).all(axis=1)
    fits &= packets["payload_bytes"] > 0
    if before_ns is not None:
        fits &= session.packet_ns[rows] <= before_ns
    found: Ids = rows[fits]
    return found


def arrived_bytes(session: Session, connection: Connection, before_ns: int) -> int:
    """Bytes of the peer's stream seen up to that time; what was sent again counts once."""
    rows = _from_peer(session, connection, before_ns)
    if not len(rows):
        return 0
    packets = session.packets.records[rows]
    ends = packets["seq"] + packets["payload_bytes"]  # modulo 2**32, as TCP counts
    offsets = (ends - packets["seq"][0]).astype(np.int32)
    return int(offsets.max())


def last_payload_row(session: Session, connection: Connection) -> int:
    """The peer's last packet with payload; -1 for none."""
    rows = _from_peer(session, connection, None)
    return int(rows[-1]) if len(rows) else -1
