"""Which files a number stood for, one after the other: what a failed call on a closed number was meant for."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.holding import DELIBERATE
from sockscope.model.calls import Call
from sockscope.model.descriptors import Descriptor
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

EBADF = 9
_SWEEP_LENGTH = 6
"""Closes of so many consecutive numbers in a row are a clean-up of whatever there may be, not a mistake."""


def fd_of(session: Session, event: int) -> int:
    """The descriptor in the first argument, as the C int it is."""
    return int(np.int64(session.events.records["args"][event, 0]).astype(np.int32))


def failed_with_ebadf(session: Session, calls: Iterable[Call]) -> Ids:
    """Calls of these kinds that failed with EBADF on a number ≥ 0, in order of time."""
    records = session.events.records
    failed = np.flatnonzero(records["ret"] == -EBADF)
    rows = records[failed]
    hit = np.isin(rows["call"], np.array(sorted(calls), np.uint16)) & (rows["args"][:, 0].astype(np.int32) >= 0)
    found: Ids = failed[hit]
    return found[np.argsort(session.effective_ns[found], kind="stable")]


@dataclass(frozen=True, slots=True)
class Generations:
    """Every (files table, number) with the descriptors that it named, in order of birth."""

    _by_number: dict[tuple[int, int], list[Descriptor]]

    @classmethod
    def of(cls, session: Session) -> Generations:
        found: defaultdict[tuple[int, int], list[Descriptor]] = defaultdict(list)
        for one in session.descriptors:
            found[one.table, one.fd].append(one)
        for line in found.values():
            line.sort(key=lambda one: one.opened_ns)
        return cls(dict(found))

    def closed_before(self, session: Session, event: int) -> Descriptor | None:
        """The socket that the event's number last stood for, if this files table itself closed it before."""
        line = self._by_number.get((int(session.event_table[event]), fd_of(session, event)), [])
        entered = int(session.events.records["enter_ns"][event])
        now = entered if entered >= 0 else int(session.effective_ns[event])
        at = bisect_right(line, now, key=lambda one: one.opened_ns) - 1
        if at < 0:
            return None
        last = line[at]
        is_socket = last.open_file >= 0 and session.open_files[last.open_file].kind == FileKind.SOCKET
        if not is_socket or last.ended not in DELIBERATE or last.closed_ns is None:
            return None
        return last if last.closed_ns <= int(session.effective_ns[event]) else None

    def before(self, descriptor: Descriptor) -> Descriptor | None:
        """What the same number stood for before; None where it is its first."""
        line = self._by_number[descriptor.table, descriptor.fd]
        at = next(at for at, one in enumerate(line) if one.id == descriptor.id)
        return line[at - 1] if at else None


def connection_of(session: Session, descriptor: Descriptor) -> int:
    """The connection it stood for; NO_ID for listeners and the like."""
    return session.open_files[descriptor.open_file].connection if descriptor.open_file >= 0 else NO_ID


def in_a_sweep(session: Session, event: int) -> bool:
    """Whether the close is one of a row over consecutive numbers (what daemons do before exec)."""
    events = session.events_of_tid(int(session.events.records["tid"][event]))
    closes = events[session.events.records["call"][events] == Call.close]
    at = int(np.flatnonzero(closes == event)[0])
    near = closes[max(0, at - _SWEEP_LENGTH) : at + _SWEEP_LENGTH + 1]
    steps = np.diff(session.events.records["args"][near, 0].astype(np.int64))
    longest = run = 0
    for step in np.abs(steps):
        run = run + 1 if step == 1 else 0
        longest = max(longest, run)
    return longest >= _SWEEP_LENGTH - 1
