"""Threads that hang in sends: for how long, and who has to wait for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS
from sockscope.findings.shared.evidence import NS_PER_MS
from sockscope.model.calls import READS, WRITES, Call
from sockscope.model.connections import Connection
from sockscope.model.events import Section
from sockscope.model.ids import NO_ID

_LONG_CALL_NS = 100 * NS_PER_MS

_SERVES = by_call(READS | WRITES | {*ACCEPTS})
_POLLS = np.array(sorted((Call.poll, Call.ppoll)), np.uint16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """How long a thread hung in sends on one connection.

    Attributes:
        event: the longest of these calls; tid: its thread; ns: all of them together.
        alone: nobody else serves that listener's connections, and this thread serves others, or accepts them.
        others: connections that it used besides this one.
    """

    event: int
    tid: int
    ns: int
    alone: bool
    others: int


class BlockedSends:
    """Answers for one rule's run over a session; it must not change meanwhile."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._servers: dict[int, frozenset[int]] = {}

    def of(self, connection: Connection, writes: Ids, since_ns: int, until_ns: int) -> Blocked | None:
        """The thread that hung longest in sends, or in polls for room in this one socket."""
        session = self._session
        records = session.events.records
        spent: dict[int, int] = {}
        longest: dict[int, tuple[int, int]] = {}
        tids = np.unique(records["tid"][writes]).tolist()
        waits = [self._polls(tid, writes, since_ns, until_ns) for tid in tids]
        for event in np.concatenate([writes, *waits]).tolist() if tids else ():
            row = records[event]
            begun = max(int(row["enter_ns"]), session.info.started_ns)
            ended = int(row["exit_ns"]) if int(row["exit_ns"]) >= 0 else session.info.ended_ns
            if ended - begun >= _LONG_CALL_NS and begun < until_ns and ended > since_ns:
                tid = int(row["tid"])
                spent[tid] = spent.get(tid, 0) + ended - begun
                longest[tid] = max(longest.get(tid, (0, NO_ID)), (ended - begun, event))
        if not spent:
            return None
        tid = max(spent, key=lambda one: spent[one])
        own = session.events_of_tid(tid)
        touched = np.unique(session.event_connection[own]).tolist()
        others = sum(1 for one in touched if one >= 0 and one != connection.id)
        alone = self.served_by(connection) == {tid} and (others > 0 or self._accepts(own))
        return Blocked(event=longest[tid][1], tid=tid, ns=spent[tid], alone=alone, others=others)

    def _polls(self, tid: int, writes: Ids, since_ns: int, until_ns: int) -> Ids:
        """Long polls of the thread for one descriptor alone, that of the connection."""
        session = self._session
        events = session.events_of_tid(tid)
        rows = session.events.records[events]
        fits = np.isin(rows["call"], _POLLS) & (rows["args"][:, 1] == 1)
        fits &= (rows["exit_ns"] > since_ns) & (rows["enter_ns"] < until_ns)
        fits &= rows["exit_ns"] - rows["enter_ns"] >= _LONG_CALL_NS
        fds = set(session.events.records["args"][writes, 0].tolist())
        found = []
        for event in events[fits].tolist():
            polled = session.events.section(event, Section.POLLFDS)
            if polled is not None and len(polled) >= 4 and int.from_bytes(polled[:4], "little") in fds:
                found.append(event)
        return np.array(found, np.int64)

    def _accepts(self, events: Ids) -> bool:
        return bool(np.isin(self._session.events.records["call"][events], ACCEPTS).any())

    def served_by(self, connection: Connection) -> frozenset[int]:
        """Threads that accept from its listener or use its connections; processes that hold it and did neither, too."""
        session, listener = self._session, connection.listener
        if listener < 0:
            return frozenset()
        if listener not in self._servers:
            mine = np.array([one.listener == listener for one in session.connections], np.bool_)
            used = (session.event_connection >= 0) & mine[session.event_connection]
            used |= session.event_open_file == listener
            used &= _SERVES[session.event_call]
            tids = set(np.unique(session.events.records["tid"][used]).tolist())
            seen = set(np.unique(session.events.records["tgid"][used]).tolist())
            holders = {session.tgid_of_table(one.table) for one in session.holders_of(listener)}
            self._servers[listener] = frozenset(tids | (holders - seen))
        return self._servers[listener]
