"""Closes that go out as RST instead of FIN: SO_LINGER 0 was set, or something was left unread."""

from __future__ import annotations

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import GRACE_NS, NS_PER_MS
from sockscope.findings.shared.halves import flow_of
from sockscope.findings.shared.holding import Copy, Holdings, payload_moves
from sockscope.findings.shared.told import reset, when
from sockscope.model.connections import Connection
from sockscope.model.ids import NO_ID

_PROMPTLY_NS = 50 * NS_PER_MS
_EARLY_NS = NS_PER_MS
"""A packet may be stamped a little before the close that caused it."""


def reset_by_close(session: Session, holdings: Holdings, connection: Connection) -> tuple[Copy, int] | None:
    """The descriptor that the program closed last, and when the RST that this caused went out; None for no such end.

    By the packets; where none were captured, by what the kernel told.
    """
    rst_ns = _first_rst_ns(session, connection)
    held = holdings.copies(connection.open_file) if rst_ns is not None else []
    if rst_ns is None or not held:
        return None
    last = max(held, key=lambda copy: copy.descriptor.closed_ns or session.info.ended_ns)
    closed_ns = last.descriptor.closed_ns
    if closed_ns is None or not last.given_up or not -_EARLY_NS <= rst_ns - closed_ns <= _PROMPTLY_NS:
        return None
    return last, rst_ns


def _first_rst_ns(session: Session, connection: Connection) -> int | None:
    """When its first RST went out, of ours, with no FIN of ours and no RST of the peer before."""
    flow = flow_of(session, connection)
    if flow is None:
        return None if session.info.packets.available else when(session, reset(session, connection, sent=True))
    rst_ns = flow.rst_ns[connection.local_side]
    before = flow.fin_ns[connection.local_side], flow.rst_ns[1 - connection.local_side]
    return None if rst_ns is None or any(at is not None and at <= rst_ns for at in before) else rst_ns


def last_write(session: Session, connection: Connection) -> int:
    """The last write that moved anything; -1: none did."""
    _, writes = payload_moves(session, session.events_of(connection.id))
    return int(writes[-1]) if len(writes) else NO_ID


def is_fresh(session: Session, write: int, copy: Copy) -> bool:
    """Whether it was made so shortly before the close that the peer may not have got it."""
    return write >= 0 and (copy.descriptor.closed_ns or 0) - int(session.effective_ns[write]) < GRACE_NS
