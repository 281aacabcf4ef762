"""The peer has gone and the program does not close.

What it reports:
    TCP connections in CLOSE_WAIT that the program keeps: the peer's FIN has arrived, the program was
    told (a read returned 0, or epoll said EPOLLRDHUP), and since then it neither sent anything nor
    closed its descriptor, while it had time and went on with other things.

Why it matters:
    CLOSE_WAIT has no timeout: only the program can end it. Each one costs a descriptor and a socket,
    until accept fails with EMFILE. The peer's side stays in FIN_WAIT2 for as long.

Evidence:
    The read that returned 0 (or the epoll event), the peer's FIN on the wire, the moment at which CLOSE_WAIT
    began where the kernel told it (bpf engine), the state in the last snapshot, the last thing the program
    did with the connection, and what its thread did next.

Example:
    `recvfrom(7, "", 4096, 0) = 0` at +1.204 s, then `epoll_ctl(4, EPOLL_CTL_DEL, 7)`, and never
    `close(7)`.

Mend:
    Close the descriptor on every path on which a read returns 0 or fails: in a `finally`, a `with`
    block, a destructor. Taking it out of the event loop does not close it.

False positives:
    Half-close is legal: a program may go on sending after the peer's FIN, and one that does is not
    reported, nor one that waits for room to send. A request not answered yet is given 10 s (a slow
    backend), others 1 s. A program that was never told and does not look is reported as info only, until
    8 s have passed: it may be about to write, and will find out then. A connection pool notices at
    its next use: client connections that were not told are left at info.

References:
    RFC 9293 section 3.6 (closing a connection); recv(2) (return value 0); epoll_ctl(2) EPOLLRDHUP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    NS_PER_S,
    from_event,
    from_proc,
    kept,
    plural,
    program,
    share,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.halves import (
    HangUps,
    ended_itself,
    last_sample_evidence,
    last_state,
    packet_evidence,
    peer_fin_ns,
    told_evidence,
    was_reset,
)
from sockscope.findings.shared.holding import (
    Copy,
    Holdings,
    payload_moves,
    program_of,
    served_by,
    tcp_connections,
    uses_of,
    waits_to_write,
)
from sockscope.findings.shared.told import peer_ended, told_by_kernel
from sockscope.model.calls import USUAL_GROUPS, CallGroup
from sockscope.model.connections import Connection, Role
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.tcp import TcpFlag, TcpState

RULE = Rule(
    slug="close-wait-leak",
    severity=Severity.ERROR,
    summary="the peer has ended the connection and the program does not close its side",
    yields_to=frozenset(
        {
            "fin-withheld",
            "passed-fd-leak",
            "accept-result-misused",
            "event-loop-spin",
            "write-after-peer-close",
            "select-fd-overflow",
        }
    ),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_UNANSWERED_GRACE_NS = 10 * NS_PER_S
"""A request may take this long to answer, also when its client has ended its half."""
_UNTOLD_GRACE_NS = 2 * GRACE_NS
_SURELY_NS = 8 * NS_PER_S
"""Where the telling was not witnessed: most of a default `diagnose`."""
_SURELY_IDLE_NS = 5 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leak:
    """One connection that is kept.

    Attributes:
        fin_ns: when the peer ended its half.
        told_event: the read or epoll_wait that told; -1 for none.
        told_before: the end of file had been read before watching began: nothing is left in the queue, not
            even the FIN.
        last_use: the last event that used it for anything but learning of the end; -1 for none.
        idle_ns: from being told (or the FIN) or the last use to the end of what was watched.
        later_calls: what the told thread did afterwards.
    """

    connection: Connection
    copy: Copy
    fin_ns: int
    told_event: int
    told_before: bool
    last_use: int
    idle_ns: int
    until_ns: int
    later_calls: int
    unanswered: bool

    @property
    def grade(self) -> tuple[Severity, Confidence]:
        told = self.told_event >= 0
        if self.unanswered:
            return Severity.WARNING, Confidence.POSSIBLE
        if told and (self.later_calls or self.idle_ns >= _SURELY_IDLE_NS):
            return Severity.ERROR, Confidence.CERTAIN
        if told:
            return Severity.WARNING, Confidence.LIKELY
        surely = self.idle_ns >= _SURELY_NS
        if self.told_before:
            return Severity.ERROR if surely else Severity.WARNING, Confidence.LIKELY
        if surely and self.connection.role is not Role.CLIENT:
            return Severity.WARNING, Confidence.LIKELY
        return Severity.INFO, Confidence.POSSIBLE


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and manner (told, told before watching began, not told; a request unanswered or not)."""
    holdings, hang_ups = Holdings(session), HangUps(session)
    candidates = [c for c in tcp_connections(session) if c.id not in explained and holdings.keeps(c)]
    if not candidates:
        return
    writers = {program_of(session, c) for c in session.connections if c.written_bytes and c.open_file >= 0}
    groups: defaultdict[tuple[str | bool, ...], list[_Leak]] = defaultdict(list)
    for connection in candidates:
        leak = _judge(session, holdings, hang_ups, connection, answers=program_of(session, connection) in writers)
        if leak is not None:
            manner = (leak.told_event >= 0, leak.told_before, leak.unanswered, leak.grade[0] > Severity.INFO)
            groups[program(session, leak.copy.tgid), *manner].append(leak)
    for leaks in groups.values():
        yield _finding(session, leaks, served_by(session, program(session, leaks[0].copy.tgid)))


def _judge(
    session: Session, holdings: Holdings, hang_ups: HangUps, connection: Connection, *, answers: bool
) -> _Leak | None:
    fin_ns = peer_fin_ns(session, connection)
    if fin_ns is None:
        return None
    # Several may hold it; the one that was told, or used it last, is the one to close it.
    holding = [copy for copy in holdings.copies(connection.open_file) if not copy.given_up]
    if not holding:
        return None
    copy = max(holding, key=lambda one: int(session.effective_ns[one.uses[-1]]) if len(one.uses) else -1)
    until = copy.until_ns
    if was_reset(session, connection, until) or ended_itself(session, connection, until):
        return None
    if last_state(session, connection, fin_ns, until) not in (None, TcpState.CLOSE_WAIT):
        return None
    told_event = connection.eof_event if connection.eof_event >= 0 else hang_ups.event_of(connection)
    uses = uses_of(session, session.events_of(connection.id))
    if waits_to_write(session, uses):
        return None
    reads, writes = payload_moves(session, uses)
    moves = sorted((int(event) for event in (*reads, *writes)), key=lambda event: int(session.effective_ns[event]))
    last_use = moves[-1] if moves else -1
    since = int(session.effective_ns[told_event]) if told_event >= 0 else fin_ns
    if last_use >= 0:
        since = max(since, int(session.effective_ns[last_use]))
    idle = until - since
    unanswered = answers and last_use >= 0 and last_use in set(map(int, reads))
    grace = GRACE_NS if told_event >= 0 else _UNTOLD_GRACE_NS
    if idle < (_UNANSWERED_GRACE_NS if unanswered else grace):
        return None
    return _Leak(
        connection=connection,
        copy=copy,
        fin_ns=fin_ns,
        told_event=told_event,
        told_before=told_event < 0 and _was_told_before(session, connection),
        last_use=last_use,
        idle_ns=idle,
        until_ns=until,
        later_calls=_later_calls(session, holdings, told_event, uses),
        unanswered=unanswered,
    )


def _was_told_before(session: Session, connection: Connection) -> bool:
    """In CLOSE_WAIT from the first snapshot on, and nothing in the queue, where an unread FIN counts as one byte."""
    rows = session.sockets.records[session.samples_of(connection.id)]
    if connection.witnessed or not len(rows):
        return False
    return bool((rows["state"] == TcpState.CLOSE_WAIT).all() and (rows["recv_q"] == 0).all())


def _later_calls(session: Session, holdings: Holdings, told_event: int, uses: Ids) -> int:
    """What the thread that was told has done since, with other things."""
    if told_event < 0:
        return 0
    told_ns, tid = session.effective_ns[told_event], session.events.records["tid"][told_event]
    mine = (session.effective_ns[uses] > told_ns) & (session.events.records["tid"][uses] == tid)
    return holdings.calls_after(int(tid), int(told_ns)) - int(mine.sum())


def _finding(session: Session, leaks: list[_Leak], total: int) -> Finding:
    leaks.sort(key=lambda leak: (-leak.grade[0], -leak.idle_ns))
    worst = leaks[0]
    severity, confidence = worst.grade
    fds = f"fd {worst.copy.descriptor.fd}"
    count = len(leaks)
    ended, first_ns = since_start(session, worst.fin_ns), min(leak.fin_ns for leak in leaks)
    if worst.told_event >= 0:
        told_at = since_start(session, int(session.effective_ns[worst.told_event]))
        manner = (
            f"In the worst case {who(session, worst.copy.tgid)} was told on {fds} at {told_at} and then neither "
            f"sent nor closed for {span(worst.idle_ns)}"
        )
        manner += (
            f", while the same thread made {plural(worst.later_calls, 'other call')}." if worst.later_calls else "."
        )
        title = f"{plural(count, 'connection')} in CLOSE_WAIT: told of the end, never closed"
        remedy = (
            f"Close the descriptor where the read returns 0 (here {fds}), on every path: no longer watching it "
            "does not close it."
        )
    elif worst.told_before:
        manner = (
            f"They were in CLOSE_WAIT when watching began, with nothing left to read: {who(session, worst.copy.tgid)} "
            f"had read them to the end, and it has not touched {fds}, for one, in {span(worst.idle_ns)}."
        )
        title = f"{plural(count, 'connection')} in CLOSE_WAIT since before watching began, never closed"
        remedy = (
            f"Close the descriptor where the read returns 0 (here {fds}). To see that moment, watch the program "
            "while clients leave."
        )
    else:
        manner = (
            f"In the worst case the FIN came at {ended}, and {who(session, worst.copy.tgid)} has not read "
            f"{fds} to its end, nor written, for {span(worst.idle_ns)}."
        )
        title = f"{plural(count, 'connection')} in CLOSE_WAIT: the program does not look"
        remedy = (
            f"Keep {fds} in the set that is waited on (EPOLLIN or EPOLLRDHUP, POLLIN), read it until 0 is returned, "
            "and close it then; or give idle connections a time limit."
        )
    if worst.unanswered:
        manner += " Its last request was never answered: it may still be at work on it."
    when = "" if worst.told_before else f" (first FIN of these at {since_start(session, first_ns)})"
    explanation = (
        f"The peers of {share(count, total)} have ended their half{when}, and the program keeps its own open. {manner}"
    )
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=confidence,
        title=title,
        tgid=worst.copy.tgid,
        comm=session.comm(worst.copy.tgid),
        fd=worst.copy.descriptor.fd,
        connections=tuple(leak.connection.id for leak in leaks),
        count=count,
        worst=worst.connection.id,
        explanation=explanation,
        remedy=remedy,
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, leak: _Leak) -> Iterator[Evidence]:
    connection = leak.connection
    wire = packet_evidence(
        session, connection, from_peer=True, flags=TcpFlag.FIN, note="the peer's FIN: CLOSE_WAIT begins"
    )
    yield from told_evidence(session, leak.told_event)
    yield from wire
    began = peer_ended(session, connection)
    if began >= 0:
        lasted = span(leak.until_ns - int(session.kernel["time_ns"][began]))
        yield from told_by_kernel(session, began, f"no FIN of ours in the {lasted} since")
    if leak.last_use >= 0:
        yield from_event(session, leak.last_use, "the last bytes moved")
    yield from last_sample_evidence(session, connection, "the last snapshot that shows it", before_ns=leak.until_ns)
    yield from_proc(
        leak.until_ns,
        f"{who(session, leak.copy.tgid)} fd {leak.copy.descriptor.fd}: not closed {span(leak.idle_ns)} later",
    )
