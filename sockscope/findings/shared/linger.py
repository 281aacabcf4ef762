"""SO_LINGER as its setting was witnessed: on the connection, and on the listener that it inherits from."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.connections import Connection
from sockscope.model.events import Section

SOL_SOCKET = 1
SO_LINGER = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Linger:
    """How it was set last; `event` is the setsockopt."""

    event: int
    on: bool
    seconds: int

    @property
    def aborts(self) -> bool:
        """close sends RST and throws away what was not sent (socket(7))."""
        return self.on and self.seconds == 0


def linger_of(session: Session, connection: Connection) -> Linger | None:
    """What was set for it before its end; None where nothing was, as far as is known.

    An accepted socket has its listener's SO_LINGER of that moment.
    """
    listener = connection.listener
    inherited = _last(session, listener, connection.first_ns) if listener >= 0 else None
    return _last(session, connection.open_file, None) or inherited


def _last(session: Session, open_file: int, before_ns: int | None) -> Linger | None:
    events = session.events_of_open_file(open_file)
    rows = session.events.records[events]
    fits = (rows["call"] == Call.setsockopt) & (rows["ret"] == 0)
    fits &= (rows["args"][:, 1] == SOL_SOCKET) & (rows["args"][:, 2] == SO_LINGER)
    if before_ns is not None:
        fits &= session.effective_ns[events] <= before_ns
    found = events[fits]
    if not len(found):
        return None
    value = session.events.section(int(found[-1]), Section.OPTION)
    if value is None or len(value) < 8:
        return None
    on, seconds = struct.unpack_from("<ii", value)
    return Linger(event=int(found[-1]), on=on != 0, seconds=seconds)
