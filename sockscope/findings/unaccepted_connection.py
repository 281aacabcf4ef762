"""Connections wait in the accept queue and no process takes them.

What it reports:
    Established (or already half-closed) connections to a port of the target that no process owns:
    the kernel completed their handshake, and the program has not called accept for them, for a second
    and more.

Why it matters:
    The client is connected and may have sent its request; it sees a server that does not answer. When
    the queue is full, new clients cannot even connect. Those that give up stay as CLOSE_WAIT sockets
    without an owner, which `lsof` does not show and no process can close.

Evidence:
    The sockets in several snapshots (inode 0), the listener's queue against its backlog, the last
    accept, and what the accepting thread does instead.

Example:
    Five ESTABLISHED sockets of port 8080 with inode 0, while the only thread is in
    `recvfrom(4 <unfinished ...>`, reading from a client that stays silent.

Mend:
    Accept independently of the serving: an event loop, a thread or process a connection; or time
    limits on the connection being served, so that an idle client cannot keep the others out.

False positives:
    A queue is briefly filled in health. Each connection must have been there for a second, from its
    handshake or the first snapshot that shows it to the last one. It is an error where the accepting
    thread waits: for a silent client, or for events while the listener's are left alone. Where it went
    on accepting meanwhile, or is at work (on the CPU, or waiting for another service), it may merely be
    slower than its clients come: info for 3 s, then a warning, an error after 10 s without an accept.

References:
    listen(2) (backlog), accept(2); sock_diag(7) (inode 0); net/ipv4/inet_connection_sock.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sockscope.analysis.session import Session
from sockscope.findings.shared.accept_queue import Queue, accepts_of, doing_at, held_at, queues
from sockscope.findings.shared.evidence import (
    NS_PER_S,
    from_event,
    from_socket,
    kept,
    plural,
    since_start,
    span,
    who,
)
from sockscope.model.calls import FD_IN_ARG0, READS, WAITS, WRITES, Call, CallGroup
from sockscope.model.connections import Role
from sockscope.model.findings import Confidence, Evidence, Finding, Need, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpState

RULE = Rule(
    slug="unaccepted-connection",
    severity=Severity.ERROR,
    summary="connections wait in the accept queue, owned by no process",
    needs=frozenset({Need.SOCKETS}),
    yields_to=frozenset(
        {
            "edge-triggered-listener-not-drained",
            "descriptor-exhaustion",
            "inherited-listener",
            "blocking-call-in-event-loop",
        }
    ),
    groups=frozenset(),
    bears_loss=True,
)

_NO_INODES = (
    "the socket listings have no inodes, so what waits for accept cannot be told from what is held: use ss -tanpe"
)
_SLOW_NS = 3 * NS_PER_S
_SURELY_STUCK_NS = 10 * NS_PER_S
_MOVES = READS | WRITES
_AWAITS = WAITS | {Call.accept, Call.accept4}


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a port."""
    if not session.info.sockets.has_inodes and not any(one.never_accepted for one in session.connections):
        yield Skip(rule=RULE.slug, reason=_NO_INODES)
        return
    for queue in queues(session):
        if any(one.connection.id not in explained for one in queue.waiting):
            yield _finding(session, queue, explained)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Acceptor:
    """Who should accept there, and what that thread does instead.

    Attributes:
        accept: the last one it made; -1 for none in this session.
        doing: its last call; -1 for none.
        blocked: still in it at the end.
        idle: what it waits for is a client or an event, not work of its own.
    """

    tgid: int
    tid: int
    fd: int
    accept: int = NO_ID
    doing: int = NO_ID
    blocked: bool = False
    idle: bool = False


def _acceptor(session: Session, queue: Queue) -> _Acceptor:
    """The thread that accepted last; where none did, a process with the listener, a busy one before others."""
    accepts = [int(a[-1]) for listener in queue.listeners if len(a := accepts_of(session, listener))]
    if accepts:
        last = max(accepts, key=lambda event: int(session.effective_ns[event]))
        row = session.events.records[last]
        doing, blocked = doing_at(session, int(row["tid"]), queue.until_ns)
        return _Acceptor(
            tgid=int(row["tgid"]),
            tid=int(row["tid"]),
            fd=int(row["args"][0]),
            accept=last,
            doing=doing,
            blocked=blocked,
            idle=_idle(session, doing, blocked),
        )
    found = []
    for held in (d for listener in queue.listeners for d in held_at(session, listener.id, queue.until_ns)):
        tgid = session.tgid_of_table(held.table)
        doing, blocked = doing_at(session, tgid, queue.until_ns)
        idle = _idle(session, doing, blocked)
        found.append(_Acceptor(tgid=tgid, tid=tgid, fd=held.fd, doing=doing, blocked=blocked, idle=idle))
    return min(found, key=lambda one: one.idle, default=_holder(session, queue))


def _holder(session: Session, queue: Queue) -> _Acceptor:
    """Who holds the listener, as the snapshots alone tell it."""
    owners = session.sockets.owners
    mine = owners[owners["inode"] == session.sockets.records["inode"][queue.row]]
    tgid, fd = (int(mine["tgid"][0]), int(mine["fd"][0])) if len(mine) else (NO_ID, NO_ID)
    return _Acceptor(tgid=tgid, tid=tgid, fd=fd)


def _idle(session: Session, doing: int, blocked: bool) -> bool:
    """Whether a thread waits for events or for one of its clients; waiting for a database is work."""
    if not blocked:
        return False
    call = session.events.call(doing)
    if call in _AWAITS:
        return True
    connection = int(session.event_connection[doing])
    return call in _MOVES and connection >= 0 and session.connections[connection].role is Role.SERVER


def _accepted_since(session: Session, queue: Queue) -> int:
    count = 0
    for listener in queue.listeners:
        accepts = accepts_of(session, listener)
        took = session.events.records["ret"][accepts] >= 0
        count += int((took & (session.effective_ns[accepts] > queue.since_ns)).sum())
    return count


def _finding(session: Session, queue: Queue, explained: frozenset[int]) -> Finding:
    waiting = [one for one in queue.waiting if one.connection.id not in explained]
    worst = waiting[0]
    count = len(waiting)
    acceptor = _acceptor(session, queue)
    tgid, tid, fd = acceptor.tgid, acceptor.tid, acceptor.fd
    last_accept, doing, blocked = acceptor.accept, acceptor.doing, acceptor.blocked
    taken = _accepted_since(session, queue)
    timed = session.info.sockets.times_known
    certain_harm = timed and taken == 0 and (acceptor.idle or worst.waited_ns >= _SURELY_STUCK_NS)
    mild = Severity.INFO if worst.waited_ns < _SLOW_NS else Severity.WARNING
    gone = sum(1 for one in waiting if one.connection.state is TcpState.CLOSE_WAIT)
    shown = session.sockets.records[queue.row]
    backlog = f", its backlog is {shown['send_q']}" if session.info.sockets.has_limits else ""
    full = f" The listener's queue holds {shown['recv_q']}{backlog}."
    left = f" {gone} of their clients gave up already (CLOSE_WAIT)." if gone else ""
    if taken:
        meanwhile = (
            f"Meanwhile {plural(taken, 'other connection')} were accepted: the program is slower than they come."
        )
    elif last_accept >= 0:
        when = int(session.effective_ns[last_accept])
        meanwhile = f"{who(session, tgid, tid)} last called accept at {since_start(session, when)}"
    else:
        calls = session.info.syscalls
        if tgid < 0 or not calls.engine:
            meanwhile = "No syscalls were recorded"
        elif CallGroup.NETWORK in calls.missing_groups:
            meanwhile = "The log was filtered of accept calls"
        else:
            meanwhile = "No process called accept on it in this session"
    if not timed:
        meanwhile += "; the times of the socket listings are guessed, and so is how long it lasted"
    if not taken and doing >= 0:
        call = session.events.call(doing).name
        began = int(session.events.records["enter_ns"][doing])
        held = f" for {span(queue.until_ns - began)}" if blocked and began >= 0 else ""
        verb = "has been" if blocked else "was last"
        on = int(session.events.records["args"][doing][0]) if session.events.call(doing) in FD_IN_ARG0 else -1
        meanwhile += f"; its thread {verb} in {call}{f'({on})' if 0 <= on < 1 << 31 else ''}{held}"
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR if certain_harm else mild,
        confidence=Confidence.CERTAIN if certain_harm else Confidence.LIKELY if timed else Confidence.POSSIBLE,
        title=f"{plural(count, 'connection')} to port {queue.port} not accepted for {span(worst.waited_ns)}",
        tgid=tgid,
        comm=session.comm(tgid) if tgid >= 0 else "?",
        fd=fd if fd >= 0 else None,
        connections=tuple(one.connection.id for one in waiting),
        count=count,
        worst=worst.connection.id,
        explanation=(
            f"{plural(count, 'connection')} to port {queue.port} "
            f"{'waits in the accept queue,' if count == 1 else 'wait in the accept queue, the oldest'} since "
            f"{since_start(session, worst.since_ns)}; no process owns them.{full}{left} {meanwhile.rstrip('.')}."
        ),
        remedy=_remedy(taken, acceptor.idle, fd),
        evidence=kept(_evidence(session, queue, waiting[0].rows[[0, -1]].tolist(), last_accept, doing)),
    )


def _remedy(taken: int, idle: bool, fd: int) -> str:
    listener = f"fd {fd}" if fd >= 0 else "the listener"
    if taken:
        return f"Give {listener} more workers (or threads), or shorten the time for which one request keeps a worker."
    if idle:
        return (
            f"Serve connections in threads, processes or an event loop, so that accept is called on {listener} while "
            "one of them is silent; and give each read a time limit."
        )
    return f"Come back to accept on {listener}: do long work outside the thread that accepts."


def _evidence(session: Session, queue: Queue, rows: list[int], last_accept: int, doing: int) -> Iterator[Evidence]:
    yield from_socket(session, rows[-1], "no process owns it")
    yield from_socket(session, rows[0], "in the accept queue")
    if last_accept >= 0:
        yield from_event(session, last_accept, "the last accept")
    if doing >= 0 and doing != last_accept:
        yield from_event(session, doing, "what the accepting thread does instead")
    shown = session.sockets.records[queue.row]
    backlog = f", backlog {shown['send_q']}" if session.info.sockets.has_limits else ""
    yield from_socket(session, queue.row, f"{shown['recv_q']} waiting{backlog}")
