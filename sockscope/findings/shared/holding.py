"""Who holds an open file, how they came by it, and what they did with it: shared by the rules of closing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.analysis.stops.proc_facts import ENDING, signals_to
from sockscope.findings.shared.evidence import NS_PER_MS, from_event, from_proc, program, since_start, who
from sockscope.findings.shared.readiness import asked_of
from sockscope.model.calls import EPOLL_WAITS, READS, WAITS, WRITES, Call
from sockscope.model.connections import Connection, Protocol
from sockscope.model.descriptors import Descriptor, Ended, How
from sockscope.model.events import EventFlag
from sockscope.model.findings import Evidence, Holder

USES = READS | WRITES | {Call.splice, Call.shutdown, Call.connect}
"""What counts as using a connection; options, duplicates and closes do not."""

_USES = np.array(sorted(USES), np.uint16)
_READS = np.array(sorted(READS), np.uint16)
_WRITES = np.array(sorted(WRITES), np.uint16)
_WAITS = np.array(sorted(WAITS), np.uint16)
_EPOLL_WAITS = np.array(sorted(EPOLL_WAITS), np.uint16)
_EAGAIN = -11
_STANDARD_STREAMS = 3
_F_SETFD, _FIONCLEX = 2, 0x5450
_WAITS_LOOKED_AT = 200

WIND_DOWN_NS = 50 * NS_PER_MS
"""Closes and packets so shortly before a process's exit belong to its end."""

DELIBERATE = frozenset({Ended.CLOSE, Ended.CLOSE_RANGE, Ended.REPLACED, Ended.REUSED})
"""Ends that the program brought about itself (not exit, not exec); a number that came back was closed unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One descriptor of an open file, and what its process did with it.

    Attributes:
        uses: event ids of reads, writes and shutdowns through it, in order.
        until_ns: when it went, at the latest when its process was told to end, or the session ended.
        given_up: the program closed it by itself, in the middle of its life.
    """

    descriptor: Descriptor
    tgid: int
    uses: Ids
    until_ns: int
    given_up: bool


def calls_of(session: Session, events: Ids) -> npt.NDArray[np.uint16]:
    """The call number of each event."""
    return session.event_call[events]


def uses_of(session: Session, events: Ids) -> Ids:
    """Those of the events that use a connection, in the order given."""
    return events[np.isin(calls_of(session, events), _USES)]


def returns_of(session: Session, events: Ids) -> npt.NDArray[np.int64]:
    """What each call returned."""
    returned: npt.NDArray[np.int64] = session.events.records["ret"][events]
    return returned


def payload_moves(session: Session, events: Ids) -> tuple[Ids, Ids]:
    """(reads, writes) that moved at least one byte."""
    calls, moved = calls_of(session, events), returns_of(session, events) > 0
    return events[np.isin(calls, _READS) & moved], events[np.isin(calls, _WRITES) & moved]


def unfinished(session: Session, event: int) -> bool:
    """Whether the call was still in the kernel when the session (or its thread) ended."""
    return bool(int(session.events.records["flags"][event]) & EventFlag.ENTERED_ONLY)


def waits_to_write(session: Session, uses: Ids) -> bool:
    """Whether the last use was a write that found the buffer full, or is still blocked in one."""
    if not len(uses):
        return False
    last = int(uses[-1])
    writes = int(session.events.records["call"][last]) in {int(call) for call in WRITES}
    return writes and (unfinished(session, last) or int(session.events.records["ret"][last]) == _EAGAIN)


def tcp_connections(session: Session) -> list[Connection]:
    """The target's TCP connections that some process of it has (had) a descriptor for."""
    return [c for c in session.connections if c.protocol is Protocol.TCP and c.open_file >= 0]


def program_of(session: Session, connection: Connection) -> str:
    """What the process runs that held the connection first; empty where none did."""
    held = session.open_files[connection.open_file].descriptors if connection.open_file >= 0 else []
    return program(session, session.tgid_of_table(session.descriptors[held[0]].table)) if held else ""


def served_by(session: Session, name: str) -> int:
    """How many TCP connections that program had in all."""
    return sum(program_of(session, connection) == name for connection in tcp_connections(session))


def is_standard_stream(copy: Copy) -> bool:
    """A socket put in the place of stdin, stdout or stderr is meant for the process (inetd, CGI)."""
    return copy.descriptor.fd < _STANDARD_STREAMS


def handed_on(session: Session, copy: Copy) -> bool:
    """Given to a child on purpose: it took close-on-exec off itself before its exec, or made a duplicate of it."""
    numbers = session.open_files[copy.descriptor.open_file].descriptors
    copied = (session.descriptors[number] for number in numbers)
    if any(one.source == copy.descriptor.id and one.how is How.DUP for one in copied):
        return True
    rows = session.events.records[session.events_of_descriptor(copy.descriptor.id)]
    kept_open = (rows["call"] == Call.fcntl) & (rows["args"][:, 1] == _F_SETFD) & ((rows["args"][:, 2] & 1) == 0)
    kept_open |= (rows["call"] == Call.ioctl) & (rows["args"][:, 1] == _FIONCLEX)
    return bool((kept_open & (rows["tgid"] == copy.tgid)).any())


class Holdings:
    """Answers about holders, for one rule's run over a session: what is dear to find is found once.

    Args:
        session: the joined session; it must not change meanwhile.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stopped = _stops(session)
        self._watching: dict[int, _Watching] = {}
        self._times: dict[int, npt.NDArray[np.int64]] = {}

    def calls_after(self, tid: int, time_ns: int) -> int:
        """How many calls of that thread took effect later."""
        times = self._times.get(tid)
        if times is None:
            times = self._times[tid] = self._session.effective_ns[self._session.events_of_tid(tid)]
        return len(times) - int(np.searchsorted(times, time_ns, "right"))

    def copies(self, open_file: int) -> list[Copy]:
        """Every descriptor that ever named the open file, in order of birth."""
        if open_file < 0:
            return []
        return [self._copy(number) for number in self._session.open_files[open_file].descriptors]

    def _copy(self, number: int) -> Copy:
        session = self._session
        one = session.descriptors[number]
        tgid = session.tgid_of_table(one.table)
        last_ns = min(self._stopped.get(tgid, session.info.ended_ns), session.info.ended_ns)
        given_up = one.ended in DELIBERATE and one.closed_ns is not None and one.closed_ns < last_ns
        return Copy(
            descriptor=one,
            tgid=tgid,
            uses=uses_of(session, session.events_of_descriptor(one.id)),
            until_ns=last_ns if one.closed_ns is None else min(one.closed_ns, last_ns),
            given_up=given_up,
        )

    def keeps(self, connection: Connection) -> bool:
        """Whether some descriptor of it was not closed by its program (cheap: asked of every connection)."""
        descriptors = (self._session.descriptors[d] for d in self._session.open_files[connection.open_file].descriptors)
        return any(
            one.ended not in DELIBERATE
            or (one.closed_ns or 0) >= self._stopped.get(self._session.tgid_of_table(one.table), _NEVER)
            for one in descriptors
        )

    def watches(self, copy: Copy) -> bool:
        """Whether the process waits for readiness of this descriptor: by epoll interest, poll or select.

        Where that cannot be seen (a poll that never returned), it is taken to do so.
        """
        known = self._watching.get(copy.tgid)
        if known is None:
            stopped_ns = self._stopped.get(copy.tgid, _NEVER)
            known = self._watching[copy.tgid] = _Watching.of(self._session, copy.tgid, stopped_ns)
        if copy.descriptor.open_file in known.by_epoll:
            return True
        born = copy.descriptor.opened_ns
        return any(at >= born and (fds is None or copy.descriptor.fd in fds) for at, fds in known.by_number)


_NEVER = 1 << 62


def _stops(session: Session) -> dict[int, int]:
    """tgid → when a process that ended was told to: what it closes from there on, it closes because it ends."""
    found: dict[int, int] = {}
    for _, tgid, time_ns in signals_to(session, ENDING):
        process = session.processes.get(tgid)
        if process is not None and process.exited_ns is not None:
            found.setdefault(tgid, time_ns)
    for process in session.processes.values():
        if process.exited_ns is not None:
            found[process.tgid] = min(found.get(process.tgid, _NEVER), process.exited_ns - WIND_DOWN_NS)
    return found


@dataclass(frozen=True, slots=True)
class _Watching:
    """What a process waits for.

    Attributes:
        by_epoll: open files in the interest lists of the epoll instances that it waits on.
        by_number: of its last polls and selects, (time, the numbers named; None: not seen).
    """

    by_epoll: frozenset[int]
    by_number: tuple[tuple[int, frozenset[int] | None], ...]

    @classmethod
    def of(cls, session: Session, tgid: int, stopped_ns: int) -> _Watching:
        events = session.events_of_tgid(tgid)
        waits = events[np.isin(calls_of(session, events), _WAITS)]
        epolls = {int(number) for number in np.unique(session.event_open_file[waits])}
        # What the end of the process took away it had until then.
        interests = frozenset(
            i.open_file
            for i in session.interests
            if i.epoll in epolls and (i.removed_ns is None or i.removed_ns >= stopped_ns)
        )
        by_epoll = np.isin(calls_of(session, waits), _EPOLL_WAITS)
        numbered = tuple(
            (int(session.effective_ns[wait]), asked_of(session, int(wait)))
            for wait in waits[~by_epoll][-_WAITS_LOOKED_AT:]
        )
        return cls(interests, numbered)


def exec_after(session: Session, copy: Copy) -> int:
    """The process's first exec that the descriptor survived; -1 for none."""
    process = session.processes.get(copy.tgid)
    born = copy.descriptor.opened_ns
    survived = (e for e in (process.execs if process else ()) if born <= int(session.effective_ns[e]) < copy.until_ns)
    return next(survived, -1)


def came_by(session: Session, copy: Copy, *, noun: str = "it") -> str:
    """How the process got its descriptor, in words: `by fork at +1.204 s, and kept it across exec at +1.210 s`."""
    one = copy.descriptor
    at = since_start(session, one.opened_ns)
    words = {
        How.FORK: f"by fork at {at}",
        How.SCM_RIGHTS: f"by SCM_RIGHTS at {at}",
        How.DUP: f"by dup at {at}",
        How.UNSHARE: f"by unshare at {at}",
        How.PIDFD_GETFD: f"by pidfd_getfd at {at}",
        How.ACCEPT: f"by accept at {at}",
        How.SNAPSHOT: "before watching began",
    }.get(one.how, f"at {at}")
    executed = exec_after(session, copy)
    if executed >= 0:
        words += f", and kept {noun} across exec at {since_start(session, int(session.effective_ns[executed]))}"
    return words


def holder_of(session: Session, copy: Copy) -> Holder:
    """The copy as a finding names it."""
    return Holder(tgid=copy.tgid, comm=session.comm(copy.tgid), fd=copy.descriptor.fd)


def holding_evidence(session: Session, copy: Copy) -> list[Evidence]:
    """The events by which the process got the descriptor, and that it has it to the end."""
    one = copy.descriptor
    facts = []
    if one.opened_event >= 0 and one.how is not How.SNAPSHOT:
        facts.append(from_event(session, one.opened_event, f"{who(session, copy.tgid)} gets it as fd {one.fd}"))
    executed = exec_after(session, copy)
    if executed >= 0:
        facts.append(from_event(session, executed, f"fd {one.fd} has no close-on-exec and stays open"))
    ended = "the end of the session" if copy.until_ns >= session.info.ended_ns else "the process was ended"
    facts.append(from_proc(copy.until_ns, f"{who(session, copy.tgid)} fd {one.fd}: held until {ended}"))
    return facts
