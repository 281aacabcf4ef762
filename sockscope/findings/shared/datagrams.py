"""What came to a datagram socket, from the wire or from senders that are watched too, held against what was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.replay.decode import section_of, socket_address
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import WRITES
from sockscope.model.descriptors import OpenFile
from sockscope.model.events import Section
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import Address, Family, encode_key, from_key

_UDP = 17
_SOCK_DGRAM, _SOCK_SEQPACKET = 2, 5
_INET = (Family.INET, Family.INET6)
_WRITES = np.array(sorted(WRITES), np.uint16)
_PREFIX = 32
"""Bytes by which a datagram is known again: every engine and capture copies more."""
_KEPT = 20_000
"""Arrivals looked at for each socket."""
_LATE_NS = 1_000_000
"""A packet may be stamped so much after the read that took it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One datagram on its way to a socket.

    Attributes:
        size: of the whole datagram.
        source: who sent it, where that is known.
        packet, event: its packet row, or the send; -1 for the other one.
    """

    time_ns: int
    size: int
    source: Address | None
    head: bytes
    packet: int = NO_ID
    event: int = NO_ID

    def prefix(self, size: int) -> bytes:
        """Its beginning, as `prefix_of` gives that of a read of `size` bytes."""
        return self.head[: min(size, _PREFIX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """`rows`: those at least as long as asked for, in time. `count`: all that came; 0 where nobody can say."""

    rows: list[Arrival]
    count: int


def is_datagram(file: OpenFile) -> bool:
    """A UDP socket, or a unix one that keeps messages apart."""
    if file.kind != FileKind.SOCKET:
        return False
    if file.family == Family.UNIX:
        return file.socket_type in (_SOCK_DGRAM, _SOCK_SEQPACKET)
    return file.family in _INET and file.socket_type == _SOCK_DGRAM


def arrivals(session: Session, file: OpenFile, size: int) -> Arrivals | None:
    """The datagrams of at least `size` bytes that came to this socket; None where nothing could show them."""
    if file.family == Family.UNIX:
        return _sent_to(session, file, size)
    whole = session.info.packets.available and session.info.packets.whole
    if not whole or file.local is None or not file.local.port:
        return None
    return _on_the_wire(session, file.local, size)


def _on_the_wire(session: Session, local: Address, size: int) -> Arrivals:
    packets = session.packets.records
    mine = (packets["dport"] == local.port) & (packets["protocol"] == _UDP)
    if any(local.packed):
        mine &= (packets["dst"] == np.frombuffer(encode_key(local), np.uint8)).all(axis=1)
    rows = np.nonzero(mine)[0]
    long = rows[packets["payload_bytes"][rows] >= size]
    long = long[np.argsort(session.packet_ns[long], kind="stable")][:_KEPT]
    return Arrivals(
        rows=[
            Arrival(
                time_ns=int(session.packet_ns[row]),
                size=int(packets["payload_bytes"][row]),
                source=from_key(packets["src"][row].tobytes(), int(packets["sport"][row])),
                head=session.packets.payload_of(row)[:_PREFIX],
                packet=row,
            )
            for row in long.tolist()
        ],
        count=len(rows),
    )


def _sent_to(session: Session, file: OpenFile, size: int) -> Arrivals | None:
    """Sends of watched processes to a unix socket: through the pair's other end, or to its name."""
    records = session.events.records
    name = file.local.packed if file.local is not None else b""
    found: list[Arrival] = []
    seen = False
    for other in session.open_files:
        paired = other.pair == file.id or file.pair == other.id >= 0
        if not paired and not (name and is_datagram(other) and other.family == Family.UNIX):
            continue
        connected = other.peer is not None and other.peer.packed == name
        sends = _sends(session, other)
        for event in sends[:_KEPT].tolist():
            to = socket_address(session.events.blob_of(event))
            if paired or (connected and to is None) or (to is not None and to.packed == name):
                seen = True
                found += _as_arrival(session, event, int(records["ret"][event]), size)
    found.sort(key=lambda one: one.time_ns)
    return Arrivals(rows=found, count=0) if seen else None


def _sends(session: Session, file: OpenFile) -> Ids:
    records = session.events.records
    calls = session.events_of_open_file(file.id)
    return calls[np.isin(records["call"][calls], _WRITES) & (records["ret"][calls] > 0)]


def _as_arrival(session: Session, event: int, length: int, size: int) -> list[Arrival]:
    payload = section_of(session.events.blob_of(event), Section.PAYLOAD)
    if length < size or payload is None:
        return []
    entered = int(session.events.records["enter_ns"][event])
    return [Arrival(time_ns=entered, size=length, source=None, head=payload[:_PREFIX], event=event)]


def prefix_of(session: Session, event: int, size: int) -> bytes | None:
    """The beginning of what a read of `size` bytes brought; None where too little of it was copied."""
    payload = section_of(session.events.blob_of(event), Section.PAYLOAD) or b""
    wanted = min(size, _PREFIX)
    return payload[:wanted] if len(payload) >= wanted else None


def source_of(session: Session, event: int) -> Address | None:
    """Whom a read said that it came from, v4-mapped addresses as IPv4."""
    address = socket_address(session.events.blob_of(event))
    return address if address is not None and address.family in _INET else None


def beyond(session: Session, reads: Sequence[int], came: Sequence[Arrival], size: int) -> Iterator[tuple[int, Arrival]]:
    """Reads of `size` bytes that must have taken a longer datagram, with one that they can have taken.

    Args:
        reads: that filled their buffer, in time, all with the same beginning.
        came: every arrival with that beginning and at least that size, in time.
    """
    exits = session.events.records["exit_ns"]
    spare = sum(one.size == size for one in came)
    longer = [one for one in came if one.size > size]
    proven = len(reads) - spare
    for read in reversed(reads):
        if proven <= 0:
            return
        # First in, first out: the last read took the last one that was there.
        index = next((i for i in reversed(range(len(longer))) if longer[i].time_ns <= exits[read] + _LATE_NS), None)
        if index is None:
            return
        proven -= 1
        yield read, longer.pop(index)
