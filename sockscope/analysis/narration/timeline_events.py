"""Which events belong into connections' stories, beyond those on their descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.narration.describe_values import epoll_entries
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.describe_words import ready_fds
from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Grouping, Ids, Session
from sockscope.model.calls import EPOLL_WAITS, READS, WAITS, WRITES, Call
from sockscope.model.connections import Connection
from sockscope.model.descriptors import How
from sockscope.model.events import EventFlag, Section
from sockscope.model.ids import NO_ID

_IS_WAIT: Final = by_call(WAITS)
_IS_WOKEN: Final = by_call(READS | WRITES | {Call.accept, Call.accept4, Call.connect, Call.getsockopt, Call.close})
"""Calls that a program makes because a wait told it to."""
_IS_FORK: Final = by_call({Call.clone, Call.clone3, Call.fork, Call.vfork})
_EVENT_BITS: Final = 40
_EVENT_MASK: Final = (1 << _EVENT_BITS) - 1
_NEVER_CLOSED: Final = np.iinfo(np.int64).max
_FEW = 1 << 12
"""Waits looked into for one connection at most; the timeline shows fewer by far."""


def _pairs(place: Ids, events: Ids) -> Ids:
    """A connection's place and an event id in one number."""
    return (place << _EVENT_BITS) | events


def _names_of(table: npt.NDArray[np.signedinteger], fd: npt.NDArray[np.signedinteger]) -> Ids:
    """A files table and a number in it, in one number."""
    return (table.astype(np.int64) << 32) + fd


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    """What is known of connections' open files.

    Attributes:
        events: shape (n,), pairs: the births and ends of their descriptors in every process, and who sent them.
        received: shape (m,), pairs: the recvmsg calls that brought them.
        place, table, fd, opened_ns, closed_ns: shape (k,), of their descriptors.
    """

    events: Ids
    received: Ids
    place: Ids
    table: Ids
    fd: Ids
    opened_ns: Ids
    closed_ns: Ids

    @classmethod
    def of(cls, session: Session, connections: Sequence[Connection]) -> _Around:
        events: list[tuple[int, int]] = []
        received: list[tuple[int, int]] = []
        held: list[tuple[int, int, int, int, int]] = []
        for place, one in enumerate(connections):
            events.append((place, one.opened_event))
            if one.open_file == NO_ID:
                continue
            file = session.open_files[one.open_file]
            events.append((place, file.created_event))
            events += [(place, event) for event in file.sent_events]
            for number in file.descriptors:
                each = session.descriptors[number]
                events += [(place, each.opened_event), (place, each.closed_event)]
                closed_ns = each.closed_ns if each.closed_ns is not None else _NEVER_CLOSED
                held.append((place, each.table, each.fd, each.opened_ns, closed_ns))
                if each.how is How.SCM_RIGHTS:
                    received.append((place, each.opened_event))
        columns = np.array(held, np.int64).reshape(-1, 5).T
        return cls(
            events=_known(events),
            received=_known(received),
            place=columns[0],
            table=columns[1],
            fd=columns[2],
            opened_ns=columns[3],
            closed_ns=columns[4],
        )


def _known(pairs: list[tuple[int, int]]) -> Ids:
    place, events = np.array(pairs, np.int64).reshape(-1, 2).T
    known = events != NO_ID
    return _pairs(place[known], events[known])


class EventPicker:
    """Finds connections' events; what it needs of the whole session is worked out once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._born: dict[int, list[tuple[int, int]]] = {}

    def of(self, connections: Sequence[Connection]) -> tuple[Ids, Ids, npt.NDArray[np.bool_]]:
        """Calls on each connection, the waits that woke them, closes, births.

        Returns:
            The place in `connections` of each, ascending; event ids, of a connection each once, ascending; and which
            is a recvmsg that brought the connection. All shape (n,).
        """
        session = self._session
        ids = np.array([one.id for one in connections], np.int64)
        around = _Around.of(session, connections)
        pairs = [
            _pairs(*session.events_of_each(ids)),
            around.events,
            _pairs(*self._registrations(around)),
        ]
        everything = np.unique(np.concatenate(pairs))
        place, events = everything >> _EVENT_BITS, everything & _EVENT_MASK
        found = np.unique(
            np.concatenate(
                [
                    everything,
                    self._births(connections, place, events),
                    self._waits(connections, place, events),
                ]
            )
        )
        return found >> _EVENT_BITS, found & _EVENT_MASK, np.isin(found, around.received)

    def _registrations(self, around: _Around) -> tuple[Ids, Ids]:
        """What epoll was told of the descriptors while they were open: their connections, and the calls."""
        calls, times_ns, bounds_of, keys = self._epoll_ctl
        if not len(calls):
            return calls, calls
        number = _names_of(around.table, around.fd)
        group = np.minimum(np.searchsorted(bounds_of, number), len(bounds_of) - 1)
        width = len(times_ns) + 1
        low = np.searchsorted(keys, group * width + np.searchsorted(times_ns, around.opened_ns))
        high = np.searchsorted(keys, group * width + np.searchsorted(times_ns, around.closed_ns, "right"))
        counts = np.where(bounds_of[group] == number, np.maximum(high - low, 0), 0)
        which = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return around.place[which], calls[low[which] + within]

    def _births(self, connections: Sequence[Connection], place: Ids, events: Ids) -> Ids:
        """How the threads that handle it came to be, where that was after its beginning: pairs."""
        records = self._session.events.records
        new = self._session.event_call[events] == Call.task_new
        tids = np.concatenate([records["tid"][events], records["args"][events[new], 0].astype(np.int64)])
        places = np.concatenate([place, place[new]])
        born = np.isin(tids, self._births_by_tid.ids)
        found = [
            (at << _EVENT_BITS) | event
            for at, tid in set(zip(places[born].tolist(), tids[born].tolist(), strict=True))
            for time_ns, event in self._births_of(tid)
            if time_ns >= connections[at].first_ns
        ]
        return np.array(found, np.int64)

    def _births_of(self, tid: int) -> list[tuple[int, int]]:
        """When each thread of this number was born, and the event that tells it."""
        if tid in self._born:
            return self._born[tid]
        session, records = self._session, self._session.events.records
        found = self._born[tid] = []
        for birth in self._births_by_tid.of(tid).tolist():
            calls = self._forks_by_result.of(tid)
            mine = calls[records["tid"][calls] == records["tid"][birth]]
            # The call says more than the event; the event is there when the call has not returned.
            found.append((int(session.effective_ns[birth]), int(mine[0]) if len(mine) else birth))
        return found

    def _waits(self, connections: Sequence[Connection], place: Ids, events: Ids) -> Ids:
        """The waits that told the program to make these calls: pairs."""
        session = self._session
        woken = _IS_WOKEN[session.event_call[events]]
        place, calls = place[woken], events[woken]
        waits = self._last_wait[calls]
        after = waits >= 0
        place, calls, waits = place[after], calls[after], waits[after]
        rank = np.arange(len(place)) - np.searchsorted(place, place)
        left = np.searchsorted(place, place, "right") - np.searchsorted(place, place) - rank
        looked = (rank < _FEW // 2) | (left <= _FEW // 2)
        place, calls, waits = place[looked], calls[looked], waits[looked]
        directly = self._follows_wait[calls]
        sure = np.unique(_pairs(place[directly], waits[directly]))
        open_ = ~directly & ~np.isin(_pairs(place, waits), sure)
        fds = session.events.records["args"][calls[open_], 0].astype(np.uint32).view(np.int32)
        reported: dict[int, tuple[frozenset[int], frozenset[int]]] = {}
        wanted: dict[int, frozenset[int]] = {}
        found = []
        for at, wait, fd in zip(place[open_].tolist(), waits[open_].tolist(), fds.tolist(), strict=True):
            ready, data = reported.get(wait) or reported.setdefault(wait, self._reported(wait))
            if fd not in ready:
                if at not in wanted:
                    wanted[at] = self._data_of(connections[at])
                if data.isdisjoint(wanted[at]):
                    continue
            found.append((at << _EVENT_BITS) | wait)
        return np.concatenate([sure, np.array(found, np.int64)])

    def _data_of(self, connection: Connection) -> frozenset[int]:
        """epoll_data under which the connection and its listener are watched."""
        files = (connection.open_file, connection.listener)
        return frozenset(data for file in files if file != NO_ID for data in self.data_by_open_file.get(file, ()))

    def _reported(self, wait: int) -> tuple[frozenset[int], frozenset[int]]:
        """The descriptors that a wait reported, and the epoll_data."""
        view = View.of(self._session.events, wait)
        ready = frozenset(fd for fd, _ in ready_fds(view))
        if view.call not in EPOLL_WAITS:
            return ready, frozenset()
        entries = epoll_entries(
            view.sections.get(Section.EPOLL_EVENTS), view.sections.get(Section.EPOLL_EVENTS_ALIGNED)
        )
        return ready, frozenset(data for _, data in entries)

    @cached_property
    def _by_tid(self) -> Ids:
        """Every event, by thread, in replay order within each; none of an io_uring, which follow no wait."""
        session = self._session
        records = session.events.records
        order = session.order
        ringed = (records["flags"] & EventFlag.URING) != 0
        if ringed.any():
            order = order[~ringed[order]]
        rows: Ids = order[np.argsort(records["tid"][order], kind="stable")]
        return rows

    @cached_property
    def _last_wait(self) -> Ids:
        """shape (n,): the wait before each event in its thread, if it reported anything; -1: none."""
        records = self._session.events.records
        rows = self._by_tid
        found = np.full(len(records), -1, np.int64)
        if not len(rows):
            return found
        place = np.arange(len(rows))
        is_wait = _IS_WAIT[records["call"][rows]]
        latest = np.maximum.accumulate(np.where(is_wait, place, -1))
        before = np.concatenate([[-1], latest[:-1]])
        waits = rows[np.maximum(before, 0)]
        tid = records["tid"]
        good = (before >= 0) & (tid[waits] == tid[rows]) & (records["ret"][waits] > 0)
        found[rows[good]] = waits[good]
        return found

    @cached_property
    def _follows_wait(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """shape (n,): whether the event comes right after its `_last_wait`."""
        rows = self._by_tid
        found = np.zeros(len(self._session.events), np.bool_)
        if len(rows):
            found[rows[1:]] = self._last_wait[rows[1:]] == rows[:-1]
        return found

    @cached_property
    def _epoll_ctl(self) -> tuple[Ids, Ids, Ids, Ids]:
        """Successful and failed epoll_ctl, by the descriptor they name, in time.

        Returns:
            Shape (n,), the calls; shape (n,), the times of all of them, ascending; the distinct descriptors
            (`_names_of`), ascending; shape (n,), ascending: where each call is among descriptors and times.
        """
        session = self._session
        calls = session.order[session.event_call[session.order] == Call.epoll_ctl]
        named = session.events.records["args"][calls, 2].astype(np.uint32).view(np.int32)
        names, group = np.unique(_names_of(session.event_table[calls], named), return_inverse=True)
        times_ns = session.effective_ns[calls]
        distinct = np.sort(times_ns)
        keys = group * (len(distinct) + 1) + np.searchsorted(distinct, times_ns)
        order = np.argsort(keys, kind="stable")
        return calls[order], distinct, names, keys[order]

    @cached_property
    def _births_by_tid(self) -> Grouping:
        records = self._session.events.records
        child = records["args"][:, 0].astype(np.uint32).view(np.int32)
        return Grouping(np.where(records["call"] == Call.task_new, child, -1), self._session.order)

    @cached_property
    def _forks_by_result(self) -> Grouping:
        records = self._session.events.records
        return Grouping(np.where(_IS_FORK[records["call"]], records["ret"], -1), self._session.order)

    @cached_property
    def data_by_open_file(self) -> dict[int, set[int]]:
        """Open file → epoll_data it is or was registered with."""
        found: dict[int, set[int]] = {}
        for interest in self._session.interests:
            found.setdefault(interest.open_file, set()).add(interest.data)
        return found
