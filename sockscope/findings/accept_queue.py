"""Connections that sit in an accept queue, their listener, and what its acceptor does meanwhile."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.evidence import GRACE_NS
from sockscope.model.calls import Call
from sockscope.model.connections import Connection, Protocol
from sockscope.model.descriptors import OpenFile
from sockscope.model.tcp import TcpState

ACCEPTS = (Call.accept, Call.accept4)
EAGAIN = 11

_SEEN_AT_LEAST = 2
_IN_QUEUE = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One connection that no process has taken.

    Attributes:
        rows: socket rows that show it in the queue, in time.
        since_ns: the handshake on the wire, or the first snapshot that shows it.
        until_ns: the last snapshot; it was still there.
    """

    connection: Connection
    rows: Ids
    since_ns: int
    until_ns: int

    @property
    def waited_ns(self) -> int:
        return self.until_ns - self.since_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The waiting connections of one port, longest waiting first.

    Attributes:
        listeners: the target's open files that listen there and are still held.
    """

    port: int
    listeners: tuple[OpenFile, ...]
    waiting: tuple[Waiting, ...]

    @property
    def since_ns(self) -> int:
        return self.waiting[0].since_ns


def queues(session: Session) -> list[Queue]:
    """Every port of the target on which connections wait for at least the grace.

    A queue is briefly filled in health, so each connection must be there in several snapshots, to
    the last. Inode 0 in ESTABLISHED or CLOSE_WAIT is never an orphan: those are past CLOSE_WAIT.
    """
    by_port: defaultdict[int, list[Waiting]] = defaultdict(list)
    for connection in session.connections:
        if connection.never_accepted and connection.protocol is Protocol.TCP and connection.local is not None:
            found = _waiting(session, connection)
            if found is not None:
                by_port[connection.local.port].append(found)
    made = []
    for port, waiting in sorted(by_port.items()):
        listeners = tuple(
            file
            for file in session.open_files
            if file.listening
            and file.local is not None
            and file.local.port == port
            and file.socket_type in (0, 1)
            and session.holders_of(file.id)
        )
        if listeners or not session.info.syscalls.engine:
            waiting.sort(key=lambda one: one.since_ns)
            made.append(Queue(port=port, listeners=listeners, waiting=tuple(waiting)))
    return made


def _waiting(session: Session, connection: Connection) -> Waiting | None:
    rows = session.samples_of(connection.id)
    shown = session.sockets.records[rows]
    rows = rows[(shown["inode"] == 0) & np.isin(shown["state"], _IN_QUEUE)]
    if len(rows) < _SEEN_AT_LEAST:
        return None
    first, last = (int(session.sockets.records["time_ns"][row]) for row in (rows[0], rows[-1]))
    flow = session.flows[connection.flow] if connection.flow >= 0 else None
    since = min(first, flow.established_ns) if flow and flow.established_ns is not None else first
    if last - since < GRACE_NS:
        return None
    return Waiting(connection=connection, rows=rows, since_ns=since, until_ns=last)


def accepts_of(session: Session, listener: OpenFile) -> Ids:
    """Every accept on a listener, in order."""
    events = session.events_of_open_file(listener.id)
    return events[np.isin(session.events.records["call"][events], ACCEPTS)]


def listen_row(session: Session, port: int) -> int:
    """The last snapshot's row of a listener on that port (the fullest, of several); -1 for none."""
    rows = session.sockets.records
    found = np.nonzero((rows["local_port"] == port) & (rows["state"] == TcpState.LISTEN) & (rows["protocol"] == 6))[0]
    if not len(found):
        return -1
    found = found[rows["snapshot"][found] == rows["snapshot"][found].max()]
    return int(found[int(np.argmax(rows["recv_q"][found]))])


def last_event_of(session: Session, tid: int) -> int:
    """What a thread did last (or is doing still); -1 for nothing."""
    events = session.events_of_tid(tid)
    return int(events[-1]) if len(events) else -1
