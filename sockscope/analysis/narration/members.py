"""What each process of the target does with listeners and connections: the counts behind `architecture`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.narration.describe_values import fd_sets, poll_entries
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.replay.control import IS_READ, IS_SOCKET_CALL, IS_WAIT, IS_WRITE, by_call
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import EPOLL_WAITS, WAITS, Call
from sockscope.model.columns import pieces, rows_of
from sockscope.model.connections import Role
from sockscope.model.descriptors import Descriptor, How, OpenFile
from sockscope.model.events import EventFlag, Section, is_seeded
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

_IS_ACCEPT: Final = by_call([Call.accept, Call.accept4])
_IS_EPOLL_WAIT: Final = by_call(EPOLL_WAITS)
_IS_CHILD_WAIT: Final = by_call([Call.wait4, Call.waitid])
_IS_NUMBERED_WAIT: Final = by_call(WAITS - EPOLL_WAITS)
_PAIR: Final = np.int64(1 << 32)
_LOOP: Final = 2
"""Connections that make a loop of an epoll: who waits for one alone only waits."""
_THREADS_LOOKED_AT: Final = 32
_WAITS_LOOKED_AT: Final = 16
"""Polls and selects read for what they name: a loop names the same again and again."""


@dataclass(slots=True, kw_only=True)
class Member:
    """One process.

    Attributes:
        children: processes of the target that it started.
        tids: every thread that it had.
        listeners: open file of a listener → the number it has it under, where it kept it.
        watched: listeners that it waits for or accepts from.
        epolls: epoll open file → threads that waited on it (none, where it is only known to be there). Those that
            watch a listener, or several connections: the event loops.
        waits: the kinds of wait that it called: `epoll`, `poll`, `select`.
        asks: of poll and select those that it waits for a listener in.
        accepts: thread → connections that it accepted.
        rings: it uses io_uring.
        reaps: it waits for children.
        quiet: threads that made no call on a socket and waited for none.
    """

    tgid: int
    parent: int
    children: list[int] = field(default_factory=list)
    tids: set[int] = field(default_factory=set)
    listeners: dict[int, int] = field(default_factory=dict)
    watched: set[int] = field(default_factory=set)
    epolls: dict[int, set[int]] = field(default_factory=dict)
    waits: set[str] = field(default_factory=set)
    asks: set[str] = field(default_factory=set)
    accepts: Counter[int] = field(default_factory=Counter)
    rings: bool = False
    reaps: bool = False
    quiet: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Columns of the accepted connections of which the accept was seen: shape (n,) each.

    Attributes:
        connection: ids.
        tgid, tid: who accepted.
        began_ns, ended_ns: accepted, and the last reference gone (the session's end where it is held).
        server_tgid, server_tid: who read or wrote first; -1: nobody has.
        how: how the server has it: 0 it accepted it itself, 1 another thread of the process, 2 fork, 3 SCM_RIGHTS,
            4 otherwise; -1 not served.
        born: the serving thread or process began after the accept, and before it served.
        alone: the serving thread served no other.
    """

    connection: Ids
    tgid: Ids
    tid: Ids
    began_ns: Ids
    ended_ns: Ids
    server_tgid: Ids
    server_tid: Ids
    how: Ids
    born: npt.NDArray[np.bool_]
    alone: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.connection)

    def of(self, rows: npt.NDArray[np.bool_]) -> Served:
        return Served(**{name: getattr(self, name)[rows] for name in self.__slots__})

    @property
    def at_once(self) -> int:
        """How many were open at the same time at most."""
        times = np.concatenate([self.began_ns, self.ended_ns])
        steps = np.repeat([1, -1], len(self))
        # An end at the moment of a beginning comes first.
        order = np.lexsort((steps, times))
        return int(np.cumsum(steps[order]).max(initial=0))


def members_of(session: Session) -> dict[int, Member]:
    """Every process of the target, by tgid."""
    found = {process.tgid: Member(tgid=process.tgid, parent=process.parent) for process in session.processes.values()}
    for one in found.values():
        if one.parent in found:
            found[one.parent].children.append(one.tgid)
    for known in session.seed.processes:
        if known.tgid in found:
            found[known.tgid].tids |= set(known.tids)
    _threads(session, found)
    _listeners(session, found)
    _accepts(session, found)
    _waits(session, found)
    return found


def _threads_of(records: npt.NDArray[np.void], rows: npt.NDArray[np.bool_] | Ids) -> list[tuple[int, int]]:
    """The distinct (tgid, tid) among the rows, by a table of all thread numbers: sorting them all takes longer."""
    tids, tgids = records["tid"][rows], records["tgid"][rows]
    if not len(tids):
        return []
    owner = np.zeros(int(tids.max()) + 1, np.int32)
    owner[tids] = tgids
    distinct = np.flatnonzero(owner)
    return list(zip(owner[distinct].tolist(), distinct.tolist(), strict=True))


def _threads(session: Session, found: dict[int, Member]) -> None:
    # tid → tgid, the last that had it.
    everybody: dict[int, int] = {}
    active: dict[int, int] = {}
    waiters: dict[int, int] = {}
    ringers: dict[int, int] = {}
    about_sockets = IS_SOCKET_CALL | IS_WAIT
    for part in pieces(len(session.events)):
        records, call = session.events.records[part], session.event_call[part]
        about = (about_sockets[call] & ~is_seeded(records)) | (session.event_connection[part] >= 0)
        rings = (call == Call.io_uring_enter) | (records["flags"] & EventFlag.URING != 0)
        for owner, rows in (
            (everybody, records["tgid"] > 0),
            (active, about),
            (waiters, _IS_CHILD_WAIT[call]),
            (ringers, rings),
        ):
            owner.update((tid, tgid) for tgid, tid in _threads_of(records, rows))
    for tid, tgid in sorted(everybody.items()):
        if tgid in found:
            found[tgid].tids.add(tid)
    busy: defaultdict[int, set[int]] = defaultdict(set)
    for tid, tgid in active.items():
        busy[tgid].add(tid)
    for one in found.values():
        one.quiet = len(one.tids - busy[one.tgid])
    for tgid in waiters.values():
        if tgid in found:
            found[tgid].reaps = True
    seeded = session.seed.fds["tgid"][session.seed.fds["kind"] == FileKind.IO_URING]
    for tgid in {*np.unique(seeded).tolist(), *ringers.values()}:
        if tgid in found:
            found[tgid].rings = True


def _listeners(session: Session, found: dict[int, Member]) -> None:
    """Who has which listener, closed neither at once nor by a child that has no use for it."""
    began, ended = session.info.started_ns, session.info.ended_ns
    for file in session.open_files:
        if not file.listening:
            continue
        for number in file.descriptors:
            one = session.descriptors[number]
            for tgid in session.tables[one.table].tgids:
                process = session.processes.get(tgid)
                if tgid not in found or process is None:
                    continue
                birth = max(process.started_ns or began, file.created_ns if file.witnessed else began)
                death = min(process.exited_ns or ended, ended)
                kept_ns = min(one.closed_ns or death, death) - max(one.opened_ns, birth)
                if 2 * kept_ns >= death - birth:
                    found[tgid].listeners.setdefault(file.id, one.fd)


def _waits(session: Session, found: dict[int, Member]) -> None:
    records = session.events.records
    call = session.event_call
    waits = np.flatnonzero(IS_WAIT[call])
    for name, calls in (
        ("epoll", _IS_EPOLL_WAIT),
        ("poll", by_call([Call.poll, Call.ppoll])),
        ("select", by_call([Call.select, Call.pselect6])),
    ):
        rows = waits[calls[call[waits]]]
        for tgid, _ in _threads_of(records, rows):
            if tgid in found:
                found[tgid].waits.add(name)
    rows = waits[_IS_EPOLL_WAIT[call[waits]] & (session.event_open_file[waits] >= 0)]
    files = session.event_open_file[rows]
    for epoll in np.flatnonzero(np.bincount(files)).tolist() if len(files) else ():
        for tgid, tid in _threads_of(records, rows[files == epoll]):
            if tgid in found:
                found[tgid].epolls.setdefault(epoll, set()).add(tid)
    _interests(session, found)
    for one in found.values():
        if one.listeners and one.waits & {"poll", "select"}:
            for kind, numbers in numbered_waits(session, sorted(one.tids)):
                named = {file for file, fd in one.listeners.items() if fd in numbers}
                one.watched |= named
                one.asks |= {kind} if named else set()


def numbered_waits(session: Session, tids: Sequence[int]) -> Iterator[tuple[str, set[int]]]:
    """The last polls and selects of these threads: `poll` or `select`, and the numbers they named."""
    records = session.events.records
    for tid in tids[:_THREADS_LOOKED_AT]:
        rows = session.events_of_tid(tid)
        for row in rows[_IS_NUMBERED_WAIT[records["call"][rows]]][-_WAITS_LOOKED_AT:].tolist():
            view = View.of(session.events, row)
            if view.call in (Call.poll, Call.ppoll):
                yield "poll", {fd for fd, _, _ in poll_entries(view.sections.get(Section.POLLFDS, b""))}
            else:
                sets = fd_sets(view.sections.get(Section.FDSETS_IN, b""), view.int_arg(0))
                yield "select", {fd for fds in sets for fd in fds}


def _interests(session: Session, found: dict[int, Member]) -> None:
    """Epolls that watch a listener belong to who has both, waited on or not; those of no loop are left out."""
    watched: Counter[int] = Counter()
    for interest in session.interests:
        if interest.open_file < 0:
            continue
        file = session.open_files[interest.open_file]
        watched[interest.epoll] += _LOOP if file.listening else file.connection != NO_ID
        if not file.listening:
            continue
        for tgid in _owners(session, session.open_files[interest.epoll]):
            if tgid in found and interest.open_file in found[tgid].listeners:
                found[tgid].watched.add(interest.open_file)
                found[tgid].epolls.setdefault(interest.epoll, set())
    for one in found.values():
        one.epolls = {epoll: tids for epoll, tids in one.epolls.items() if watched[epoll] >= _LOOP}


def _owners(session: Session, file: OpenFile) -> set[int]:
    held: list[Descriptor] = [session.descriptors[number] for number in file.descriptors]
    return {tgid for one in held if one.how is not How.FORK or one.closed_ns is None
            for tgid in session.tables[one.table].tgids}  # fmt: skip


def _accepts(session: Session, found: dict[int, Member]) -> None:
    records = session.events.records
    rows = rows_of(session.event_call, lambda calls: _IS_ACCEPT[calls])
    picked, files = records[rows], session.event_open_file[rows]
    numbers = picked["args"][:, 0].astype(np.uint32).view(np.int32)
    _, firsts = np.unique(picked["tgid"].astype(np.int64) * _PAIR + files, return_index=True)
    for at in firsts.tolist():
        one, file = found.get(int(picked["tgid"][at])), int(files[at])
        if one is not None and file >= 0:
            one.watched.add(file)
            one.listeners.setdefault(file, int(numbers[at]))
    got = (picked["ret"] >= 0) & (picked["flags"] & EventFlag.ENTERED_ONLY == 0)
    tids, counts = np.unique(picked["tid"][got], return_counts=True)
    owner = dict(zip(picked["tid"].tolist(), picked["tgid"].tolist(), strict=True))
    for tid, count in zip(tids.tolist(), counts.tolist(), strict=True):
        if owner[tid] in found:
            found[owner[tid]].accepts[tid] = count


def served_of(session: Session) -> Served:
    """Every connection whose accept was seen."""
    records = session.events.records
    accepted = [
        one
        for one in session.connections
        if one.role is Role.SERVER and one.opened_event != NO_ID and _IS_ACCEPT[records["call"][one.opened_event]]
    ]
    ids = np.array([one.id for one in accepted], np.int64)
    event = np.array([one.opened_event for one in accepted], np.int64)
    files = [session.open_files[one.open_file] if one.open_file >= 0 else None for one in accepted]
    ended = np.array(
        [file.released_ns if file and file.released_ns is not None else session.info.ended_ns for file in files],
        np.int64,
    )
    first = _first_use(session)[ids] if len(ids) else ids
    used = first >= 0
    at = np.maximum(first, 0)
    tgid, tid = records["tgid"][event].astype(np.int64), records["tid"][event].astype(np.int64)
    server_tgid = np.where(used, records["tgid"][at], -1).astype(np.int64) if len(ids) else ids
    server_tid = np.where(used, records["tid"][at], -1).astype(np.int64) if len(ids) else ids
    began = records["exit_ns"][event].astype(np.int64)
    how = np.full(len(ids), -1, np.int64)
    how[used & (server_tid == tid)] = 0
    how[used & (server_tid != tid) & (server_tgid == tgid)] = 1
    for row in np.flatnonzero(used & (server_tgid != tgid)).tolist():
        how[row] = _came(session, files[row], int(server_tgid[row]))
    births = _births(session)
    birth = np.array([births.get(one, -1) for one in server_tid.tolist()], np.int64)
    _, inverse, counts = np.unique(server_tid, return_inverse=True, return_counts=True)
    alone = counts[inverse.reshape(-1)] == 1 if len(ids) else np.zeros(0, np.bool_)
    return Served(
        connection=ids, tgid=tgid, tid=tid, began_ns=began, ended_ns=np.maximum(ended, began),
        server_tgid=server_tgid, server_tid=server_tid, how=how, born=(birth >= began) & used, alone=alone & used,
    )  # fmt: skip


def _came(session: Session, file: OpenFile | None, tgid: int) -> int:
    ways = {
        session.descriptors[number].how
        for number in (file.descriptors if file else ())
        if tgid in session.tables[session.descriptors[number].table].tgids
    }
    return 3 if How.SCM_RIGHTS in ways else 2 if How.FORK in ways else 4


def _first_use(session: Session) -> Ids:
    """shape (connections,): the first read or write of each that moved something; -1: none."""
    records = session.events.records
    rows, bounds = session.events_of_all()
    moves = IS_READ | IS_WRITE
    places = rows_of(rows, lambda part: moves[session.event_call[part]] & (records["ret"][part] > 0))
    at = np.searchsorted(places, bounds[:-1])
    near = places[np.minimum(at, max(len(places) - 1, 0))] if len(places) else np.zeros(len(at), np.int64)
    inside = (at < len(places)) & (near < bounds[1:])
    found: Ids = np.where(inside, rows[near] if len(rows) else -1, -1)
    return found


def _births(session: Session) -> dict[int, int]:
    """tid → when its last beginning was seen."""
    records = session.events.records
    rows = np.flatnonzero(session.event_call == Call.task_new)
    rows = rows[np.argsort(session.effective_ns[rows], kind="stable")]
    return dict(
        zip(records["args"][rows, 0].astype(np.int64).tolist(), session.effective_ns[rows].tolist(), strict=True)
    )
