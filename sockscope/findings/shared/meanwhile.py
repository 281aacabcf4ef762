"""What one thread did between two moments: in which kind of call the time went, or in none that is seen."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import NS_PER_MS, span
from sockscope.findings.shared.readiness import Names, Ready, ready_of
from sockscope.model.calls import FIRST_TASK_EVENT, READS, WAITS, WRITES, Call
from sockscope.model.connections import Protocol, Role
from sockscope.model.events import EventFlag, Section
from sockscope.model.ids import NO_ID

_MOST = 0.5
_BUSY_SHARE = 0.5
_LOOKED_AT = 64
_RUNNING = b"R"
_LOOKS_EVERY_NS = 250 * NS_PER_MS
_LATE_SHARE = 0.4
_QUICK_SHARE = 0.2
IS_QUICK = by_call(
    {
        Call.socket, Call.bind, Call.listen, Call.getsockname, Call.getpeername, Call.getsockopt, Call.setsockopt,
        Call.close, Call.dup, Call.dup2, Call.dup3, Call.fcntl, Call.epoll_ctl, Call.clone, Call.clone3, Call.fork,
        Call.mmap, Call.munmap,
    }
)  # fmt: skip
"""Calls that never wait for anybody. (A close that lingers does; it is rare.)"""


class Kind(Enum):
    """Where most of the time went."""

    CONNECT = auto()
    SERVICE = auto()
    """Waiting for another's answer: in a read, a write or a poll of a connection that is no client's."""
    CLIENT = auto()
    """Blocked on a client's connection, another one."""
    CHILD = auto()
    CALL = auto()
    WAIT = auto()
    """In a wait for events or in accept: free to do whatever comes."""
    UNSEEN = auto()
    """In no call that is seen: computing, asleep, waiting for a lock or a disk."""
    MIXED = auto()
    """None of these took half of it."""


BLOCKED = frozenset({Kind.CONNECT, Kind.SERVICE, Kind.CLIENT, Kind.CHILD})
"""What holds a thread up and can be named. A call that never waits is none of them: it is slow where the machine is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meanwhile:
    """How a thread spent a time.

    Attributes:
        spent_ns: of it, in calls of this kind (or in none).
        event: the longest call of this kind; -1 for none.
        connection: what it was on; -1.
        cpu_ns: processor time that the process used between the samples of /proc around; None: not known.
        starved: the machine, or the tracer, was too slow just then to hold the time against the program.
    """

    tgid: int
    tid: int
    began_ns: int
    ended_ns: int
    kind: Kind
    spent_ns: int
    event: int = NO_ID
    connection: int = NO_ID
    cpu_ns: int | None = None
    starved: bool = False

    @property
    def lasted_ns(self) -> int:
        return self.ended_ns - self.began_ns


def meanwhile(session: Session, tid: int, began_ns: int, ended_ns: int, *, besides: int = NO_ID) -> Meanwhile:
    """What the thread did from one time to another.

    Args:
        besides: the connection that was to be served; calls on it count as calls, not as a client's.
    """
    records = session.events.records
    life = session.events_of_tid(tid)
    events = _around(session, life, began_ns, ended_ns)
    events = events[_is_own_call(session, events)]
    enter, leave = records["enter_ns"][events], records["exit_ns"][events]
    enter = np.maximum(np.where(enter >= 0, enter, session.info.started_ns), began_ns)
    leave = np.minimum(np.where(leave >= 0, leave, session.info.ended_ns), ended_ns)
    inside = leave > enter
    events, took = events[inside], (leave - enter)[inside]
    known = events if len(events) else life
    tgid = int(records["tgid"][known[0]]) if len(known) else _tgid_of(session, tid)
    unseen = ended_ns - began_ns - int(took.sum())
    # Sorted by length: of very many calls the short ones matter for their sum alone.
    order = np.argsort(-took, kind="stable")[:_LOOKED_AT]
    names = Names(session)
    totals: dict[Kind, int] = {Kind.UNSEEN: unseen}
    longest: dict[Kind, tuple[int, int]] = {}
    for at in order.tolist():
        kind, connection = _kind(session, int(events[at]), names, besides)
        totals[kind] = totals.get(kind, 0) + int(took[at])
        longest.setdefault(kind, (int(events[at]), connection))
    kind = max(totals, key=lambda one: totals[one])
    if totals[kind] < _MOST * (ended_ns - began_ns):
        kind = Kind.MIXED
    event, connection = longest.get(kind, (NO_ID, NO_ID))
    cpu_ns, runnable = _samples(session, tgid, began_ns, ended_ns)
    return Meanwhile(
        tgid=tgid,
        tid=tid,
        began_ns=began_ns,
        ended_ns=ended_ns,
        kind=kind,
        spent_ns=totals.get(kind, 0),
        event=event,
        connection=connection,
        cpu_ns=cpu_ns,
        starved=(runnable and cpu_ns is not None and cpu_ns < _BUSY_SHARE * (ended_ns - began_ns))
        or _slow_machine(session, tgid, began_ns, ended_ns),
    )


def _around(session: Session, life: Ids, began_ns: int, ended_ns: int) -> Ids:
    """Of a thread's events those that may lie in this time: its whole life is not gone through at every look."""
    records, at_ns = session.events.records, session.effective_ns
    low = bisect_left(life, began_ns, key=lambda event: at_ns[event])
    high = bisect_left(life, ended_ns, key=lambda event: at_ns[event])
    # A call that lies across an end takes effect beyond it; what is no call may come between.
    over = False
    while low and not over:
        low -= 1
        is_call = bool(_is_own_call(session, life[low : low + 1])[0])
        over = is_call and 0 <= int(records["exit_ns"][life[low]]) <= began_ns
    over = False
    while high < len(life) and not over:
        is_call = bool(_is_own_call(session, life[high : high + 1])[0])
        over = is_call and int(records["enter_ns"][life[high]]) >= ended_ns
        high += 1
    return life[low:high]


def _is_own_call(session: Session, events: Ids) -> npt.NDArray[np.bool_]:
    """Which events, shape (n,), are calls that the thread itself is in: one after another."""
    ringed = session.events.records["flags"][events] & EventFlag.URING != 0
    own: npt.NDArray[np.bool_] = (session.event_call[events] < FIRST_TASK_EVENT) & ~ringed
    return own


def _tgid_of(session: Session, tid: int) -> int:
    return next((p.tgid for p in session.processes.values() if tid in p.tids or tid == p.tgid), tid)


def _kind(session: Session, event: int, names: Names, besides: int) -> tuple[Kind, int]:
    """(kind, connection) of one call."""
    call = session.events.call(event)
    connection = int(session.event_connection[event])
    if call is Call.connect:
        return Kind.CONNECT, connection
    if call in (Call.wait4, Call.waitid):
        return Kind.CHILD, NO_ID
    if call in (Call.accept, Call.accept4):
        return Kind.WAIT, NO_ID
    if call in WAITS:
        connection = _awaited(session, event, names)
        if connection < 0 or connection == besides:
            return Kind.WAIT, NO_ID
    elif call not in READS | WRITES:
        return Kind.CALL, connection
    if connection < 0 or connection == besides:
        return Kind.CALL, connection
    return (Kind.CLIENT if session.connections[connection].role is Role.SERVER else Kind.SERVICE), connection


def _awaited(session: Session, event: int, names: Names) -> int:
    """The one connection that a poll is about (a time limit on a blocking call looks like that); -1 for others."""
    if session.events.call(event) not in (Call.poll, Call.ppoll):
        return NO_ID
    table = session.events.section(event, Section.POLLFDS)
    if table is None or len(table) != struct.calcsize("<ihh"):
        return NO_ID
    ready = ready_of(session, event) or {Ready(struct.unpack_from("<i", table)[0], 0)}
    open_file, _ = names.of(event, next(iter(ready)))
    return session.open_files[open_file].connection if open_file >= 0 else NO_ID


def _samples(session: Session, tgid: int, began_ns: int, ended_ns: int) -> tuple[int | None, bool]:
    """(processor time used around, seen runnable in between), by the samples of /proc."""
    facts = session.facts.processes
    own = facts[facts["tgid"] == tgid]
    first = int(np.searchsorted(own["time_ns"], began_ns, "right")) - 1
    last = int(np.searchsorted(own["time_ns"], ended_ns))
    inside = own[max(0, first + 1) : last]
    runnable = bool((inside["state"] == _RUNNING).any())
    if first < 0 or last >= len(own):
        return None, runnable
    return int(own["cpu_ns"][last]) - int(own["cpu_ns"][first]), runnable


def words(session: Session, one: Meanwhile) -> str:
    """A clause that follows "the thread": `was in recvfrom(9) for 1.31 s, waiting for 10.0.0.5:5432`."""
    if one.kind is Kind.UNSEEN:
        made = f"made no call that is seen for {span(one.spent_ns)}: it computed, slept, or waited for a lock or a disk"
        if one.cpu_ns is None:
            return made
        return f"{made} (the process used {span(one.cpu_ns)} of processor time around it)"
    if one.kind is Kind.MIXED:
        return "did many things, none of them for half of that time"
    name, fd = session.events.call(one.event).name, _fd(session, one.event)
    where = f"{name}({fd})" if fd >= 0 else name
    spent = span(one.spent_ns)
    if one.kind is Kind.WAIT:
        return f"waited in {where} for {spent}, free to do what came"
    if one.kind is Kind.CHILD:
        return f"was in {where} for {spent}, waiting for a child to end"
    return f"was in {where} for {spent}{_peer(session, one)}"


def _peer(session: Session, one: Meanwhile) -> str:
    if one.connection < 0:
        return ""
    made = session.connections[one.connection]
    to = {Kind.CONNECT: "connecting to", Kind.CLIENT: "blocked on the client"}.get(one.kind, "waiting for")
    if made.protocol is Protocol.UNIX:
        return f", {to} the other end of a unix socket"
    return f", {to} {made.peer}" if made.peer is not None else ""


def _fd(session: Session, event: int) -> int:
    descriptor = int(session.event_descriptor[event])
    return session.descriptors[descriptor].fd if descriptor >= 0 else NO_ID


def blamed(one: Meanwhile, least_ns: int) -> bool:
    """Whether a call that blocks took so much of it that it alone explains the delay."""
    return one.kind in BLOCKED and one.spent_ns >= max(least_ns - 100 * NS_PER_MS, _MOST * one.lasted_ns)


def _slow_machine(session: Session, tgid: int, began_ns: int, ended_ns: int) -> bool:
    """Whether everything was slow in that time: calls that never wait took long, or our own looking came late."""
    lasted = ended_ns - began_ns
    looked = session.snapshots_ns
    if len(looked) > 1:
        # Where there are very many sockets, all looks are far apart.
        usual = max(_LOOKS_EVERY_NS, int(np.quantile(np.diff(looked), 0.25)))
        if int(overlap(looked[:-1], looked[1:], began_ns, ended_ns).max()) - usual >= _LATE_SHARE * lasted:
            return True
    records = session.events.records
    events = session.events_of_tgid(tgid)
    near = events[bisect_right(events, began_ns, key=session.effective_ns.__getitem__) :]
    near = near[IS_QUICK[session.event_call[near]]]
    took = overlap(records["enter_ns"][near], records["exit_ns"][near], began_ns, ended_ns)
    took[(records["enter_ns"][near] < 0) | (records["exit_ns"][near] < 0)] = 0
    _, thread = np.unique(records["tid"][near], return_inverse=True)
    spent = np.bincount(thread.reshape(-1), weights=took) if len(near) else np.zeros(1)
    return float(spent.max()) >= _QUICK_SHARE * lasted


def overlap(began: Ids, ended: Ids, low: int, high: int) -> Ids:
    """How much of each of these times lies between two moments: shape (n,), at least 0."""
    found: Ids = np.maximum(np.minimum(ended, high) - np.maximum(began, low), 0)
    return found
