"""What was done with a socket around its bind: addresses, SO_REUSEADDR, and its order."""

from __future__ import annotations

import struct

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.replay.decode import socket_address
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.model.sockaddr import Address, Family

SOCK_STREAM = 1
EADDRINUSE = 98
INET = (Family.INET, Family.INET6)

SOL_SOCKET = 1
SO_REUSEADDR = 2
_TRIES = by_call([Call.bind, Call.listen])


def bound_to(session: Session, event: int) -> Address | None:
    """The address of a bind; for listen, the one its socket has (None: the kernel's choice)."""
    if session.events.call(event) is Call.bind:
        return socket_address(session.events.blob_of(event))
    file = int(session.event_open_file[event])
    return session.open_files[file].local if file >= 0 else None


def refused_addresses(session: Session) -> Ids:
    """Every bind and listen that failed with EADDRINUSE, in time."""
    tries = np.flatnonzero(_TRIES[session.event_call])
    refused: Ids = tries[session.events.records["ret"][tries] == -EADDRINUSE]
    return refused[np.argsort(session.effective_ns[refused], kind="stable")]


def reuse_events(session: Session, open_file: int) -> Ids:
    """Calls that switched SO_REUSEADDR on for this socket, in order."""
    events = session.events_of_open_file(open_file)
    rows = session.events.records[events]
    fits = (rows["call"] == Call.setsockopt) & (rows["ret"] == 0)
    fits &= (rows["args"][:, 1] == SOL_SOCKET) & (rows["args"][:, 2] == SO_REUSEADDR)
    return np.array([event for event in events[fits].tolist() if _switches_on(session, event)], np.int64)


def _switches_on(session: Session, event: int) -> bool:
    value = session.events.section(event, Section.OPTION)
    return value is None or len(value) < 4 or struct.unpack_from("<i", value)[0] != 0


def binds_of(session: Session, open_file: int) -> Ids:
    """Every bind of this socket, in order."""
    events = session.events_of_open_file(open_file)
    binds: Ids = events[session.events.records["call"][events] == Call.bind]
    return binds
