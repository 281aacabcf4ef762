"""An edge-triggered listener is not accepted from until EAGAIN.

What it reports:
    A listening socket registered with EPOLLET from which the program takes one connection (or a
    fixed number) a wake-up. Of connections that arrive together it takes one; the others stay in the
    accept queue, owned by no process, until another client happens to connect.

Why it matters:
    EPOLLET reports a change, not a state: with connections left in the queue epoll_wait does not
    return for them again. Those clients are connected, may have sent their request, and are never
    answered. When they give up they become CLOSE_WAIT sockets without an owner, which no process
    can close: only accept can take them out.

Evidence:
    The waiting sockets in several snapshots (inode 0), the interest with EPOLLET (from epoll_ctl, or
    from /proc/PID/fdinfo where it was registered before the attach), accepts of which none returned
    EAGAIN, and the thread back in epoll_wait.

Example:
    `epoll_ctl(4, EPOLL_CTL_ADD, 3, {EPOLLIN|EPOLLET})`, `epoll_wait(4) = 1`, `accept4(3) = 7`,
    `epoll_wait(4 <unfinished ...>` while four connections wait.

Mend:
    Call accept4 in a loop until it fails with EAGAIN (the listener must be non-blocking), or register
    the listener without EPOLLET: level-triggered epoll reports it again while connections wait.

False positives:
    Connections must have waited for a second, up to the last snapshot. An accept
    that returned EAGAIN after they came proves the queue was emptied, and nothing is reported. A
    thread that does not come back to epoll_wait may yet accept, or is stuck elsewhere:
    blocking-call-in-event-loop or unaccepted-connection says so. With EPOLLONESHOT each renewal of the registration
    reports what waits, so that nothing is lost by the edge.

References:
    epoll(7) "Level-triggered and edge-triggered", and Q9; accept(2) EAGAIN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import Queue, accepts_of, held_at, queues
from sockscope.findings.shared.evidence import (
    from_event,
    from_proc,
    from_socket,
    kept,
    plural,
    since_start,
    span,
    who,
)
from sockscope.model.calls import USUAL_GROUPS, CallGroup
from sockscope.model.descriptors import EpollInterest, OpenFile
from sockscope.model.findings import Confidence, Evidence, Finding, Need, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpState

RULE = Rule(
    slug="edge-triggered-listener-not-drained",
    severity=Severity.ERROR,
    summary="EPOLLET on the listener and one accept a wake-up: connections stay in the accept queue",
    needs=frozenset({Need.SYSCALLS, Need.SOCKETS}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_EPOLLONESHOT, _EPOLLET = 1 << 30, 1 << 31
_WAITS_BEGUN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One listener that is not drained.

    Attributes:
        accepted: accepts that took a connection.
        wait: the last epoll_wait on the instance; -1 where it blocks since before the attach.
    """

    queue: Queue
    listener: OpenFile
    interest: EpollInterest
    tgid: int
    fd: int
    accepted: Ids
    wait: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a port: its listeners (SO_REUSEPORT) share the program and the cause."""
    for queue in queues(session):
        case = next(filter(None, (_judge(session, queue, listener) for listener in queue.listeners)), None)
        if case is not None:
            yield _finding(session, case)


def _judge(session: Session, queue: Queue, listener: OpenFile) -> _Case | None:
    interests = [
        i
        for i in session.interests
        if i.open_file == listener.id
        and i.events & _EPOLLET
        and not i.events & _EPOLLONESHOT
        and (i.removed_ns is None or i.removed_ns > queue.until_ns)
    ]
    if not interests:
        return None
    accepts = accepts_of(session, listener)
    returned = session.events.records["ret"][accepts]
    # The queue is first in, first out: one EAGAIN after the oldest came means that it was taken.
    tries_since = session.effective_ns[accepts] > queue.since_ns
    if (tries_since & (returned < 0)).any():
        return None
    held = held_at(session, listener.id, queue.until_ns)
    if not held:
        return None
    for interest in interests:
        waits = session.events_of_open_file(interest.epoll)
        since = waits[_ends_ns(session, waits) > queue.since_ns]
        if len(since):
            if not _all_came_back(session, since, queue):
                continue
            tgid = int(session.events.records["tgid"][since[-1]])
        elif not len(session.events_of_tgid(session.tgid_of_table(held[0].table))):
            # Not one call in the whole session: it blocks in the epoll_wait it was in at the attach.
            tgid = session.tgid_of_table(held[0].table)
        else:
            continue
        own = [d for d in held if session.tgid_of_table(d.table) == tgid] or held
        return _Case(
            queue=queue,
            listener=listener,
            interest=interest,
            tgid=tgid,
            fd=own[0].fd,
            accepted=accepts[returned >= 0],
            wait=int(since[-1]) if len(since) else NO_ID,
        )
    return None


def _all_came_back(session: Session, waits: Ids, queue: Queue) -> bool:
    """Whether each thread that waits there has dealt with what it was woken for, and left the queue as it was.

    It has where it is in a wait, or began two after the connections came: the first may have told of them.
    """
    tids = session.events.records["tid"][waits]
    for tid in set(tids.tolist()):
        own = waits[tids == tid]
        inside = int(_ends_ns(session, own[-1:])[0]) > queue.until_ns
        begun = int((session.events.records["enter_ns"][own] > queue.since_ns).sum())
        if not inside and begun < _WAITS_BEGUN:
            return False
    return True


def _ends_ns(session: Session, events: Ids) -> Ids:
    """When each call returned; the end of the session where it has not."""
    ends: Ids = session.events.records["exit_ns"][events].copy()
    ends[ends < 0] = session.info.ended_ns
    return ends


def _finding(session: Session, case: _Case) -> Finding:
    queue = case.queue
    count = len(queue.waiting)
    gone = sum(1 for one in queue.waiting if one.connection.state is TcpState.CLOSE_WAIT)
    witnessed = bool(len(case.accepted))
    clients = f" ({gone} of the clients gave up: CLOSE_WAIT without an owner)" if gone else ""
    registered = (
        "before watching began (fdinfo shows it)"
        if case.interest.added_event < 0
        else f"at {since_start(session, case.interest.added_ns)}"
    )
    seen = (
        f"It accepted {plural(len(case.accepted), 'connection')} in this session, and never went on to EAGAIN"
        if witnessed
        else "No accept was seen in this session: nothing new came to wake it"
    )
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR,
        confidence=Confidence.CERTAIN if witnessed else Confidence.LIKELY,
        title=f"{plural(count, 'connection')} left in the accept queue of port {queue.port} (EPOLLET)",
        tgid=case.tgid,
        comm=session.comm(case.tgid),
        fd=case.fd,
        connections=tuple(one.connection.id for one in queue.waiting),
        count=count,
        worst=queue.waiting[0].connection.id,
        explanation=(
            f"{plural(count, 'connection')} to port {queue.port} have waited for up to "
            f"{span(queue.waiting[0].waited_ns)} and belong to no process{clients}. "
            f"{who(session, case.tgid)} registered its listener (fd {case.fd}) with EPOLLET {registered}. {seen}; "
            "then it waits in epoll_wait, which does not return for connections that are in the queue already."
        ),
        remedy=(
            f"After each event of fd {case.fd} call accept4 until it returns EAGAIN, with the listener non-blocking; "
            "or register it without EPOLLET."
        ),
        evidence=kept(_evidence(session, case)),
    )


def _evidence(session: Session, case: _Case) -> Iterator[Evidence]:
    worst = case.queue.waiting[0]
    yield from_socket(session, int(worst.rows[-1]), f"no process owns it, after {span(worst.waited_ns)}")
    if case.interest.added_event >= 0:
        yield from_event(session, case.interest.added_event, "the listener, edge-triggered")
    else:
        yield from_proc(
            session.info.started_ns,
            f"/proc/{case.tgid}/fdinfo: tfd: {case.fd} events: {case.interest.events:x} (EPOLLET)",
        )
    if len(case.accepted):
        yield from_event(session, int(case.accepted[-1]), "the last accept; none followed until EAGAIN")
    if case.wait >= 0:
        yield from_event(session, case.wait, "waits again, with connections in the queue")
    shown = session.sockets.records[case.queue.row]
    yield from_socket(session, case.queue.row, f"{shown['recv_q']} waiting, backlog {shown['send_q']}")
    yield from_socket(session, int(worst.rows[0]), "in the queue")
