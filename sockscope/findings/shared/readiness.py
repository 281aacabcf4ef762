"""What a wait said was ready: epoll's events, poll's revents and select's sets in one shape."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Session
from sockscope.model.calls import EPOLL_WAITS, Call
from sockscope.model.descriptors import Descriptor, EpollInterest
from sockscope.model.events import EventFlag, Section
from sockscope.model.ids import NO_ID

IN, OUT, ERR, HUP, RDHUP = 0x1, 0x4, 0x8, 0x10, 0x2000
"""The same bits in poll(2) and epoll(7)."""

_SETS = (IN, OUT, ERR)
_POLLFD = np.dtype([("fd", "<i4"), ("events", "<i2"), ("revents", "<i2")])


@dataclass(frozen=True, slots=True)
class Ready:
    """One thing that was ready.

    Attributes:
        key: epoll: the data the program registered; poll and select: the descriptor.
        bits: EPOLL* or POLL* bits.
    """

    key: int
    bits: int


def ready_of(session: Session, wait: int) -> frozenset[Ready] | None:
    """What the wait returned; None where it was not copied."""
    call = session.events.call(wait)
    if int(session.events.records["ret"][wait]) <= 0:
        return frozenset()
    if call in EPOLL_WAITS:
        return _epoll(session, wait)
    if call in (Call.poll, Call.ppoll):
        table = session.events.section(wait, Section.POLLFDS)
        if table is None:
            return None
        rows = np.frombuffer(table[: len(table) // 8 * 8], _POLLFD)
        rows = rows[rows["revents"] != 0]
        return frozenset(
            Ready(fd, bits & 0xFFFF) for fd, bits in zip(rows["fd"].tolist(), rows["revents"].tolist(), strict=True)
        )
    return _select(session, wait)


def _epoll(session: Session, wait: int) -> frozenset[Ready] | None:
    for kind, layout in ((Section.EPOLL_EVENTS, "<IQ"), (Section.EPOLL_EVENTS_ALIGNED, "<I4xQ")):
        packed = session.events.section(wait, kind)
        if packed is not None:
            whole = packed[: len(packed) // struct.calcsize(layout) * struct.calcsize(layout)]
            return frozenset(Ready(data, events) for events, data in struct.iter_unpack(layout, whole))
    return None


def _select(session: Session, wait: int) -> frozenset[Ready] | None:
    sets = session.events.section(wait, Section.FDSETS)
    if sets is None:
        return None
    size = len(sets) // 3
    bits: dict[int, int] = {}
    for number, meaning in enumerate(_SETS):
        flags = np.unpackbits(np.frombuffer(sets[number * size : (number + 1) * size], np.uint8), bitorder="little")
        for fd in np.nonzero(flags)[0].tolist():
            bits[fd] = bits.get(fd, 0) | meaning
    return frozenset(Ready(fd, found) for fd, found in bits.items())


def asked_of(session: Session, wait: int) -> frozenset[int] | None:
    """The descriptors that a poll or select names; None where they were not copied."""
    pending = int(session.events.records["flags"][wait]) & EventFlag.ENTERED_ONLY
    if session.events.call(wait) in (Call.poll, Call.ppoll):
        polled = session.events.section(wait, Section.POLLFDS)
        if polled is None:
            return None if pending else frozenset()
        return frozenset(np.frombuffer(polled[: len(polled) // 8 * 8], _POLLFD)["fd"].tolist())
    sets = session.events.section(wait, Section.FDSETS_IN)
    if sets is None:
        return None if pending else frozenset()
    bits = np.unpackbits(np.frombuffer(sets, np.uint8), bitorder="little")
    per_set = len(bits) // 3
    return frozenset((np.flatnonzero(bits[: per_set * 3]) % per_set).tolist()) if per_set else frozenset()


class Names:
    """Finds what a wait spoke of. For one rule's run over a session; what it needs is indexed at its first use.

    Args:
        session: the joined session; it must not change meanwhile.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._interests: dict[tuple[int, int], list[EpollInterest]] | None = None
        self._descriptors: dict[int, list[Descriptor]] | None = None

    def of(self, wait: int, ready: Ready) -> tuple[int, int]:
        """(open file id, descriptor number) of what was ready; -1 where it is not known."""
        if self._session.events.call(wait) in EPOLL_WAITS:
            return self._in_epoll(wait, ready.key)
        return self._in_table(wait, ready.key), ready.key

    def _in_epoll(self, wait: int, data: int) -> tuple[int, int]:
        if self._interests is None:
            self._interests = {}
            for one in self._session.interests:
                self._interests.setdefault((one.epoll, one.data), []).append(one)
        when = int(self._session.effective_ns[wait])
        for one in self._interests.get((int(self._session.event_open_file[wait]), data), ()):
            if one.added_ns <= when and (one.removed_ns is None or one.removed_ns >= when):
                return one.open_file, one.fd
        return NO_ID, NO_ID

    def _in_table(self, wait: int, fd: int) -> int:
        if self._descriptors is None:
            self._descriptors = {}
            for one in self._session.descriptors:
                self._descriptors.setdefault(one.fd, []).append(one)
        tgid, when = int(self._session.events.records["tgid"][wait]), int(self._session.effective_ns[wait])
        for one in self._descriptors.get(fd, ()):
            lived = one.opened_ns <= when and (one.closed_ns is None or one.closed_ns > when)
            if lived and tgid in self._session.tables[one.table].tgids:
                return one.open_file
        return NO_ID
