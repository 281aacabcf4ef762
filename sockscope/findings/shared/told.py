"""What the kernel told of a connection, as rules ask for it: exact, and there without packets.

Only an engine that hears the kernel brings it. It makes times exact and stands in for what was not captured; the
packets, where there are any, decide as they do without it.
"""

from __future__ import annotations

import numpy as np

from sockscope.analysis.narration.kernel_story import event_words
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import noted
from sockscope.model.calls import Call
from sockscope.model.connections import Connection
from sockscope.model.findings import Evidence, Source
from sockscope.model.ids import NO_ID
from sockscope.model.kernel import KERNEL_REF
from sockscope.model.tcp import TcpState

_PEER_ENDED = np.array([TcpState.CLOSE_WAIT, TcpState.CLOSING], np.uint8)
_WE_ENDED = np.array([TcpState.FIN_WAIT1, TcpState.LAST_ACK], np.uint8)


def _changes(session: Session, connection: Connection) -> Ids:
    rows = session.kernel_of(connection.id)
    found: Ids = rows[session.kernel["call"][rows] == Call.sock_state]
    return found


def _first(session: Session, rows: Ids, wanted: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    fits = np.isin(session.kernel["new"][rows], wanted)
    return int(rows[int(np.argmax(fits))]) if fits.any() else NO_ID


def last_change(session: Session, connection: Connection, *, before_ns: int) -> int:
    """The last state change told before that time; -1 for none."""
    rows = _changes(session, connection)
    rows = rows[session.kernel["time_ns"][rows] < before_ns]
    return int(rows[-1]) if len(rows) else NO_ID


def peer_ended(session: Session, connection: Connection) -> int:
    """The change by which the peer's FIN showed (a row of `session.kernel`); -1 for none told."""
    return _first(session, _changes(session, connection), _PEER_ENDED) if len(session.kernel) else NO_ID


def ended_here(session: Session, connection: Connection) -> int:
    """The change by which our FIN went out: into FIN_WAIT1 or LAST_ACK; -1 for none told."""
    return _first(session, _changes(session, connection), _WE_ENDED) if len(session.kernel) else NO_ID


def established(session: Session, connection: Connection) -> int:
    """The change that completed the handshake; -1 for none told."""
    if not len(session.kernel):
        return NO_ID
    return _first(session, _changes(session, connection), np.array([TcpState.ESTABLISHED], np.uint8))


def reset(session: Session, connection: Connection, *, sent: bool | None = None) -> int:
    """The first RST (`sent`: of that direction alone); -1 for none told."""
    if not len(session.kernel):
        return NO_ID
    rows = session.kernel_of(connection.id)
    wanted = {None: (Call.tcp_reset_sent, Call.tcp_reset_received), True: (Call.tcp_reset_sent,)}
    found = rows[np.isin(session.kernel["call"][rows], wanted.get(sent, (Call.tcp_reset_received,)))]
    return int(found[0]) if len(found) else NO_ID


def when(session: Session, row: int) -> int | None:
    """The time of a row; None for -1."""
    return int(session.kernel["time_ns"][row]) if row >= 0 else None


def told_by_kernel(session: Session, row: int, note: str = "") -> list[Evidence]:
    """A row as evidence: `kernel: ESTABLISHED → CLOSE_WAIT`; empty for -1."""
    if row < 0:
        return []
    one = session.kernel[row]
    _, text, _ = event_words(int(one["call"]), int(one["old"]), int(one["new"]))
    ref = KERNEL_REF + int(one["event"])
    return [Evidence(source=Source.SOCKET, time_ns=int(one["time_ns"]), text=noted(text, note), ref=ref)]
