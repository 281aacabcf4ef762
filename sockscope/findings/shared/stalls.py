"""Stalls: absences of an event loop that kept others waiting, and what excuses one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.analysis.stops.proc_facts import ENDING
from sockscope.findings.shared.event_loops import Absence, Stretch, longest_stretch
from sockscope.findings.shared.evidence import NS_PER_MS
from sockscope.findings.shared.kept_waiting import Arrivals, Kept, belongs_to
from sockscope.model.calls import READS, WAITS, WRITES, Call
from sockscope.model.connections import Role
from sockscope.model.ids import NO_ID

STALL_NS = 300 * NS_PER_MS
_WITHOUT_CALL_NS = 500 * NS_PER_MS
BUSY_SHARE = 0.5
_EAGAIN, _MSG_DONTWAIT = -11, 0x40
_STOPS = by_call([Call.task_signal, Call.task_stop])
_CHILD_WAITS = (Call.wait4, Call.waitid)


class Kind(StrEnum):
    """What held the loop up, as the mend sees it."""

    CONNECT = "connect"
    CHILD = "child"
    ACCEPT = "accept"
    WRITE = "write"
    READ = "read"
    WAIT = "wait"
    CALL = "call"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """One absence that kept others waiting.

    Attributes:
        fd: the descriptor that the call was on; -1 for none.
        connection: the connection under it; -1.
        ongoing: it lasts to the session's end.
    """

    tgid: int
    absence: Absence
    stretch: Stretch
    kind: Kind
    fd: int
    connection: int
    others: tuple[Kept, ...]
    ongoing: bool

    @property
    def call(self) -> int:
        """The longest call of the stretch; -1."""
        return int(self.stretch.calls[0]) if len(self.stretch.calls) else NO_ID


class Stalls:
    """Judges absences, for one rule's run over a session: what is dear to find is found once.

    Args:
        session: the joined session; it must not change meanwhile.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._arrivals = Arrivals(session)
        records = session.events.records
        stops = np.flatnonzero(_STOPS[session.event_call])
        told = np.isin(records["args"][stops, 0], ENDING)
        self._stops: Ids = stops[told | (session.event_call[stops] == Call.task_stop)]

    def judge(self, absence: Absence) -> Stall | None:
        """The absence as a stall; None where it kept nobody waiting, or is excused."""
        return _judge(self._session, absence, self._arrivals, self._stops)


def _judge(session: Session, absence: Absence, arrivals: Arrivals, stops: Ids) -> Stall | None:
    """The absence as a stall; None where it kept nobody waiting, or is excused."""
    tgid = int(session.events.records["tgid"][absence.wait])
    if _stopped(session, tgid, absence, stops):
        return None
    stretch = longest_stretch(session, absence)
    kind, fd, connection = _kind_of(session, stretch)
    least = _WITHOUT_CALL_NS if kind is Kind.NOTHING else STALL_NS
    if stretch.spent_ns < least or _cannot_block(session, stretch):
        return None
    if kind is Kind.NOTHING and (_starved(session, tgid, stretch) or _others_serve(session, tgid, stretch)):
        return None
    ongoing = absence.back < 0 and stretch.ended_ns >= session.info.ended_ns
    served = int(session.event_connection[stretch.before]) if stretch.before >= 0 else NO_ID
    others = [
        one
        for one in arrivals.kept(stretch.began_ns, stretch.ended_ns, absence.loop.tids, for_good=ongoing)
        if one.connection not in (served, connection)
        and (one.dealt >= 0 or belongs_to(session, session.connections[one.connection], tgid))
    ]
    if not any(one.arrived_ns > stretch.began_ns for one in others):
        return None
    return Stall(
        tgid=tgid,
        absence=absence,
        stretch=stretch,
        kind=kind,
        fd=fd,
        connection=connection,
        others=tuple(others),
        ongoing=ongoing,
    )


def _stopped(session: Session, tgid: int, absence: Absence, stops: Ids) -> bool:
    """Whether the process was stopped or told to stop by then, or went away instead of coming back."""
    records = session.events.records
    process = session.processes.get(tgid)
    if absence.back < 0 and process is not None and process.exited_ns is not None:
        return True
    own = session.events_of_tid(int(records["tid"][absence.wait]))
    if absence.back < 0 and int(records["call"][own[-1]]) in (Call.task_exit, Call.task_detach, Call.exit):
        return True
    told = stops[records["tgid"][stops] == tgid]
    return bool((session.effective_ns[told] < absence.ended_ns).any())


def _kind_of(session: Session, stretch: Stretch) -> tuple[Kind, int, int]:
    """(kind, descriptor, connection) of what the stretch was spent in."""
    if not len(stretch.calls):
        return Kind.NOTHING, NO_ID, NO_ID
    event = int(stretch.calls[0])
    call, descriptor = session.events.call(event), int(session.event_descriptor[event])
    fd = session.descriptors[descriptor].fd if descriptor >= 0 else NO_ID
    connection = int(session.event_connection[event])
    if call in _CHILD_WAITS:
        return Kind.CHILD, NO_ID, NO_ID
    if call in WAITS:
        return Kind.WAIT, NO_ID, NO_ID
    if call is Call.connect:
        return Kind.CONNECT, fd, connection
    if call in (Call.accept, Call.accept4):
        return Kind.ACCEPT, fd, NO_ID
    if call in WRITES:
        return Kind.WRITE, fd, connection
    return (Kind.READ if call in READS else Kind.CALL), fd, connection


def cpu_ns(session: Session, tgid: int, stretch: Stretch) -> tuple[int, int] | None:
    """(processor time, time between the samples) of the process, by the samples around the stretch; None: not known."""
    facts = session.facts.processes
    own = facts[facts["tgid"] == tgid]
    first = int(np.searchsorted(own["time_ns"], stretch.began_ns, "right")) - 1
    last = int(np.searchsorted(own["time_ns"], stretch.ended_ns))
    if first < 0 or last >= len(own):
        return None
    used = int(own["cpu_ns"][last]) - int(own["cpu_ns"][first])
    return used, int(own["time_ns"][last] - own["time_ns"][first])


def _starved(session: Session, tgid: int, stretch: Stretch) -> bool:
    """Whether it would have gone on, and was not given a CPU."""
    facts = session.facts.processes
    inside = (facts["tgid"] == tgid) & (facts["time_ns"] > stretch.began_ns) & (facts["time_ns"] < stretch.ended_ns)
    if not (facts["state"][inside] == b"R").any():
        return False
    used = cpu_ns(session, tgid, stretch)
    return used is not None and used[0] < BUSY_SHARE * stretch.lasted_ns


def _cannot_block(session: Session, stretch: Stretch) -> bool:
    """Whether no call of the stretch can wait for anything: it took long because its thread had no CPU."""
    records = session.events.records
    for event in stretch.calls.tolist():
        call, file = session.events.call(event), int(session.event_open_file[event])
        moves = call in READS or call in WRITES
        asked_not_to = (call in (Call.recvfrom, Call.sendto) and int(records["args"][event, 3]) & _MSG_DONTWAIT) or (
            call in (Call.recvmsg, Call.sendmsg) and int(records["args"][event, 2]) & _MSG_DONTWAIT
        )
        nonblocking = file >= 0 and bool(session.open_files[file].nonblock)
        known = moves or call in (Call.accept, Call.accept4, Call.connect)
        if not (known and (asked_not_to or nonblocking or int(records["ret"][event]) == _EAGAIN)):
            return False
    return bool(len(stretch.calls))


def _others_serve(session: Session, tgid: int, stretch: Stretch) -> bool:
    """Whether other threads of the process serve clients meanwhile: the loop waits for one of them to be free."""
    events = session.events_of_tgid(tgid)
    low, high = np.searchsorted(session.effective_ns[events], [stretch.began_ns + 1, stretch.ended_ns])
    events = events[low:high]
    events = events[session.events.records["tid"][events] != stretch.tid]
    connections = np.unique(session.event_connection[events])
    return any(session.connections[one].role is Role.SERVER for one in connections[connections >= 0].tolist())
