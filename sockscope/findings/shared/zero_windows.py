"""Times in which one side of a connection advertised no room: it does not read what it is sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.on_wire import Wire
from sockscope.model.connections import Connection
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpFlag

KEEPALIVE = 2
"""idiag_timer: SO_KEEPALIVE is on, and nothing else is being waited for."""
PROBING = 4
"""idiag_timer: the zero window probe's (include/net/tcp.h, icsk_pending ICSK_TIME_PROBE0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure:
    """One time of a closed window.

    Attributes:
        row: the first packet that said so (or, with `sampled`, the first socket row); last_row: the last one.
        opened_row: the packet that told of room again; -1 where none did.
        sampled: known from snapshots alone, where the packets were not captured.
    """

    since_ns: int
    until_ns: int
    row: int
    last_row: int
    opened_row: int = NO_ID
    sampled: bool = False

    @property
    def length_ns(self) -> int:
        return self.until_ns - self.since_ns


Closures = dict[tuple[int, int], list[Closure]]
"""(flow, side) → its closures in order of time."""


def on_the_wire(session: Session) -> Closures:
    """Every closure that packets show; one that nothing ended lasts to the end of the session."""
    told = session.flows.columns.zero_window_count.sum(axis=1) > 0
    found: Closures = {}
    if not told.any():
        return found
    wire = Wire.of(session, told)
    # What a reset carries is no window, and a SYN's is not scaled.
    said = np.flatnonzero(wire.has(TcpFlag.ACK) & ~wire.has(TcpFlag.RST | TcpFlag.SYN))
    end = wire.flow[said] * 2 + wire.side[said]
    order = np.argsort(end, kind="stable")
    said, end = said[order], end[order]
    closed = wire.window[said] == 0
    begins = closed & np.append(True, (end[1:] != end[:-1]) | ~closed[:-1])
    for at in np.flatnonzero(begins).tolist():
        last = at
        while last + 1 < len(said) and end[last + 1] == end[at] and closed[last + 1]:
            last += 1
        ended = last + 1 < len(said) and end[last + 1] == end[at]
        found.setdefault((int(end[at]) // 2, int(end[at]) % 2), []).append(
            Closure(
                since_ns=int(wire.time_ns[said[at]]),
                until_ns=int(wire.time_ns[said[last + 1]]) if ended else session.info.ended_ns,
                row=int(wire.rows[said[at]]),
                last_row=int(wire.rows[said[last]]),
                opened_row=int(wire.rows[said[last + 1]]) if ended else NO_ID,
            )
        )
    return found


def in_snapshots(session: Session, connection: Connection) -> list[Closure]:
    """Runs of snapshots in which the socket probes the peer's closed window."""
    rows = session.samples_of(connection.id)
    probing = session.sockets.records["timer"][rows] == PROBING
    times = session.sockets.records["time_ns"][rows]
    begins = np.flatnonzero(probing & np.append(True, ~probing[:-1]))
    ends = np.flatnonzero(probing & np.append(~probing[1:], True))
    return [
        Closure(
            since_ns=int(times[first]),
            until_ns=int(times[last]),
            row=int(rows[first]),
            last_row=int(rows[last]),
            sampled=True,
        )
        for first, last in zip(begins.tolist(), ends.tolist(), strict=True)
    ]


def probing_connections(session: Session) -> Ids:
    """Connections whose peer's window some snapshot shows closed."""
    probing = (session.sockets.records["timer"] == PROBING) & (session.socket_connection >= 0)
    found: Ids = np.unique(session.socket_connection[probing]).astype(np.int64)
    return found


def cut_at(closures: list[Closure], end_ns: int) -> list[Closure]:
    """The closures up to that time: what lasts beyond it costs the program nothing more."""
    kept = (one for one in closures if one.since_ns < end_ns)
    return [
        one
        if one.until_ns <= end_ns
        else Closure(since_ns=one.since_ns, until_ns=end_ns, row=one.row, last_row=one.last_row, sampled=one.sampled)
        for one in kept
    ]
