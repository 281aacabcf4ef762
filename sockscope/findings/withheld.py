"""Connections that their program closed and that somebody else keeps open: two rules tell of them."""

from __future__ import annotations

from dataclasses import dataclass

from sockscope.analysis.session import Session
from sockscope.findings.evidence import GRACE_NS
from sockscope.findings.halves import last_state, local_fin_ns, shutdown_event, was_reset
from sockscope.findings.holding import (
    DELIBERATE,
    Copy,
    copies,
    held_until,
    is_standard_stream,
    payload_moves,
    watches,
)
from sockscope.model.connections import Connection
from sockscope.model.tcp import TcpState

_STILL_OPEN = frozenset({None, TcpState.ESTABLISHED, TcpState.CLOSE_WAIT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """One connection without its FIN.

    Attributes:
        closer: the descriptor that was used, and closed when its process was done.
        holders: the others, of use to nobody, those that got it from elsewhere first.
        closed_ns: when the last one that was used was closed.
        withheld_ns: from then to the end of what was watched.
    """

    connection: Connection
    closer: Copy
    holders: tuple[Copy, ...]
    closed_ns: int
    withheld_ns: int


def withheld(session: Session, connection: Connection) -> Withheld | None:
    """Whether the connection's FIN is withheld; None where it is not, or where somebody may still use it."""
    every = copies(session, connection.open_file)
    closers = [c for c in every if len(c.uses) and c.descriptor.ended in DELIBERATE]
    if not closers or len(every) < 2:
        return None
    closer = max(closers, key=lambda one: one.descriptor.closed_ns or 0)
    closed_ns = closer.descriptor.closed_ns or 0
    if not _was_done(session, closer):
        return None
    holders = [copy for copy in every if held_until(session, copy) - closed_ns >= GRACE_NS]
    if not holders or any(_of_use(session, copy, closer) for copy in holders):
        return None
    end = max(held_until(session, copy) for copy in holders)
    if _ended_anyway(session, connection, end) or last_state(session, connection, closed_ns) not in _STILL_OPEN:
        return None
    holders.sort(key=lambda copy: (copy.tgid == closer.tgid, copy.descriptor.opened_ns))
    return Withheld(
        connection=connection,
        closer=closer,
        holders=tuple(holders),
        closed_ns=closed_ns,
        withheld_ns=end - closed_ns,
    )


def _was_done(session: Session, closer: Copy) -> bool:
    """It had answered, or read the end of file: a process that closes before that may have handed the work on."""
    reads, writes = payload_moves(session, closer.uses)
    last = int(closer.uses[-1])
    if len(writes) and (not len(reads) or session.effective_ns[writes[-1]] >= session.effective_ns[reads[-1]]):
        return True
    return last not in set(map(int, (*reads, *writes)))


def _of_use(session: Session, copy: Copy, closer: Copy) -> bool:
    """Whether the holder has some use for it: uses from before the closer's first were handed over with it."""
    if is_standard_stream(copy) or watches(session, copy):
        return True
    return bool(len(copy.uses)) and bool(session.effective_ns[copy.uses[-1]] >= session.effective_ns[closer.uses[0]])


def _ended_anyway(session: Session, connection: Connection, end_ns: int) -> bool:
    """FIN or RST went out all the same: by shutdown, or because the peer aborted."""
    own_fin = local_fin_ns(session, connection)
    if (own_fin is not None and own_fin < end_ns) or was_reset(session, connection, end_ns):
        return True
    return shutdown_event(session, connection, writing=True) >= 0
