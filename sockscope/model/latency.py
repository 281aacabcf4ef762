"""Where the time of a server's answers goes: phases of an exchange, and what they add up to for each server."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Place(StrEnum):
    """Who kept the client waiting."""

    WIRE = "wire"
    QUEUE = "kernel queue"
    PROGRAM = "program"


class Phase(StrEnum):
    """What an exchange goes through, in order. SYN → accept → first read → first write → last write → ACK."""

    HANDSHAKE = "handshake"
    """SYN to the handshake's last ACK; of a connection's first exchange only."""
    ACCEPT_QUEUE = "accept queue"
    """Handshake to the return of accept; of a connection's first exchange only."""
    REQUEST = "request"
    """The request's first byte to its last, on the wire."""
    SOCKET_QUEUE = "socket queue"
    """The whole request was there, and the program had not begun to read it."""
    THINKING = "read to write"
    """The whole request was there and being read, until the first write of the answer was entered."""
    WRITING = "first to last write"
    """Until the last write of the answer returned."""
    DELIVERY = "delivery"
    """Until the peer's ACK of the answer's last byte came."""


PLACES = {
    Phase.HANDSHAKE: Place.WIRE,
    Phase.ACCEPT_QUEUE: Place.QUEUE,
    Phase.REQUEST: Place.WIRE,
    Phase.SOCKET_QUEUE: Place.QUEUE,
    Phase.THINKING: Place.PROGRAM,
    Phase.WRITING: Place.PROGRAM,
    Phase.DELIVERY: Place.WIRE,
}

FEWEST_FOR_PERCENTILES = 5
"""Of fewer durations percentiles would claim what nobody measured: they are listed instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLatency:
    """One phase over all exchanges of a server in which both its ends were seen.

    Attributes:
        phase: a phase; None for the whole: the sum of an exchange's phases.
        count: exchanges.
        p50_ns, p95_ns, p99_ns, max_ns: nearest-rank percentiles: each is a duration that really was.
        each_ns: all durations in order of time, where there are fewer than FEWEST_FOR_PERCENTILES; else empty.
    """

    phase: Phase | None
    count: int
    p50_ns: int
    p95_ns: int
    p99_ns: int
    max_ns: int
    each_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSpan:
    """A phase of one exchange. `start_ns`: CLOCK_MONOTONIC."""

    phase: Phase
    start_ns: int
    duration_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowestExchange:
    """The exchange whose phases add up to most.

    Attributes:
        connection: its id, for its timeline.
        number: 0-based in its connection.
        duration_ns: the sum of its phases.
        phases: those whose ends were seen, in order. Between them lies what no phase counts: the client had not
            asked yet.
        tgid, comm: who answered.
        request: the request in words, `GET /slow`; empty where it is not HTTP/1.
        fin_ns: CLOCK_MONOTONIC of the FIN of the target's side, where this was its connection's last; None elsewhere.
    """

    connection: int
    number: int
    duration_ns: int
    phases: tuple[PhaseSpan, ...]
    tgid: int
    comm: str
    request: str
    read_bytes: int
    written_bytes: int
    fin_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLatency:
    """The answers of one server: of one local address and port, or one unix path.

    Attributes:
        exchange_count: requests that were read and answered.
        wire_count: of them, those whose bytes were found on the wire as well; of the others only the program's
            part is known.
        whole: the sums of the phases.
        phases: in order; those that were seen at all.
    """

    local: str
    connection_count: int
    exchange_count: int
    wire_count: int
    whole: PhaseLatency
    phases: tuple[PhaseLatency, ...]
    slowest: SlowestExchange
