"""One slow call in an event loop keeps every other connection waiting.

What it reports:
    The thread that runs an event loop (epoll_wait, poll or select, again and again, over two connections or more)
    does not come back to its wait for a long time, while bytes of other connections, or connections to
    accept, are there. It says what the thread did instead: a blocking call on one descriptor, a wait for a child, or
    no call that is seen (computing, sleeping, a lock, a disk).

Why it matters:
    The loop serves all its connections with one thread: while that is held up, nobody is read, answered or
    accepted. One slow request adds its whole length to everybody's; where the length is in a client's
    hands (a blocking read from it), any client can stop the server.

Evidence:
    The wait that returned, the call (or the time without one) that followed, when the bytes of the others came on the
    wire or stood unread in a snapshot, and the call by which they were taken up at last. With samples of
    /proc the processor time that the process used meanwhile.

Example:
    `epoll_wait(4, …) = 1`, `recvfrom(9, …)` returns after 803 ms, `epoll_wait(4, …) = 3`: three clients had
    written 700 ms before.

Mend:
    Make the descriptor non-blocking and register it with the loop, as the others are; or give the slow work to a
    thread or a process and let it wake the loop (a pipe, an eventfd) when it is done.

False positives:
    A loop that is merely away harms nobody: another connection must have waited for 200 ms or more, something must
    have come during the stall itself (a machine that stood still receives nothing), and the loop's own thread must
    have taken it up right after. One call must take 300 ms, or the calls on one descriptor most of that; a
    time without calls 500 ms, since a thread that is not given a CPU looks the same: where a sample of /proc shows it
    runnable and it used little processor time, nothing is said. Many short turns under load
    are no stall. What comes after a signal to stop is left alone. The severity is a warning: the answers are late and
    right. It is an error where the stall lasts a second and its length is a client's choice (a blocking call
    on a connection to a client), and where the loop had not come back by the end, for three seconds or more.

References:
    epoll(7), poll(2), fcntl(2) O_NONBLOCK, wait(2) WNOHANG, pidfd_open(2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sockscope.analysis.session import Session
from sockscope.findings.event_loops import Absence, Stretch, absences, longest_stretch
from sockscope.findings.evidence import (
    NS_PER_MS,
    NS_PER_S,
    from_event,
    from_packet,
    from_proc,
    from_socket,
    kept,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.kept_waiting import Arrivals, Kept, belongs_to
from sockscope.model.calls import READS, WAITS, WRITES, Call
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="blocking-call-in-event-loop",
    severity=Severity.WARNING,
    summary="an event loop stays away from its wait in one slow call, and every other connection waits",
)

_STALL_NS = 300 * NS_PER_MS
_WITHOUT_CALL_NS = 500 * NS_PER_MS
_CLIENTS_CHOICE_NS = NS_PER_S
_GONE_NS = 3 * NS_PER_S
_LOOKED_AT = 200
"""Stalls judged, the longest first."""
_BUSY_SHARE = 0.5
_STOPPING = np.array([1, 2, 3, 15], np.uint64)  # SIGHUP, SIGINT, SIGQUIT, SIGTERM
_CHILD_WAITS = (Call.wait4, Call.waitid)


class _Kind(StrEnum):
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
class _Stall:
    """One absence that kept others waiting.

    Attributes:
        fd: the descriptor that the call was on; -1 for none.
        connection: the connection under it; -1.
        ongoing: it lasts to the session's end.
    """

    tgid: int
    absence: Absence
    stretch: Stretch
    kind: _Kind
    fd: int
    connection: int
    others: tuple[Kept, ...]
    ongoing: bool

    @property
    def call(self) -> int:
        """The longest call of the stretch; -1."""
        return int(self.stretch.calls[0]) if len(self.stretch.calls) else NO_ID


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and kind of call."""
    found = sorted(absences(session, _STALL_NS), key=lambda one: -one.lasted_ns)
    if not found:
        return
    if not session.info.packets.available and not session.info.sockets.snapshot_count:
        yield Skip(rule=RULE.slug, reason="neither packets nor socket states: whether others waited is not known")
        return
    arrivals = Arrivals(session)
    groups: defaultdict[tuple[str, _Kind], list[_Stall]] = defaultdict(list)
    for absence in found[:_LOOKED_AT]:
        stall = _judge(session, absence, arrivals)
        if stall is not None:
            groups[program(session, stall.tgid), stall.kind].append(stall)
    for stalls in groups.values():
        yield _finding(session, stalls)


def _judge(session: Session, absence: Absence, arrivals: Arrivals) -> _Stall | None:
    """The absence as a stall; None where it kept nobody waiting, or is excused."""
    tgid = int(session.events.records["tgid"][absence.wait])
    if _stopped(session, tgid, absence):
        return None
    stretch = longest_stretch(session, absence)
    kind, fd, connection = _kind_of(session, stretch)
    least = _WITHOUT_CALL_NS if kind is _Kind.NOTHING else _STALL_NS
    if stretch.spent_ns < least or (kind is _Kind.NOTHING and _starved(session, tgid, stretch)):
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
    return _Stall(
        tgid=tgid,
        absence=absence,
        stretch=stretch,
        kind=kind,
        fd=fd,
        connection=connection,
        others=tuple(others),
        ongoing=ongoing,
    )


def _stopped(session: Session, tgid: int, absence: Absence) -> bool:
    """Whether the process was stopped or told to stop by then, or went away instead of coming back."""
    records = session.events.records
    process = session.processes.get(tgid)
    if absence.back < 0 and process is not None and process.exited_ns is not None:
        return True
    own = session.events_of_tid(int(records["tid"][absence.wait]))
    if absence.back < 0 and int(records["call"][own[-1]]) in (Call.task_exit, Call.task_detach, Call.exit):
        return True
    events = session.events_of_tgid(tgid)
    calls = records["call"][events]
    told = events[
        ((calls == Call.task_signal) & np.isin(records["args"][events, 0], _STOPPING)) | (calls == Call.task_stop)
    ]
    return bool((session.effective_ns[told] < absence.ended_ns).any())


def _kind_of(session: Session, stretch: Stretch) -> tuple[_Kind, int, int]:
    """(kind, descriptor, connection) of what the stretch was spent in."""
    if not len(stretch.calls):
        return _Kind.NOTHING, NO_ID, NO_ID
    event = int(stretch.calls[0])
    call, descriptor = session.events.call(event), int(session.event_descriptor[event])
    fd = session.descriptors[descriptor].fd if descriptor >= 0 else NO_ID
    connection = int(session.event_connection[event])
    if call in _CHILD_WAITS:
        return _Kind.CHILD, NO_ID, NO_ID
    if call in WAITS:
        return _Kind.WAIT, NO_ID, NO_ID
    if call is Call.connect:
        return _Kind.CONNECT, fd, connection
    if call in (Call.accept, Call.accept4):
        return _Kind.ACCEPT, fd, NO_ID
    if call in WRITES:
        return _Kind.WRITE, fd, connection
    return (_Kind.READ if call in READS else _Kind.CALL), fd, connection


def _cpu_ns(session: Session, tgid: int, stretch: Stretch) -> tuple[int, int] | None:
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
    used = _cpu_ns(session, tgid, stretch)
    return used is not None and used[0] < _BUSY_SHARE * stretch.lasted_ns


def _severity(session: Session, stalls: list[_Stall]) -> Severity:
    for one in stalls:
        lasted = one.stretch.lasted_ns
        of_client = one.connection >= 0 and session.connections[one.connection].role is Role.SERVER
        if (of_client and lasted >= _CLIENTS_CHOICE_NS) or (one.ongoing and lasted >= _GONE_NS):
            return Severity.ERROR
    return Severity.WARNING


def _finding(session: Session, stalls: list[_Stall]) -> Finding:
    worst = max(stalls, key=lambda one: sum(other.waited_ns for other in one.others))
    connections = tuple(sorted({other.connection for one in stalls for other in one.others}))
    total = sum(one.stretch.lasted_ns for one in stalls)
    watched = max(1, session.info.ended_ns - session.info.started_ns)
    fds = {one.fd for one in stalls}
    longest = worst.others[0]
    accepting = sum(other.accepting for other in worst.others)
    to_accept = f" ({accepting} of them to be accepted)" if accepting else ""
    wait = session.events.call(worst.absence.wait).name
    lasted = span(worst.stretch.lasted_ns)
    still = "has not come back to it by the end of the session" if worst.ongoing else f"came back after {lasted}"
    again = f" In all {len(stalls)} such stalls, {span(total)} or {100 * total // watched} % of the time watched."
    return Finding(
        rule=RULE.slug,
        severity=_severity(session, stalls),
        confidence=Confidence.LIKELY if worst.kind is _Kind.NOTHING else Confidence.CERTAIN,
        title=f"an event loop stood still for {lasted} in {_name(session, worst)}: "
        f"{plural(len(worst.others), 'other connection')} waited",
        tgid=worst.tgid,
        comm=session.comm(worst.tgid),
        fd=worst.fd if len(fds) == 1 and worst.fd >= 0 else None,
        connections=connections,
        count=len(connections),
        worst=longest.connection,
        explanation=(
            f"{who(session, worst.tgid, worst.stretch.tid)} left {wait} at "
            f"{since_start(session, worst.absence.began_ns)} and {still}: {_did(session, worst)}. Meanwhile "
            f"{plural(len(worst.others), 'other connection')}{to_accept} waited, one of them for "
            f"{span(longest.waited_ns)}, and nobody else serves them.{again if len(stalls) > 1 else ''}"
        ),
        remedy=_remedy(worst, wait),
        evidence=kept(_evidence(session, worst)),
    )


def _name(session: Session, stall: _Stall) -> str:
    if stall.call < 0:
        return "a time without calls"
    name = session.events.call(stall.call).name
    return f"{name}({stall.fd})" if stall.fd >= 0 else name


def _did(session: Session, stall: _Stall) -> str:
    """What the thread did, as a clause."""
    if stall.call < 0:
        used = _cpu_ns(session, stall.tgid, stall.stretch)
        made = "it made no call that is seen: it computed, slept, or waited for a lock or a disk"
        if used is None:
            return made
        process = session.processes.get(stall.tgid)
        threads = f" (of {plural(len(process.tids), 'thread')})" if process and len(process.tids) > 1 else ""
        if used[0] >= _BUSY_SHARE * stall.stretch.lasted_ns:
            made = "it made no call that is seen: most likely it computed"
        return f"{made}; the process{threads} used {span(used[0])} of processor time in the {span(used[1])} around it"
    name, spent = session.events.call(stall.call).name, span(stall.stretch.spent_ns)
    if len(stall.stretch.calls) > 1:
        return f"it made {len(stall.stretch.calls)} calls on fd {stall.fd} ({name} first), which took {spent} in all"
    on = f"({stall.fd})" if stall.fd >= 0 else ""
    about = {
        _Kind.CHILD: ", waiting for a child to end",
        _Kind.WAIT: ", a wait of its own for something else",
        _Kind.ACCEPT: ", with nobody there to accept",
    }.get(stall.kind, "")
    if stall.connection >= 0:
        one = session.connections[stall.connection]
        role = "its client" if one.role is Role.SERVER else "the service"
        if one.protocol is Protocol.TCP and one.peer is not None:
            about = f", blocked on {role} {one.peer}"
        elif one.protocol is Protocol.UNIX:
            about = f", blocked on the other end of a unix {'socket pair' if _is_pair(session, one) else 'socket'}"
    return f"it was in {name}{on} for {spent}{about}"


def _is_pair(session: Session, connection: Connection) -> bool:
    return connection.open_file >= 0 and session.open_files[connection.open_file].pair >= 0


def _remedy(stall: _Stall, wait: str) -> str:
    elsewhere = f"give that work to a thread or a process, which wakes {wait} by a pipe or an eventfd when it is done"
    fd = f"fd {stall.fd}" if stall.fd >= 0 else "the descriptor"
    return {
        _Kind.CONNECT: f"Set O_NONBLOCK on {fd} before connect, wait with the others for it to be writable, and ask "
        f"for SO_ERROR then; or {elsewhere}.",
        _Kind.CHILD: "Do not wait for children in the loop: register a pidfd (pidfd_open) or a signalfd for SIGCHLD, "
        "and call waitpid with WNOHANG when it is ready.",
        _Kind.ACCEPT: f"Make the listener ({fd}) non-blocking: a connection that was ready may be gone.",
        _Kind.WRITE: f"Make {fd} non-blocking, and send the rest when {wait} says that it can be written; "
        f"or {elsewhere}.",
        _Kind.READ: f"Make {fd} non-blocking, register it with {wait} as the others are, and go on when it is ready; "
        f"or {elsewhere}.",
        _Kind.WAIT: f"Register what it waits for there with the loop's own {wait}; or {elsewhere}.",
        _Kind.CALL: f"Keep that call out of the loop: {elsewhere}.",
        _Kind.NOTHING: f"Keep long work and sleeps out of the loop: {elsewhere}; a profiler (perf, py-spy) says where "
        "the time goes.",
    }[stall.kind]


def _evidence(session: Session, stall: _Stall) -> Iterator[Evidence]:
    stretch = stall.stretch
    if stall.call >= 0:
        yield from_event(session, stall.call, f"holds the loop up for {span(stretch.spent_ns)}")
    else:
        yield from_proc(
            stretch.began_ns, f"{who(session, stall.tgid, stretch.tid)}: no call for {span(stretch.lasted_ns)}"
        )
    yield from_event(session, stall.absence.wait, "the loop's last wait before")
    for other in stall.others[:2]:
        if other.packet >= 0:
            yield from_packet(session, other.packet, f"comes meanwhile, and waits {span(other.waited_ns)}")
        elif other.socket >= 0:
            yield from_socket(session, other.socket, "unread meanwhile")
        if other.dealt >= 0:
            yield from_event(session, other.dealt, "taken up only now")
    if stall.absence.back >= 0:
        yield from_event(session, stall.absence.back, "the loop is back")
