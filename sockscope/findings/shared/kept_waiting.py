"""Which connections waited for their server while it did something else: columns of arrivals against what was done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import NS_PER_MS, NS_PER_S
from sockscope.findings.shared.told import established, when
from sockscope.model.calls import FIRST_TASK_EVENT
from sockscope.model.connections import Connection, Role
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpState

LEAST_NS = 200 * NS_PER_MS
"""Less is no wait worth a word."""
_LOOK_BACK_NS = 2 * NS_PER_S
_NS_PER_TICK = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One connection that waited.

    Attributes:
        arrived_ns: when its bytes (or the connection itself) came.
        packet, socket: the packet or socket row that says so; -1 where it is the other, or a handshake.
        dealt: the event by which it was taken up; -1: not before the session's end.
        waited_ns: of its wait what lies in the time asked about.
        accepting: it waited to be accepted.
    """

    connection: int
    arrived_ns: int
    packet: int
    socket: int
    dealt: int
    waited_ns: int
    accepting: bool


class Arrivals:
    """What came for the server's connections, and when each was next touched. For one rule's run over a session.

    Args:
        session: the joined session; it must not change meanwhile.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        packets = self._packets()
        rows = self._unread()
        newcomers = self._established()
        count = (len(packets[0]), len(rows[0]), len(newcomers[0]))
        connection = np.concatenate([packets[0], rows[0], newcomers[0]])
        times = np.concatenate([packets[1], rows[1], newcomers[1]])
        kind = np.repeat(np.arange(3), count)
        ref = np.concatenate([packets[2], rows[2], np.full(count[2], NO_ID, np.int64)])
        order = np.argsort(times, kind="stable")
        self._connection, self._times = connection[order], times[order]
        self._kind, self._ref = kind[order], ref[order]
        self._touches()

    def _packets(self) -> tuple[Ids, Ids, Ids]:
        """(connection, time, row) of packets with payload from a client."""
        session = self._session
        of_flow = np.full(len(session.flows) + 1, NO_ID, np.int64)
        port = np.zeros(len(session.flows) + 1, np.int64)
        for one in session.connections:
            if one.flow >= 0 and one.role is Role.SERVER and one.local is not None:
                of_flow[one.flow] = one.id
                port[one.flow] = one.local.port
        records = session.packets.records
        # A flow of -1 finds the last place, which is nobody's.
        connection = of_flow[session.packet_flow]
        came = (connection >= 0) & (records["payload_bytes"] > 0) & (records["dport"] == port[session.packet_flow])
        rows = np.flatnonzero(came)
        return connection[rows], session.packet_ns[rows], rows

    def _unread(self) -> tuple[Ids, Ids, Ids]:
        """(connection, time, row) of sockets that a snapshot shows with bytes that nobody had read."""
        records, of = self._session.sockets.records, self._session.socket_connection.astype(np.int64)
        rows = np.flatnonzero((of >= 0) & (records["recv_q"] > 0) & (records["state"] == TcpState.ESTABLISHED))
        served = [self._session.connections[one].role is Role.SERVER for one in of[rows].tolist()]
        rows = rows[np.array(served, np.bool_)]
        return of[rows], records["time_ns"][rows].astype(np.int64), rows

    def _established(self) -> tuple[Ids, Ids]:
        """(connection, time) of each handshake's end."""
        found = []
        for one in self._session.connections:
            if one.role is Role.SERVER:
                flow = self._session.flows[one.flow] if one.flow >= 0 else None
                at = flow.established_ns if flow else when(self._session, established(self._session, one))
                if at is not None:
                    found.append((one.id, at))
        table = np.array(found, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _touches(self) -> None:
        """Every call on a connection by the time it returned, in one sorted key: connection first, then time."""
        session = self._session
        records = session.events.records
        rows = np.flatnonzero(
            (session.event_connection >= 0) & (records["exit_ns"] >= 0) & (session.event_call < FIRST_TASK_EVENT)
        )
        self._span = (session.info.ended_ns - session.info.started_ns) // _NS_PER_TICK + 2
        keys = session.event_connection[rows] * np.int64(self._span) + self._ticks(records["exit_ns"][rows])
        order = np.argsort(keys, kind="stable")
        self._touch_rows, self._touch_keys = rows[order], keys[order]

    def _ticks(self, times: Ids) -> Ids:
        ticks: Ids = np.clip((times - self._session.info.started_ns) // _NS_PER_TICK, 0, self._span - 1)
        return ticks

    def next_touch(self, connections: Ids, times: Ids) -> Ids:
        """The first call on each connection that returned at that time or later: event ids, -1 for none."""
        if not len(self._touch_keys):
            return np.full(len(connections), NO_ID, np.int64)
        at = np.searchsorted(self._touch_keys, connections * np.int64(self._span) + self._ticks(times))
        rows = self._touch_rows[np.minimum(at, len(self._touch_rows) - 1)]
        same = (at < len(self._touch_rows)) & (self._session.event_connection[rows] == connections)
        return np.where(same, rows, NO_ID)

    def kept(self, began_ns: int, ended_ns: int, tids: frozenset[int], *, for_good: bool) -> list[Kept]:
        """The connections that waited through a time until one of these threads took them up, longest first.

        Args:
            began_ns, ended_ns: the time asked about.
            tids: who should take them up.
            for_good: the time ends with the session, and what was not taken up by then counts.
        """
        session = self._session
        low, high = np.searchsorted(self._times, [began_ns - _LOOK_BACK_NS, ended_ns - LEAST_NS])
        if low >= high:
            return []
        picked = np.arange(low, high)
        connections, times = self._connection[picked], self._times[picked]
        dealt = self.next_touch(connections, times)
        records = session.events.records
        until = np.where(dealt >= 0, records["exit_ns"][dealt], session.info.ended_ns)
        waited = np.minimum(until, ended_ns) - np.maximum(times, began_ns)
        # Long after it is another reason.
        soon = until <= ended_ns + max(ended_ns - began_ns, NS_PER_S // 2)
        taken_up = (dealt >= 0) & np.isin(records["tid"][dealt], sorted(tids)) & soon
        fits = (waited >= LEAST_NS) & (until >= ended_ns) & (taken_up | (for_good & (dealt < 0)))
        found: dict[int, Kept] = {}
        for at in np.flatnonzero(fits).tolist():
            row, connection = int(picked[at]), int(connections[at])
            if connection in found:
                continue
            kind, ref = int(self._kind[row]), int(self._ref[row])
            event = int(dealt[at])
            one = session.connections[connection]
            found[connection] = Kept(
                connection=connection,
                arrived_ns=int(times[at]),
                packet=ref if kind == 0 else NO_ID,
                socket=ref if kind == 1 else NO_ID,
                dealt=event,
                waited_ns=int(waited[at]),
                accepting=event == one.opened_event if event >= 0 else one.never_accepted,
            )
        return sorted(found.values(), key=lambda one: -one.waited_ns)


def belongs_to(session: Session, connection: Connection, tgid: int) -> bool:
    """Whether the process holds the connection, or would be given it: a listener of its port is its own."""
    if connection.open_file >= 0:
        return _held(session, connection.open_file, tgid)
    port = connection.local.port if connection.local is not None else NO_ID
    return any(
        file.listening and file.local is not None and file.local.port == port and _held(session, file.id, tgid)
        for file in session.open_files
    )


def _held(session: Session, open_file: int, tgid: int) -> bool:
    descriptors = (session.descriptors[number] for number in session.open_files[open_file].descriptors)
    return any(tgid in session.tables[one.table].tgids for one in descriptors)
