"""Event loops, and the times for which they were away from their waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Grouping, Ids, Session
from sockscope.findings.shared.readiness import Names, Ready, asked_of
from sockscope.model.calls import EPOLL_WAITS, FIRST_TASK_EVENT, WAITS, Call
from sockscope.model.columns import pieces, rows_of
from sockscope.model.descriptors import Descriptor
from sockscope.model.event_rows import find_sections, words_at
from sockscope.model.events import EventFlag, Section
from sockscope.model.ids import NO_ID

_WAITS, _EPOLL_WAITS, _POLLS = by_call(WAITS), by_call(EPOLL_WAITS), by_call([Call.poll, Call.ppoll])
_TURNS = 3
_LOOKED_AT = 64
_CONNECTIONS = 2
_BY_THREAD = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Who waits where, again and again.

    Attributes:
        epoll: open file of the epoll instance; -1 for a loop of poll or select, which is one thread's.
        waits: event ids in order of their beginning.
        tids: the threads that wait there.
    """

    epoll: int
    waits: Ids
    tids: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A time in which nobody was in the loop's wait.

    Attributes:
        wait: the last to return before it.
        back: the wait that ended it; -1 where none did before the session's end.
    """

    loop: Loop
    wait: int
    began_ns: int
    ended_ns: int
    back: int

    @property
    def lasted_ns(self) -> int:
        return self.ended_ns - self.began_ns


def spans(session: Session, events: Ids) -> tuple[Ids, Ids]:
    """When each call began and ended; the session's ends where that was not seen."""
    records = session.events.records
    enter, leave = records["enter_ns"][events], records["exit_ns"][events]
    began = np.where(enter >= 0, enter, session.info.started_ns).astype(np.int64)
    return began, np.where(leave >= 0, leave, session.info.ended_ns).astype(np.int64)


def absences(session: Session, least_ns: int) -> list[Absence]:
    """Every time of at least that length in which a loop over two connections or more was away from its wait."""
    waits = _loop_waits(session)
    if not len(waits):
        return []
    loops, groups = _by_loop(session, waits)
    made: list[Absence] = []
    watching = _Watching(session)
    for key in loops:
        mine = _in_time(session, waits[groups.of(key)])
        found = list(_away(session, mine, least_ns))
        loop = _loop(session, mine, key, watching) if found else None
        if loop is None:
            continue
        made += [
            Absence(
                loop=loop,
                wait=int(mine[returned]),
                began_ns=began_ns,
                ended_ns=ended_ns,
                back=int(mine[at + 1]) if at + 1 < len(mine) else NO_ID,
            )
            for at, returned, began_ns, ended_ns in found
        ]
    return made


def _by_loop(session: Session, waits: Ids) -> tuple[list[int], Grouping]:
    """Whose the waits are: an epoll instance's, else a thread's; and by these the places in `waits`."""
    records = session.events.records
    found: set[int] = set()
    keys, places = (session.columns(len(waits), np.int64) for _ in range(2))
    for part in pieces(len(waits)):
        mine = waits[part]
        epolls = _EPOLL_WAITS[records["call"][mine]]
        files, threads = session.event_open_file[mine].astype(np.int64), records["tid"][mine].astype(np.int64)
        keys[part] = np.where(epolls, files, _BY_THREAD | threads)
        places[part] = np.arange(part.start, part.stop)
        found.update(np.unique(keys[part]).tolist())
    return sorted(found), Grouping(keys, places, session.columns)


def _in_time(session: Session, waits: Ids) -> Ids:
    """By when they began: mostly they stand so."""
    began, _ = spans(session, waits)
    return waits if (began[1:] >= began[:-1]).all() else waits[np.argsort(began, kind="stable")]


def _away(session: Session, waits: Ids, least_ns: int) -> Iterator[tuple[int, int, int, int]]:
    """Times between the last wait's return and the next wait, where they are long.

    Args:
        waits: of one loop, in order of their beginning.

    Yields:
        Place of the last wait that had begun, and of the one that returned last; when that was; when the next began.
    """
    final_ns = session.info.ended_ns
    reached, by = np.iinfo(np.int64).min, 0
    for part in pieces(len(waits)):
        began, ended = spans(session, waits[part.start : part.stop + 1])
        count = part.stop - part.start
        ended = np.minimum(ended[:count], final_ns)
        latest = np.maximum(np.maximum.accumulate(ended), reached)
        returned = np.maximum.accumulate(np.where(ended == latest, np.arange(part.start, part.stop), by))
        back = np.append(began[1:], final_ns) if len(began) == count else began[1:]
        for at in np.flatnonzero(back - latest >= least_ns).tolist():
            yield part.start + at, int(returned[at]), int(latest[at]), int(back[at])
        reached, by = int(latest[-1]), int(returned[-1])


def _loop_waits(session: Session) -> Ids:
    """Waits but those for a single thing within a turn: polls of one descriptor that is no listener, and sleeps."""
    records = session.events.records
    waits: Ids = rows_of(session.event_call, lambda calls: _WAITS[calls])
    waits = waits[(records["flags"][waits] & EventFlag.URING) == 0]
    calls = session.event_call[waits]
    epolls = _EPOLL_WAITS[calls]
    if epolls.all():
        return waits[session.event_open_file[waits] >= 0]
    # A thread that has an epoll instance polls and selects for other reasons.
    others = ~epolls & ~np.isin(records["tid"][waits], np.unique(records["tid"][waits[epolls]]))
    polls = _POLLS[calls]
    counts = records["args"][waits, np.where(polls, 1, 0)].astype(np.int64)
    single = np.flatnonzero(others & polls & (counts == 1))
    place, size = find_sections(session.events, waits[single], Section.POLLFDS)
    listeners = {(d.table, d.fd) for f in session.open_files if f.listening for d in _descriptors(session, f.id)}
    asked = np.full(len(single), NO_ID, np.int64)
    asked[size >= 8] = words_at(session.events.blob, place[size >= 8])
    tables = session.event_table[waits[single]].tolist()
    served = [pair in listeners for pair in zip(tables, asked.tolist(), strict=True)]
    others[single[~np.array(served, np.bool_)]] = False
    others &= counts > 0
    kept: Ids = waits[others | (epolls & (session.event_open_file[waits] >= 0))]
    return kept


def _descriptors(session: Session, open_file: int) -> Iterator[Descriptor]:
    return (session.descriptors[number] for number in session.open_files[open_file].descriptors)


class _Watching:
    """How many connections an epoll instance was ever asked to watch; counted at the first use."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names = Names(session)
        self._by_epoll: dict[int, set[int]] | None = None

    def by_epoll(self, epoll: int) -> int:
        if self._by_epoll is None:
            self._by_epoll = defaultdict(set)
            for one in self._session.interests:
                connection = self._session.open_files[one.open_file].connection
                if connection >= 0:
                    self._by_epoll[one.epoll].add(connection)
        return len(self._by_epoll.get(epoll, ()))

    def by_number(self, waits: Ids) -> int:
        found: set[int] = set()
        for wait in waits[:: max(1, len(waits) // _LOOKED_AT)].tolist():
            for fd in asked_of(self._session, wait) or ():
                file, _ = self._names.of(wait, Ready(fd, 0))
                if file >= 0 and self._session.open_files[file].connection >= 0:
                    found.add(self._session.open_files[file].connection)
        return len(found)


def _loop(session: Session, waits: Ids, key: int, watching: _Watching) -> Loop | None:
    """The loop of these waits; None where it is none, or has never had two connections."""
    if len(waits) < _TURNS:
        return None
    epoll = key if key < _BY_THREAD else NO_ID
    watched = watching.by_epoll(epoll) if epoll >= 0 else watching.by_number(waits)
    if watched < _CONNECTIONS:
        return None
    return Loop(epoll=epoll, waits=waits, tids=frozenset(np.unique(session.events.records["tid"][waits]).tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What a thread did for the longest part of an absence.

    Attributes:
        calls: the call, or the calls on one descriptor, that took so long; empty: between two calls.
        spent_ns: in those calls alone.
        before: its last call that had returned when the stretch began; -1 for none since the wait.
    """

    tid: int
    began_ns: int
    ended_ns: int
    calls: Ids
    spent_ns: int
    before: int

    @property
    def lasted_ns(self) -> int:
        return self.ended_ns - self.began_ns


_MOST_OF_IT = 2 / 3


def longest_stretch(session: Session, absence: Absence) -> Stretch:
    """The longest call of the thread that came back from the wait, or the longest time between two, in an absence.

    Where many calls on one descriptor make up most of the absence, they are taken together.
    """
    records = session.events.records
    tid = int(records["tid"][absence.wait])
    events = session.events_of_tid(tid)
    # They are in order of their effect; one more, since another thread's wait may have ended the absence.
    low, high = np.searchsorted(session.effective_ns[events], [absence.began_ns, absence.ended_ns + 1])
    events = events[low : high + 1]
    events = events[(records["call"][events] < FIRST_TASK_EVENT) & ((records["flags"][events] & EventFlag.URING) == 0)]
    began, ended = spans(session, events)
    inside = (began >= absence.began_ns) & (began < absence.ended_ns)
    events, began = events[inside], began[inside]
    ended = np.minimum(ended[inside], absence.ended_ns)
    order = np.argsort(began, kind="stable")
    events, began, ended = events[order], began[order], ended[order]
    # Between the calls: from the end of each (and of the wait) to the beginning of the next (and of the next wait).
    free_from, free_to = np.append(absence.began_ns, ended), np.append(began, absence.ended_ns)
    free = free_to - free_from
    idle = int(np.argmax(free))
    took = ended - began
    if len(events):
        named = session.event_descriptor[events]
        sums = np.bincount(named[named >= 0], weights=took[named >= 0]) if (named >= 0).any() else np.zeros(0)
        longest = int(np.argmax(took))
        if (
            len(sums)
            and sums.max() > max(free[idle], absence.lasted_ns * _MOST_OF_IT)
            and took[longest] < sums.max() * _MOST_OF_IT
        ):
            own = np.flatnonzero(named == int(np.argmax(sums)))
            first, last = int(own[0]), int(own[-1])
            return Stretch(
                tid=tid,
                began_ns=int(began[first]),
                ended_ns=int(ended[last]),
                calls=events[own],
                spent_ns=int(sums.max()),
                before=int(events[first - 1]) if first else NO_ID,
            )
        if took[longest] >= free[idle]:
            return Stretch(
                tid=tid,
                began_ns=int(began[longest]),
                ended_ns=int(ended[longest]),
                calls=events[longest : longest + 1],
                spent_ns=int(took[longest]),
                before=int(events[longest - 1]) if longest else NO_ID,
            )
    return Stretch(
        tid=tid,
        began_ns=int(free_from[idle]),
        ended_ns=int(free_to[idle]),
        calls=events[:0],
        spent_ns=int(free[idle]),
        before=int(events[idle - 1]) if idle else NO_ID,
    )
