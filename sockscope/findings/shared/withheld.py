"""Connections that their program closed and that somebody else keeps open: two rules tell of them."""

from __future__ import annotations

from dataclasses import dataclass

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import GRACE_NS
from sockscope.findings.shared.halves import ended_itself, last_state, was_reset
from sockscope.findings.shared.holding import Copy, Holdings, is_standard_stream, payload_moves
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


def withheld(session: Session, holdings: Holdings, connection: Connection) -> Withheld | None:
    """Whether the connection's FIN is withheld; None where it is not, or where somebody may still use it."""
    if len(session.open_files[connection.open_file].descriptors) < 2 or not holdings.keeps(connection):
        return None
    every = holdings.copies(connection.open_file)
    closers = [copy for copy in every if len(copy.uses) and copy.given_up]
    if not closers:
        return None
    closer = max(closers, key=lambda one: one.descriptor.closed_ns or 0)
    closed_ns = closer.descriptor.closed_ns or 0
    if not _was_done(session, closer):
        return None
    holders = [copy for copy in every if copy.until_ns - closed_ns >= GRACE_NS]
    if not holders or any(_of_use(session, holdings, copy, closer) for copy in holders):
        return None
    end = max(copy.until_ns for copy in holders)
    if ended_itself(session, connection, end) or was_reset(session, connection, end):
        return None
    if last_state(session, connection, closed_ns, end) not in _STILL_OPEN:
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


def _of_use(session: Session, holdings: Holdings, copy: Copy, closer: Copy) -> bool:
    """Whether the holder has some use for it: uses from before the closer's first were handed over with it."""
    if is_standard_stream(copy) or holdings.watches(copy):
        return True
    return bool(len(copy.uses)) and bool(session.effective_ns[copy.uses[-1]] >= session.effective_ns[closer.uses[0]])
