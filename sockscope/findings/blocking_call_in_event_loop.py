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
    A loop that is merely away harms nobody: another connection must have waited for 200 ms or more,
    something must have come during the stall itself (a machine that stood still receives nothing), and the
    loop's own thread must have taken it up right after. One call must take 300 ms, or the calls on one
    descriptor most of that, and be such as can wait (not on a non-blocking descriptor: there the thread had no
    CPU); a time without calls 500 ms. Nothing is said of the latter where a sample of /proc shows the thread
    runnable with little processor time used, or where other threads of the process serve clients meanwhile
    (the loop waits for a free one). Many short turns under load are no stall. What comes after a signal to
    stop is left alone.

    The severity is a warning: the answers are late and right. A single time without calls of less than a second,
    such as a garbage collection, is information. It is an error where the stall lasts a second and its length is
    a client's choice (a blocking call on a connection to a client), and where the loop had not come back by
    the end, for three seconds or more.

References:
    epoll(7), poll(2), fcntl(2) O_NONBLOCK, wait(2) WNOHANG, pidfd_open(2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sockscope.analysis.session import Session
from sockscope.findings.shared.event_loops import absences
from sockscope.findings.shared.evidence import (
    NS_PER_S,
    from_event,
    from_packet,
    from_proc,
    from_socket,
    kept,
    listed,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.readiness import Names, Ready, asked_of
from sockscope.findings.shared.stalls import BUSY_SHARE, STALL_NS, Kind, Stall, Stalls, cpu_ns
from sockscope.model.calls import EPOLL_WAITS, USUAL_GROUPS, CallGroup
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

RULE = Rule(
    slug="blocking-call-in-event-loop",
    severity=Severity.WARNING,
    summary="an event loop stays away from its wait in one slow call, and every other connection waits",
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_CLIENTS_CHOICE_NS = NS_PER_S
_ONCE_NS = NS_PER_S
_GONE_NS = 3 * NS_PER_S
_LOOKED_AT = 200
"""Stalls judged, the longest first."""
_DNS = 53


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and kind of call."""
    found = sorted(absences(session, STALL_NS), key=lambda one: -one.lasted_ns)
    if not found:
        return
    if not session.info.packets.available and not session.info.sockets.snapshot_count:
        yield Skip(rule=RULE.slug, reason="neither packets nor socket states: whether others waited is not known")
        return
    stalls = Stalls(session)
    groups: defaultdict[tuple[str, Kind], list[Stall]] = defaultdict(list)
    for absence in found[:_LOOKED_AT]:
        stall = stalls.judge(absence)
        if stall is not None:
            groups[program(session, stall.tgid), stall.kind].append(stall)
    for group in groups.values():
        yield _finding(session, group)


def _severity(session: Session, stalls: list[Stall]) -> Severity:
    for one in stalls:
        lasted = one.stretch.lasted_ns
        of_client = one.connection >= 0 and session.connections[one.connection].role is Role.SERVER
        if (of_client and lasted >= _CLIENTS_CHOICE_NS) or (one.ongoing and lasted >= _GONE_NS):
            return Severity.ERROR
    once = len(stalls) == 1 and stalls[0].kind is Kind.NOTHING and stalls[0].stretch.lasted_ns < _ONCE_NS
    return Severity.INFO if once else Severity.WARNING


def _finding(session: Session, stalls: list[Stall]) -> Finding:
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
    again = f" In all {len(stalls)} such stalls, {span(total)} or {100 * total // watched}% of the time watched."
    return Finding(
        rule=RULE.slug,
        severity=_severity(session, stalls),
        confidence=Confidence.LIKELY if worst.kind is Kind.NOTHING else Confidence.CERTAIN,
        title=f"event loop stood still for {lasted} in {_name(session, worst)}: "
        f"{plural(len(worst.others), 'other')} waited",
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
        remedy=_remedy(session, worst, wait),
        evidence=kept(_evidence(session, worst)),
    )


def _name(session: Session, stall: Stall) -> str:
    if stall.call < 0:
        return "no call seen"
    name = session.events.call(stall.call).name
    return f"{name}({stall.fd})" if stall.fd >= 0 else name


def _did(session: Session, stall: Stall) -> str:
    """What the thread did, as a clause."""
    if stall.call < 0:
        used = cpu_ns(session, stall.tgid, stall.stretch)
        made = "it made no call that is seen: it computed, slept, or waited for a lock or a disk"
        if used is None:
            return made
        process = session.processes.get(stall.tgid)
        threads = f" (of {plural(len(process.tids), 'thread')})" if process and len(process.tids) > 1 else ""
        if used[0] >= BUSY_SHARE * stall.stretch.lasted_ns:
            made = "it made no call that is seen: most likely it computed"
        return f"{made}; the process{threads} used {span(used[0])} of processor time in the {span(used[1])} around it"
    name, spent = session.events.call(stall.call).name, span(stall.stretch.spent_ns)
    if len(stall.stretch.calls) > 1:
        return f"it made {len(stall.stretch.calls)} calls on fd {stall.fd} ({name} first), which took {spent} in all"
    on = f"({stall.fd})" if stall.fd >= 0 else ""
    about = {
        Kind.CHILD: ", waiting for a child to end",
        Kind.WAIT: _awaited(session, stall),
        Kind.ACCEPT: ", with nobody there to accept",
    }.get(stall.kind, "")
    if stall.connection >= 0:
        one = session.connections[stall.connection]
        role = "its client" if one.role is Role.SERVER else "the service"
        if one.protocol is Protocol.TCP and one.peer is not None:
            about = f", blocked on {role} {one.peer}"
        elif one.protocol is Protocol.UNIX:
            about = f", blocked on the other end of a unix {'socket pair' if _is_pair(session, one) else 'socket'}"
    return f"it was in {name}{on} for {spent}{about}"


def _awaited(session: Session, stall: Stall) -> str:
    """What a wait of the loop's own is for: `, a wait of its own for fd 9 (10.0.0.2:53, a name lookup)`."""
    if session.events.call(stall.call) in EPOLL_WAITS:
        return ", a wait of its own on another epoll instance"
    names, told = Names(session), []
    for fd in sorted(asked_of(session, stall.call) or ()):
        file, _ = names.of(stall.call, Ready(fd, 0))
        peer = session.open_files[file].peer if file >= 0 else None
        lookup = ", a name lookup" if peer is not None and peer.port == _DNS else ""
        told.append(f"fd {fd} ({peer}{lookup})" if peer is not None else f"fd {fd}")
    return f", a wait of its own for {listed(told)}" if told else ", a wait of its own"


def _is_file(session: Session, stall: Stall) -> bool:
    """Whether the call was on something that is no socket, pipe or the like, as far as is known."""
    file = int(session.event_open_file[stall.call]) if stall.call >= 0 else NO_ID
    return file >= 0 and session.open_files[file].kind == FileKind.OTHER


def _is_pair(session: Session, connection: Connection) -> bool:
    return connection.open_file >= 0 and session.open_files[connection.open_file].pair >= 0


def _remedy(session: Session, stall: Stall, wait: str) -> str:
    elsewhere = f"give that work to a thread or a process, which wakes {wait} by a pipe or an eventfd when it is done"
    fd = f"fd {stall.fd}" if stall.fd >= 0 else "the descriptor"
    if stall.kind in (Kind.READ, Kind.WRITE) and _is_file(session, stall):
        return f"{fd[0].upper()}{fd[1:]} is no socket: if it is a file, O_NONBLOCK changes nothing; {elsewhere}."
    return {
        Kind.CONNECT: f"Set O_NONBLOCK on {fd} before connect, wait with the others for it to be writable, and ask "
        f"for SO_ERROR then; or {elsewhere}.",
        Kind.CHILD: "Do not wait for children in the loop: register a pidfd (pidfd_open) or a signalfd for SIGCHLD, "
        "and call waitpid with WNOHANG when it is ready.",
        Kind.ACCEPT: f"Make the listener ({fd}) non-blocking: a connection that was ready may be gone.",
        Kind.WRITE: f"Make {fd} non-blocking, and send the rest when {wait} says that it can be written; "
        f"or {elsewhere}.",
        Kind.READ: f"Make {fd} non-blocking, register it with {wait} as the others are, and go on when it is ready; "
        f"or {elsewhere}.",
        Kind.WAIT: f"Register what it waits for there with the loop's own {wait}; or {elsewhere}.",
        Kind.CALL: f"Keep that call out of the loop: {elsewhere}.",
        Kind.NOTHING: f"Keep long work and sleeps out of the loop: {elsewhere}; a profiler (perf, py-spy) says where "
        "the time goes.",
    }[stall.kind]


def _evidence(session: Session, stall: Stall) -> Iterator[Evidence]:
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
