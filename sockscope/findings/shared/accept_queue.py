"""Connections that sit in an accept queue, their listener, and what its acceptor does meanwhile."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import GRACE_NS, NS_PER_MS
from sockscope.findings.shared.told import established, when
from sockscope.model.calls import FIRST_TASK_EVENT, Call
from sockscope.model.connections import Connection, Protocol
from sockscope.model.descriptors import Descriptor, OpenFile
from sockscope.model.events import EventFlag
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpState

ACCEPTS = (Call.accept, Call.accept4)
EAGAIN = 11

_TEARDOWN_NS = 100 * NS_PER_MS
_IN_QUEUE = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One connection that no process has taken.

    Attributes:
        rows: socket rows that show it in the queue, in time.
        since_ns: the handshake, on the wire or as the kernel told it, or the first snapshot that shows it.
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
        listeners: the target's open files that listened there at the end.
        row: the listener in the last snapshot that shows it.
        until_ns: that snapshot.
    """

    port: int
    listeners: tuple[OpenFile, ...]
    waiting: tuple[Waiting, ...]
    row: int
    until_ns: int

    @property
    def since_ns(self) -> int:
        return self.waiting[0].since_ns


def queues(session: Session) -> list[Queue]:
    """Every port of the target on which connections wait for at least the grace.

    A queue is briefly filled in health, so each connection must be there from its handshake (or the
    first snapshot) to the last snapshot of the listener, which may end before the session does.
    Inode 0 in ESTABLISHED or CLOSE_WAIT is never an orphan: those are past CLOSE_WAIT.
    """
    candidates: defaultdict[int, list[Connection]] = defaultdict(list)
    for connection in session.connections:
        unowned = connection.open_file < 0 and connection.inode == 0 and connection.state in _IN_QUEUE
        if unowned and connection.protocol is Protocol.TCP and connection.local is not None:
            candidates[connection.local.port].append(connection)
    listening: defaultdict[int, list[OpenFile]] = defaultdict(list)
    for file in session.open_files if candidates else ():
        if file.listening and file.local is not None and file.socket_type in (0, 1):
            listening[file.local.port].append(file)
    made = []
    for port, connections in sorted(candidates.items()):
        files = listening[port]
        row = listen_row(session, port, before_ns=_end_of(session, files))
        if row < 0:
            continue
        last = session.sockets.records[row]
        found = (_waiting(session, one, int(last["snapshot"])) for one in connections)
        waiting = sorted((one for one in found if one is not None), key=lambda one: one.since_ns)
        until = int(last["time_ns"])
        listeners = tuple(file for file in files if held_at(session, file.id, until))
        if waiting and (listeners or not session.info.syscalls.engine):
            made.append(Queue(port=port, listeners=listeners, waiting=tuple(waiting), row=row, until_ns=until))
    return made


def _end_of(session: Session, files: list[OpenFile]) -> int | None:
    """When the last of the listeners went; None where one is there to the end.

    A snapshot at that very moment may show the listener and no longer its queue: the kernel is asked
    state by state. So it is taken to be a little earlier.
    """
    ends = [file.released_ns for file in files]
    known = [end for end in ends if end is not None]
    return max(known) - _TEARDOWN_NS if known and len(known) == len(ends) else None


def held_at(session: Session, open_file: int, when_ns: int) -> list[Descriptor]:
    """Descriptors that named the open file at that time."""
    named = (session.descriptors[number] for number in session.open_files[open_file].descriptors)
    return [d for d in named if d.opened_ns <= when_ns and (d.closed_ns is None or d.closed_ns > when_ns)]


def _waiting(session: Session, connection: Connection, final: int) -> Waiting | None:
    rows = session.samples_of(connection.id)
    shown = session.sockets.records[rows]
    if not len(rows) or shown["inode"].any():
        return None
    rows = rows[np.isin(shown["state"], _IN_QUEUE)]
    if not len(rows) or int(session.sockets.records["snapshot"][rows[-1]]) < final:
        return None
    first, last = (int(session.sockets.records["time_ns"][row]) for row in (rows[0], rows[-1]))
    flow = session.flows[connection.flow] if connection.flow >= 0 else None
    # It enters the queue when it is established, and an accepted socket never loses its inode in
    # these states: with the handshake seen, one snapshot shows that it waited all the time between.
    exact = (flow.established_ns if flow else None, when(session, established(session, connection)))
    since = min((first, *(at for at in exact if at is not None)))
    if last - since < GRACE_NS:
        return None
    return Waiting(connection=connection, rows=rows, since_ns=since, until_ns=last)


def accepts_of(session: Session, listener: OpenFile) -> Ids:
    """Every accept on a listener, in order."""
    events = session.events_of_open_file(listener.id)
    return events[np.isin(session.events.records["call"][events], ACCEPTS)]


def listen_row(session: Session, port: int, *, before_ns: int | None = None) -> int:
    """The last snapshot's row of a listener on that port (the fullest, of several); -1 for none."""
    rows = session.sockets.records
    fits = (rows["local_port"] == port) & (rows["state"] == TcpState.LISTEN) & (rows["protocol"] == 6)
    if before_ns is not None:
        fits &= rows["time_ns"] < before_ns
    found = np.nonzero(fits)[0]
    if not len(found):
        return -1
    found = found[rows["snapshot"][found] == rows["snapshot"][found].max()]
    return int(found[int(np.argmax(rows["recv_q"][found]))])


def doing_at(session: Session, tid: int, when_ns: int) -> tuple[int, bool]:
    """(the call a thread was in or had made last at that time, whether it was still in it); (-1, False) for none."""
    events = session.events_of_tid(tid)
    rows = session.events.records[events]
    began = np.where(rows["enter_ns"] >= 0, rows["enter_ns"], session.info.started_ns)
    # What an io_uring was asked to do holds no thread up.
    own = (rows["call"] < FIRST_TASK_EVENT) & ((rows["flags"] & EventFlag.URING) == 0)
    events = events[(began <= when_ns) & own]
    if not len(events):
        return NO_ID, False
    last = int(events[-1])
    ended = int(session.events.records["exit_ns"][last])
    return last, ended < 0 or ended > when_ns
