"""What a wait said was ready: epoll's events, poll's revents and select's sets in one shape."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Session
from sockscope.model.calls import EPOLL_WAITS, Call
from sockscope.model.events import Section
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


def named(session: Session, wait: int, ready: Ready) -> tuple[int, int]:
    """(open file id, descriptor number) of what was ready; -1 where it is not known."""
    if session.events.call(wait) in EPOLL_WAITS:
        epoll = int(session.event_open_file[wait])
        when = int(session.effective_ns[wait])
        for interest in session.interests:
            in_force = interest.added_ns <= when and (interest.removed_ns is None or interest.removed_ns >= when)
            if in_force and interest.epoll == epoll and interest.data == ready.key:
                return interest.open_file, interest.fd
        return NO_ID, NO_ID
    return _in_table(session, wait, ready.key), ready.key


def _in_table(session: Session, wait: int, fd: int) -> int:
    tgid, when = int(session.events.records["tgid"][wait]), int(session.effective_ns[wait])
    for table in session.tables:
        if tgid not in table.tgids or table.created_ns > when:
            continue
        for one in session.descriptors:
            lived = one.opened_ns <= when and (one.closed_ns is None or one.closed_ns > when)
            if lived and one.table == table.id and one.fd == fd:
                return one.open_file
    return NO_ID
