"""Which events belong into a connection's story, beyond those on its descriptor."""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np

from sockscope.analysis.narration.describe_values import epoll_entries
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.describe_words import ready_fds
from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Grouping, Ids, Session
from sockscope.model.calls import EPOLL_WAITS, READS, WAITS, WRITES, Call
from sockscope.model.connections import Connection
from sockscope.model.events import EventFlag, Section
from sockscope.model.ids import NO_ID

_IS_WAIT: Final = by_call(WAITS)
_IS_WOKEN: Final = by_call(READS | WRITES | {Call.accept, Call.accept4, Call.connect, Call.getsockopt, Call.close})
"""Calls that a program makes because a wait told it to."""
_IS_FORK: Final = by_call({Call.clone, Call.clone3, Call.fork, Call.vfork})
_FEW = 1 << 12
"""Waits looked into for one connection at most; the timeline shows fewer by far."""


class EventPicker:
    """Finds a connection's events; what it needs of the whole session is worked out once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def of(self, connection: Connection) -> Ids:
        """Event ids, unique, in no order: calls on the connection, the waits that woke them, closes, births."""
        session = self._session
        own = session.events_of(connection.id)
        more: set[int] = set()
        if connection.opened_event != NO_ID:
            more.add(connection.opened_event)
        if connection.open_file != NO_ID:
            more |= self._around_open_file(connection.open_file)
        everything = np.union1d(own, np.fromiter(more, np.int64, len(more)))
        if not len(everything):
            return everything
        more |= self._births(connection, everything)
        more |= self._waits(connection, everything)
        found: Ids = np.union1d(everything, np.fromiter(more, np.int64, len(more)))
        return found

    def _around_open_file(self, open_file: int) -> set[int]:
        """The births and ends of its descriptors in every process, and what epoll was told of it."""
        session = self._session
        found = {session.open_files[open_file].created_event, *session.open_files[open_file].sent_events}
        for index in session.open_files[open_file].descriptors:
            descriptor = session.descriptors[index]
            found |= {descriptor.opened_event, descriptor.closed_event}
            registrations = self._epoll_ctl.of(descriptor.fd)
            if len(registrations):
                times = session.effective_ns[registrations]
                closed = descriptor.closed_ns if descriptor.closed_ns is not None else np.iinfo(np.int64).max
                alive = (times >= descriptor.opened_ns) & (times <= closed)
                same = session.event_table[registrations] == descriptor.table
                found.update(registrations[alive & same].tolist())
        found.discard(NO_ID)
        return found

    def _births(self, connection: Connection, events: Ids) -> set[int]:
        """How the threads that handle it came to be, where that was after its beginning."""
        session = self._session
        records = session.events.records
        tids = set(np.unique(records["tid"][events]).tolist())
        found = set()
        for birth in events[records["call"][events] == Call.task_new].tolist():
            tids.add(int(records["args"][birth, 0]))
        for tid in tids:
            for birth in self._births_by_tid.of(tid).tolist():
                if session.effective_ns[birth] < connection.first_ns:
                    continue
                calls = self._forks_by_result.of(tid)
                mine = calls[records["tid"][calls] == records["tid"][birth]]
                # The call says more than the event; the event is there when the call has not returned.
                found.add(int(mine[0]) if len(mine) else birth)
        return found

    def _waits(self, connection: Connection, events: Ids) -> set[int]:
        """The waits that told the program to make these calls."""
        records = self._session.events.records
        calls = events[_IS_WOKEN[records["call"][events]]]
        waits = self._last_wait[calls]
        calls, waits = calls[waits >= 0], waits[waits >= 0]
        if len(calls) > _FEW:
            half = _FEW // 2
            calls = np.concatenate([calls[:half], calls[-half:]])
            waits = np.concatenate([waits[:half], waits[-half:]])
        wanted = self._data_of(connection)
        found = set()
        fds = records["args"][calls, 0].astype(np.uint32).view(np.int32)
        for wait, fd, directly in zip(waits.tolist(), fds.tolist(), self._follows_wait[calls].tolist(), strict=True):
            if wait not in found and (directly or self._reports(wait, fd, wanted)):
                found.add(wait)
        return found

    def _data_of(self, connection: Connection) -> set[int]:
        """epoll_data under which the connection and its listener are watched."""
        wanted: set[int] = set()
        for open_file in (connection.open_file, connection.listener):
            if open_file != NO_ID:
                wanted |= self.data_by_open_file.get(open_file, set())
        return wanted

    def _reports(self, wait: int, fd: int, wanted: set[int]) -> bool:
        view = View.of(self._session.events, wait)
        if any(ready == fd for ready, _ in ready_fds(view)):
            return True
        if view.call not in EPOLL_WAITS:
            return False
        entries = epoll_entries(
            view.sections.get(Section.EPOLL_EVENTS), view.sections.get(Section.EPOLL_EVENTS_ALIGNED)
        )
        return any(data in wanted for _, data in entries)

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
    def _epoll_ctl(self) -> Grouping:
        """Successful and failed epoll_ctl by the descriptor they name."""
        records = self._session.events.records
        named = records["args"][:, 2].astype(np.uint32).view(np.int32)
        return Grouping(np.where(records["call"] == Call.epoll_ctl, named, -1), self._session.order)

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
