"""Connections and flows: what syscalls, packets and kernel states are joined into."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sockscope.model.ids import NO_ID
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import TcpState


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    UNIX = "unix"


class Role(StrEnum):
    SERVER = "server"
    CLIENT = "client"
    UNKNOWN = "unknown"


@dataclass(slots=True, kw_only=True)
class Flow:
    """One TCP connection on the wire, both directions. Side 0 opened it (sent SYN, or the first seen).

    Times are CLOCK_MONOTONIC ns; None: not seen. Pairs are (side 0, side 1).
    """

    id: int
    ends: tuple[Address, Address]
    first_ns: int
    last_ns: int
    packet_count: tuple[int, int] = (0, 0)
    payload_bytes: tuple[int, int] = (0, 0)
    """Distinct sequence bytes (retransmissions not counted twice)."""
    syn_ns: int | None = None
    synack_ns: int | None = None
    established_ns: int | None = None
    fin_ns: tuple[int | None, int | None] = (None, None)
    fin_acked_ns: tuple[int | None, int | None] = (None, None)
    rst_ns: tuple[int | None, int | None] = (None, None)
    last_payload_ns: tuple[int | None, int | None] = (None, None)
    retransmission_count: tuple[int, int] = (0, 0)
    zero_window_count: tuple[int, int] = (0, 0)


@dataclass(slots=True, kw_only=True)
class Connection:
    """One endpoint of the target, with all that is known of it. `local` is the target's side.

    A connection may lack any of the three sources: no open file (never accepted, or only on the
    wire), no flow (packets off), no socket rows (between two snapshots).
    """

    id: int
    protocol: Protocol
    role: Role
    local: Address | None
    peer: Address | None
    first_ns: int
    last_ns: int
    open_file: int = NO_ID
    listener: int = NO_ID
    """Open file id of its listener, where known."""
    opened_event: int = NO_ID
    """accept, connect or socketpair; NO_ID: it was there at attach or no process owns it."""
    witnessed: bool = False
    """Its beginning was seen by the tracer."""
    flow: int = NO_ID
    local_side: int = 0
    """Which side of the flow is `local`."""
    inode: int = 0
    cookie: int = 0
    netns: int = 0
    state: TcpState = TcpState.UNKNOWN
    """As of the last snapshot that shows it; UNKNOWN where none does."""
    state_ns: int | None = None
    gone_ns: int | None = None
    """The first snapshot that no longer shows it, or where none ever did the release of its open file;
    None while there or unknown."""
    recv_q: int = 0
    send_q: int = 0
    read_bytes: int = 0
    """Returned by the target's reads; in a session without syscalls what the wire brought (distinct bytes)."""
    written_bytes: int = 0
    eof_ns: int | None = None
    """First time a read returned 0 (stream), so the program was told of the peer's FIN."""
    eof_event: int = NO_ID
    owners: list[tuple[int, int]] = field(default_factory=list)
    """(tgid, fd) that hold it at the end: from replay where traced, else from /proc."""
    never_accepted: bool = False
    """In the accept queue: no process owns it (inode 0 and ESTABLISHED or CLOSE_WAIT at the end)."""
