"""One side does not read what it is sent, and its window is closed.

What it reports:
    Connections on which one side advertised a zero window for a second and more in all: the receive buffer is full
    because the program there does not read. Where it is the peer, what it costs the target: a thread blocked in
    send, bytes in the send queue. Where it is the target, which connection it does not read, and what it does instead.

Why it matters:
    A peer that does not read is normal (a slow link, a paused download, a busy client), and nothing but info where
    only its own connection waits. It is a warning where the thread that serves everybody is blocked in send for
    a second: one client stops all the others, by malice too. Where the target itself does not read, its clients'
    sends block; a warning where it had the time, for two seconds and more: it waited for other things.
    Certain where packets show the window, likely where only snapshots show the probes.

Evidence:
    Packets with window 0 and the one that opens it again (or snapshots that show the zero window probe's timer), the
    send that blocked and for how long, the send queue in snapshots.

Example:
    `sendto(7, …, 2097152)` takes 1.8 s, while the client's window is 0, and 1 other connection waits for the thread.

Mend:
    Send without blocking (O_NONBLOCK, MSG_DONTWAIT), keep what is left, and wait for EPOLLOUT; give a client that takes
    nothing a time limit (SO_SNDTIMEO, TCP_USER_TIMEOUT, a timer of your own) and a limit to what is kept for it.

False positives:
    Windows close for moments in health: less than a second in all is not told. Where other processes accept from
    the same listener, or other threads serve the other connections, a blocked send holds up nobody else, and is
    info. A target that does not read because the one it passes the bytes on to does not either (a proxy) does
    right: info. What lasts longer than the program's own descriptor is not counted.

References:
    RFC 9293 section 3.8.6 (managing the window, probes); tcp(7) TCP_USER_TIMEOUT; send(2) EAGAIN;
    net/ipv4/tcp_timer.c tcp_probe_timer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import doing_at
from sockscope.findings.shared.blocked_sends import Blocked, BlockedSends
from sockscope.findings.shared.evidence import (
    NS_PER_S,
    from_event,
    from_packet,
    from_socket,
    kept,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.zero_windows import (
    Closure,
    cut_at,
    in_snapshots,
    on_the_wire,
    probing_connections,
)
from sockscope.model.calls import READS, WAITS, WRITES
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="slow-reader",
    severity=Severity.WARNING,
    summary="one side does not read and its window is closed: sends block",
    yields_to=frozenset({"edge-triggered-read-not-drained"}),
    follows=frozenset({"blocking-call-in-event-loop"}),
    bears_loss=True,
)

_CLOSED_NS = NS_PER_S
_OWN_NS = 2 * NS_PER_S
_BLOCKED_NS = NS_PER_S
_EAGAIN = 11

_READS = np.array(sorted(READS), np.uint16)
_WRITES = np.array(sorted(WRITES), np.uint16)
_WAITING = frozenset(WAITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slow:
    """One connection with a window that stayed closed.

    Attributes:
        ours: the target does not read; else the peer.
        closures: the longest first. total_ns: all of them.
        tgid, fd: the target's process and descriptor.
        refused: sends that returned EAGAIN. queued_bytes: the most that snapshots show in the queue (send queue where
            the peer does not read, receive queue where the target does not).
        doing: the call in which the reading thread was in the middle of it; -1 where unknown.
    """

    connection: Connection
    ours: bool
    closures: tuple[Closure, ...]
    total_ns: int
    tgid: int
    fd: int
    severity: Severity
    blocked: Blocked | None = None
    refused: int = 0
    queued_bytes: int = 0
    queued_row: int = NO_ID
    doing: int = NO_ID


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program, direction and severity."""
    if not session.info.packets.available and not session.info.sockets.snapshot_count:
        yield Skip(rule=RULE.slug, reason="neither packets nor socket snapshots show windows")
        return
    judge = _Judge(session)
    groups: defaultdict[tuple[str, bool, Severity], list[_Slow]] = defaultdict(list)
    for slow in judge.every():
        if slow.connection.id not in explained:
            groups[program(session, slow.tgid), slow.ours, slow.severity].append(slow)
    for found in groups.values():
        found.sort(key=lambda one: (-(one.blocked.ns if one.blocked else 0), -one.total_ns))
        yield _finding_of_target(session, found) if found[0].ours else _finding_of_peer(session, found)


class _Judge:
    """Finds the closed windows of one session; it must not change meanwhile."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._wire = on_the_wire(session)
        self._blocked = BlockedSends(session)

    def every(self) -> Iterator[_Slow]:
        if not self._wire and not len(probing_connections(self._session)):
            return
        probing = set(probing_connections(self._session).tolist())
        for connection in self._session.connections:
            if connection.protocol is not Protocol.TCP or connection.open_file < 0:
                continue
            if connection.flow >= 0 and self._session.info.packets.whole:
                closures = self._wire.get((connection.flow, 1 - connection.local_side), [])
                own = self._wire.get((connection.flow, connection.local_side), [])
            else:
                closures = in_snapshots(self._session, connection) if connection.id in probing else []
                own = []
            if closures and (slow := self._peer(connection, closures)) is not None:
                yield slow
            if own and connection.role is Role.SERVER and (slow := self._target(connection, own)) is not None:
                yield slow

    def _closed(self, connection: Connection, closures: list[Closure], least_ns: int) -> tuple[Closure, ...]:
        """The closures while the program had the connection, longest first; none where they are short in all."""
        released = self._session.open_files[connection.open_file].released_ns
        left = cut_at(closures, self._session.info.ended_ns if released is None else released)
        if sum(one.length_ns for one in left) < least_ns:
            return ()
        return tuple(sorted(left, key=lambda one: -one.length_ns))

    def _peer(self, connection: Connection, closures: list[Closure]) -> _Slow | None:
        session = self._session
        closed = self._closed(connection, closures, _CLOSED_NS)
        if not closed:
            return None
        events = session.events_of(connection.id)
        writes = events[np.isin(session.events.records["call"][events], _WRITES)]
        rows = session.events.records[writes]
        since, until = min(one.since_ns for one in closed), max(one.until_ns for one in closed)
        blocked = self._blocked.of(connection, writes, since, until)
        held_up = blocked is not None and blocked.ns >= _BLOCKED_NS and blocked.alone
        samples = session.samples_of(connection.id)
        queues = session.sockets.records["send_q"][samples]
        tgid, fd = self._holder(connection, writes)
        return _Slow(
            connection=connection,
            ours=False,
            closures=closed,
            total_ns=sum(one.length_ns for one in closed),
            tgid=tgid,
            fd=fd,
            severity=Severity.WARNING if held_up else Severity.INFO,
            blocked=blocked,
            refused=int((rows["ret"] == -_EAGAIN).sum()),
            queued_bytes=int(queues.max(initial=0)),
            queued_row=int(samples[int(np.argmax(queues))]) if len(samples) else NO_ID,
        )

    def _holder(self, connection: Connection, events: Ids) -> tuple[int, int]:
        """(process, descriptor) that used the connection last, by these events; else the first that had it."""
        session = self._session
        if len(events):
            row = session.events.records[events[-1]]
            return int(row["tgid"]), int(row["args"][0])
        one = session.descriptors[session.open_files[connection.open_file].descriptors[0]]
        return session.tgid_of_table(one.table), one.fd

    def _target(self, connection: Connection, closures: list[Closure]) -> _Slow | None:
        session = self._session
        closed = self._closed(connection, closures, _CLOSED_NS)
        if not closed:
            return None
        events = session.events_of(connection.id)
        reads = events[np.isin(session.events.records["call"][events], _READS)]
        tgid, fd = self._holder(connection, reads)
        worst = closed[0]
        used = reads if len(reads) else events
        doing, blocked = NO_ID, False
        if len(used):
            tid = int(session.events.records["tid"][used[-1]])
            doing, blocked = doing_at(session, tid, worst.since_ns + worst.length_ns // 2)
        idle = blocked and doing >= 0 and session.events.call(doing) in _WAITING
        passing_on = any(
            one.flow >= 0
            and one.id != connection.id
            and any(
                other.since_ns < worst.until_ns and other.until_ns > worst.since_ns
                for other in self._wire.get((one.flow, 1 - one.local_side), ())
            )
            for one in session.connections
        )
        total = sum(one.length_ns for one in closed)
        samples = session.samples_of(connection.id)
        queues = session.sockets.records["recv_q"][samples]
        return _Slow(
            connection=connection,
            ours=True,
            closures=closed,
            total_ns=total,
            tgid=tgid,
            fd=fd,
            severity=Severity.WARNING if idle and not passing_on and total >= _OWN_NS else Severity.INFO,
            queued_bytes=int(queues.max(initial=0)),
            queued_row=int(samples[int(np.argmax(queues))]) if len(samples) else NO_ID,
            doing=doing,
        )


def _confidence(found: list[_Slow]) -> Confidence:
    return Confidence.LIKELY if found[0].closures[0].sampled else Confidence.CERTAIN


def _finding_of_peer(session: Session, found: list[_Slow]) -> Finding:
    worst = found[0]
    blocked, first = worst.blocked, min(one.since_ns for slow in found for one in slow.closures)
    count = len(found)
    clients = plural(count, "client") if worst.connection.role is Role.SERVER else plural(count, "peer")
    explanation = (
        f"{clients} of {who(session, worst.tgid)} did not read: the window was closed for {span(worst.total_ns)} in "
        f"the worst case (fd {worst.fd}; first at {since_start(session, first)})."
    )
    if worst.queued_bytes:
        explanation += f" Up to {worst.queued_bytes} bytes lay in its send queue."
    if worst.refused:
        explanation += f" {plural(worst.refused, 'send')} on it found no room (EAGAIN)."
    title = f"{clients} did not read for {span(worst.total_ns)}"
    remedy = (
        "Nothing is wrong where only these clients wait. Give what is kept for them a limit, and a client that takes "
        "nothing a time limit (TCP_USER_TIMEOUT, SO_SNDTIMEO or a timer)."
    )
    if blocked is not None:
        call = session.events.call(blocked.event).name
        explanation += (
            f" Thread {blocked.tid} hung in {call} on fd {worst.fd} for {span(blocked.ns)} (from "
            f"{since_start(session, _begun(session, blocked.event))})"
        )
        if worst.severity is Severity.WARNING:
            title += f", and the only thread that serves hung in {call}"
            rest = plural(blocked.others, "other connection")
            explanation += f", and it is the only one that serves: {rest}, and whoever comes, had to wait."
            remedy = (
                f"Make fd {worst.fd} non-blocking, keep what {call} did not take, and go on when epoll (poll, select) "
                "says there is room; end a client that takes nothing for some seconds (a timer, TCP_USER_TIMEOUT)."
            )
        else:
            explanation += ": nobody else waits for it."
    return _made(session, found, title, explanation, remedy, _peer_evidence(session, worst))


def _begun(session: Session, event: int) -> int:
    return max(int(session.events.records["enter_ns"][event]), session.info.started_ns)


def _finding_of_target(session: Session, found: list[_Slow]) -> Finding:
    worst = found[0]
    first = min(one.since_ns for slow in found for one in slow.closures)
    doing = ""
    if worst.doing >= 0:
        doing = f" Meanwhile the thread that reads it was in {session.events.call(worst.doing).name}."
    waiting = f", with {worst.queued_bytes} bytes unread in its queue" if worst.queued_bytes else ""
    return _made(
        session,
        found,
        f"{plural(len(found), 'connection')} not read by the server for {span(worst.total_ns)}: its window was closed",
        f"{who(session, worst.tgid)} did not read from {plural(len(found), 'client')} that had more to send: it closed "
        f"its own window for {span(worst.total_ns)} in the worst case (fd {worst.fd}; first at "
        f"{since_start(session, first)}){waiting}.{doing}",
        f"Read fd {worst.fd} while there is something to read: keep it in the set that is waited on, and do not wait "
        "elsewhere in the thread that reads it. Where it must not read more for now, this is as it should be.",
        _target_evidence(session, worst),
    )


def _made(
    session: Session, found: list[_Slow], title: str, explanation: str, remedy: str, evidence: Iterator[Evidence]
) -> Finding:
    worst = found[0]
    return Finding(
        rule=RULE.slug,
        severity=worst.severity,
        confidence=_confidence(found),
        title=title,
        tgid=worst.tgid,
        comm=session.comm(worst.tgid),
        fd=worst.fd,
        connections=tuple(sorted(one.connection.id for one in found)),
        count=len(found),
        worst=worst.connection.id,
        explanation=explanation,
        remedy=remedy,
        evidence=kept(evidence),
    )


def _closure_evidence(session: Session, closure: Closure, whose: str) -> Iterator[Evidence]:
    if closure.sampled:
        yield from_socket(session, closure.row, f"it probes {whose} closed window")
        yield from_socket(session, closure.last_row, f"and still, {span(closure.length_ns)} later")
        return
    yield from_packet(session, closure.row, f"window 0: {whose} buffer is full")
    if closure.last_row != closure.row:
        yield from_packet(session, closure.last_row, "window 0 still, in answer to a probe")
    if closure.opened_row >= 0:
        yield from_packet(session, closure.opened_row, f"room again, after {span(closure.length_ns)}")


def _peer_evidence(session: Session, worst: _Slow) -> Iterator[Evidence]:
    if worst.blocked is not None:
        yield from_event(session, worst.blocked.event, f"hung for {span(worst.blocked.ns)} in all")
    yield from _closure_evidence(session, worst.closures[0], "the peer's")
    if worst.queued_bytes:
        yield from_socket(session, worst.queued_row, f"{worst.queued_bytes} bytes wait")


def _target_evidence(session: Session, worst: _Slow) -> Iterator[Evidence]:
    yield from _closure_evidence(session, worst.closures[0], "the target's")
    if worst.doing >= 0:
        yield from_event(session, worst.doing, "what its reader did meanwhile")
    if worst.queued_bytes:
        yield from_socket(session, worst.queued_row, f"{worst.queued_bytes} bytes unread")
