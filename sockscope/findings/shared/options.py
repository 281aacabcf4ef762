"""Socket options as far as their setting was witnessed: on the connection, and on the listener it inherits from."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import Call
from sockscope.model.connections import Connection
from sockscope.model.events import Section

_SOL_SOCKET, _SOL_TCP = 1, 6
OPTIONS = {
    "SO_KEEPALIVE": (_SOL_SOCKET, 9),
    "SO_RCVTIMEO": (_SOL_SOCKET, 20),
    "SO_RCVTIMEO_NEW": (_SOL_SOCKET, 66),
    "SO_ATTACH_FILTER": (_SOL_SOCKET, 26),
    "TCP_NODELAY": (_SOL_TCP, 1),
    "TCP_CORK": (_SOL_TCP, 3),
    "TCP_USER_TIMEOUT": (_SOL_TCP, 18),
}
"""Name → (level, number), as in asm-generic/socket.h and linux/tcp.h."""

_MSG_MORE = 0x8000


def option_events(session: Session, connection: Connection, name: str) -> Ids:
    """Calls that switched the option on, for the connection or before that for its listener, in order.

    An accepted socket has its listener's options (all of `OPTIONS` are copied by sk_clone_lock).
    """
    own = switched_on(session, session.events_of(connection.id), name)
    if connection.listener < 0:
        return own
    inherited = switched_on(session, session.events_of_open_file(connection.listener), name)
    inherited = inherited[session.effective_ns[inherited] <= connection.first_ns]
    return np.concatenate([inherited, own])


def switched_on(session: Session, events: Ids, name: str) -> Ids:
    """Those of the events that switched the option on."""
    level, number = OPTIONS[name]
    rows = session.events.records[events]
    fits = (rows["call"] == Call.setsockopt) & (rows["ret"] == 0)
    fits &= (rows["args"][:, 1] == level) & (rows["args"][:, 2] == number)
    return np.array([event for event in events[fits].tolist() if _is_on(session, event)], np.int64)


def _is_on(session: Session, event: int) -> bool:
    value = session.events.section(event, Section.OPTION)
    if value is None or len(value) < 4:
        return True
    # A struct timeval is on where any of it is not zero, as an int is.
    return any(value) if len(value) > 4 else struct.unpack("<i", value)[0] != 0


def wants_more(session: Session, writes: Ids) -> npt.NDArray[np.bool_]:
    """Which of the writes said MSG_MORE: the kernel is asked to wait for the next one."""
    rows = session.events.records[writes]
    flags = np.where(rows["call"] == Call.sendto, rows["args"][:, 3], 0)
    flags = np.where(rows["call"] == Call.sendmsg, rows["args"][:, 2], flags)
    found: npt.NDArray[np.bool_] = (flags & np.uint64(_MSG_MORE)) != 0
    return found


def gathering_writes(session: Session) -> Ids:
    """Every write of the session that said MSG_MORE."""
    calls = session.event_call
    sends = np.flatnonzero((calls == Call.sendto) | (calls == Call.sendmsg))
    found: Ids = sends[wants_more(session, sends)]
    return found


def corked_connections(session: Session) -> Ids:
    """Connections on which TCP_CORK was set at some time."""
    records = session.events.records
    level, number = OPTIONS["TCP_CORK"]
    rows = np.flatnonzero((session.event_call == Call.setsockopt) & (session.event_connection >= 0))
    rows = rows[(records["args"][rows, 1] == level) & (records["args"][rows, 2] == number)]
    found: Ids = np.unique(session.event_connection[rows]).astype(np.int64)
    return found
