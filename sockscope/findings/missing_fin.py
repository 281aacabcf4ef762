"""One side has ended its half, the other never does, and nothing more specific explains it.

What it reports:
    Connections that stay half closed. With syscalls: the program ended its half by shutdown(2) and
    waits, without any limit, for a client that does not end its own. Without them (a capture or
    snapshots alone, or a process that was not followed): a side that has not ended its half long after
    the other did.

Why it matters:
    A half-closed connection that a process still holds has no timeout in the kernel (tcp_fin_timeout is
    for those that nobody holds): it costs a descriptor, and in a server with a thread a connection a
    thread, for as long as the other side likes.

Evidence:
    The FIN that was sent and that nothing came back for, the state in the last snapshot (FIN_WAIT2,
    CLOSE_WAIT), and the read in which the program still waits.

Example:
    `shutdown(7, SHUT_WR) = 0` at +0.4 s, then `recvfrom(7,` that has not returned 9 s later.

Mend:
    Give the wait for the peer's end a limit (SO_RCVTIMEO, poll with a timeout, a few seconds) and
    close then: the kernel sees to the rest. Where the capture alone shows it, run
    `sockscope diagnose` on the machine that does not end its half: it names the cause.

False positives:
    Half-close is legal and a peer may be slow: an event loop that waits, with timers of its own, is
    reported as info, and only a read without any limit as warning, after 2 s. Without
    syscalls 5 s must have passed, and it is only `possible`.

References:
    RFC 9293 section 3.6; shutdown(2); tcp(7) tcp_fin_timeout.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Session
from sockscope.analysis.wire.columns import NEVER
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    NS_PER_S,
    from_event,
    kept,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.halves import (
    flow_of,
    last_sample_evidence,
    last_state,
    packet_evidence,
    peer_fin_ns,
    shutdown_event,
    was_reset,
)
from sockscope.findings.shared.holding import Copy, Holdings, tcp_connections, unfinished
from sockscope.findings.shared.told import ended_here, peer_ended, told_by_kernel, when
from sockscope.model.calls import READS, USUAL_GROUPS, Call, CallGroup
from sockscope.model.connections import Connection, Flow, Protocol
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.info import SyscallCoverage
from sockscope.model.tcp import TcpFlag, TcpState

RULE = Rule(
    slug="missing-fin",
    severity=Severity.WARNING,
    summary="one side ended the connection, the other never does",
    needs=frozenset(),
    yields_to=frozenset(
        {
            "close-wait-leak",
            "fin-withheld",
            "inherited-connection-fd",
            "passed-fd-leak",
            "fd-leak",
            "unaccepted-connection",
            "accept-result-misused",
            "event-loop-spin",
            "abrupt-shutdown",
        }
    ),
    groups=frozenset(),
)

_FINE_NS = NS_PER_S // 1000
_LIMITLESS_NS = 2 * GRACE_NS
_UNSEEN_NS = 5 * NS_PER_S
_OVER = (TcpState.TIME_WAIT, TcpState.CLOSE)
_SOL_SOCKET = 1
_SO_RCVTIMEO = (20, 66)  # SO_RCVTIMEO_OLD, SO_RCVTIMEO_NEW


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A connection whose program has ended its half and still holds it.

    Attributes:
        blocked: the read that has not returned and has no limit; -1 for none.
    """

    connection: Connection
    copy: Copy
    shutdown: int
    blocked: int
    waited_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unseen:
    """A connection of which only packets or snapshots tell; `local_ended`: which half is over."""

    connection: Connection
    local_ended: bool
    since_ns: int
    waited_ns: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program, and one a side for what was not followed."""
    info = session.info
    if not (info.syscalls.engine or info.packets.available or info.sockets.snapshot_count):
        yield Skip(rule=RULE.slug, reason="neither syscalls nor packets nor socket states were recorded")
        return
    waiting: defaultdict[tuple[str, bool], list[_Waiting]] = defaultdict(list)
    sees_closes = _sees_closes(info.syscalls)
    if sees_closes and not info.syscalls.lost_count and 0 < info.syscalls.resolution_ns <= _FINE_NS:
        holdings = Holdings(session)
        for connection in tcp_connections(session):
            case = _waits(session, holdings, connection) if connection.id not in explained else None
            if case is not None:
                waiting[program(session, case.copy.tgid), case.blocked >= 0].append(case)
    for cases in waiting.values():
        yield _waiting_finding(session, cases)
    unseen: defaultdict[tuple[str, bool], list[_Unseen]] = defaultdict(list)
    one_sided = _halved(session)
    if info.packets.whole:
        session.flows.prepare(np.flatnonzero(one_sided))
    halved = one_sided.tolist()
    for connection in session.connections:
        if connection.flow >= 0 and not halved[connection.flow]:
            continue
        followed = connection.open_file >= 0 and sees_closes
        if followed or connection.never_accepted or connection.protocol is not Protocol.TCP:
            continue
        found = _half_over(session, connection) if connection.id not in explained else None
        if found is not None:
            unseen[str(connection.local), found.local_ended].append(found)
    for halves in unseen.values():
        yield _unseen_finding(session, halves)


def _sees_closes(coverage: SyscallCoverage) -> bool:
    """A log that was filtered of any such calls does not tell who holds a connection, and since when."""
    return bool(coverage.engine) and not (USUAL_GROUPS | {CallGroup.TASKS}).intersection(coverage.missing_groups)


def _waits(session: Session, holdings: Holdings, connection: Connection) -> _Waiting | None:
    if not holdings.keeps(connection):
        return None
    ended = shutdown_event(session, connection, writing=True)
    if ended < 0 or peer_fin_ns(session, connection) is not None or _peer_read_zero(connection, session, ended):
        return None
    held = [copy for copy in holdings.copies(connection.open_file) if not copy.given_up]
    if not held or was_reset(session, connection, max(copy.until_ns for copy in held)):
        return None
    copy = max(held, key=lambda one: int(session.effective_ns[one.uses[-1]]) if len(one.uses) else -1)
    ended_ns = int(session.effective_ns[ended])
    waited = copy.until_ns - ended_ns
    if waited < _LIMITLESS_NS or last_state(session, connection, ended_ns, copy.until_ns) not in (
        None,
        TcpState.FIN_WAIT2,
    ):
        return None
    blocked = _blocked_read(session, connection, copy)
    if blocked < 0 and waited < _UNSEEN_NS:
        return None
    return _Waiting(connection=connection, copy=copy, shutdown=ended, blocked=blocked, waited_ns=waited)


def _peer_read_zero(connection: Connection, session: Session, shutdown: int) -> bool:
    """Without packets, a read of 0 after SHUT_WR is the peer's FIN."""
    return (
        connection.flow < 0
        and connection.eof_ns is not None
        and connection.eof_ns > int(session.effective_ns[shutdown])
    )


def _blocked_read(session: Session, connection: Connection, copy: Copy) -> int:
    """The read in which a thread of the holder waits for the peer, where nothing limits it; else -1."""
    if not len(copy.uses) or not connection.witnessed:
        return -1
    last = int(copy.uses[-1])
    if session.events.call(last) not in READS or not unfinished(session, last):
        return -1
    if session.events.records["flags"][last] & EventFlag.URING:
        return -1  # holds no thread up, and its program has time limits of its own
    rows = session.events.records[session.events_of_open_file(connection.open_file)]
    limits = (rows["call"] == Call.setsockopt) & (rows["args"][:, 1] == _SOL_SOCKET)
    limited = any(int(option) in _SO_RCVTIMEO for option in rows["args"][limits, 2])
    return -1 if limited else last


def _halved(session: Session) -> npt.NDArray[np.bool_]:
    """Flows of which one side alone sent FIN, and nobody RST; where packets are missing, all: shape (flows,)."""
    flows = session.flows.columns
    if not session.info.packets.whole:
        return np.ones(len(session.flows), np.bool_)
    ended = flows.fin_ns != NEVER
    halved: npt.NDArray[np.bool_] = (ended[:, 0] != ended[:, 1]) & (flows.rst_ns == NEVER).all(axis=1)
    return halved


def _half_over(session: Session, connection: Connection) -> _Unseen | None:
    """One half is over by the packets or the snapshots alone, and the other long since is not."""
    flow = flow_of(session, connection)
    if flow is not None and session.info.packets.whole:
        ours, theirs = flow.fin_ns[connection.local_side], flow.fin_ns[1 - connection.local_side]
        if (ours is None) == (theirs is None) or any(at is not None for at in flow.rst_ns):
            return None
        since = ours if ours is not None else theirs
        assert since is not None
        lacking = 1 - connection.local_side if ours is not None else connection.local_side
        if not _fin_would_be_seen(flow, lacking) or connection.state in _OVER:
            return None
        waited = session.info.ended_ns - since
        if waited < _UNSEEN_NS:
            return None
        return _Unseen(connection=connection, local_ended=ours is not None, since_ns=since, waited_ns=waited)
    rows = session.samples_of(connection.id)
    states = session.sockets.records["state"][rows]
    rows = rows[states == TcpState.CLOSE_WAIT]
    if not len(rows) or int(states[-1]) != TcpState.CLOSE_WAIT:
        return None
    first, last = (int(session.sockets.records["time_ns"][rows[at]]) for at in (0, -1))
    exact = when(session, peer_ended(session, connection))
    first = first if exact is None else min(first, exact)
    return _Unseen(connection=connection, local_ended=False, since_ns=first, waited_ns=last - first)


def _fin_would_be_seen(flow: Flow, side: int) -> bool:
    """In a capture that begins mid-way the FIN may have gone before; payload or the handshake says it had not.

    Of a side none of whose packets were captured (`tcpdump dst port 80`), nothing can be said.
    """
    if not flow.packet_count[side]:
        return False
    return flow.syn_ns is not None or flow.synack_ns is not None or flow.last_payload_ns[side] is not None


def _waiting_finding(session: Session, cases: list[_Waiting]) -> Finding:
    cases.sort(key=lambda case: -case.waited_ns)
    worst = cases[0]
    fd, name, count = worst.copy.descriptor.fd, who(session, worst.copy.tgid), len(cases)
    limitless = worst.blocked >= 0
    ended_at = since_start(session, int(session.effective_ns[worst.shutdown]))
    explanation = (
        f"{name} ended its half of {plural(count, 'connection')} and still holds them, because the peers do not end "
        f"theirs. In the worst case it called shutdown on fd {fd} at {ended_at}, "
        f"and {span(worst.waited_ns)} later no FIN had come back"
    )
    explanation += (
        f"; a thread is blocked in a read of fd {fd} that nothing limits in time."
        if limitless
        else "; it may have a timer."
    )

    def facts() -> Iterator[Evidence]:
        if limitless:
            yield from_event(session, worst.blocked, "waits for the peer's end, without a limit")
        yield from_event(session, worst.shutdown, "ends its own half")
        note = "its FIN, never answered by one"
        yield from packet_evidence(session, worst.connection, from_peer=False, flags=TcpFlag.FIN, note=note)
        yield from told_by_kernel(session, ended_here(session, worst.connection), note)
        yield from last_sample_evidence(session, worst.connection, before_ns=worst.copy.until_ns)

    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if limitless else Severity.INFO,
        confidence=Confidence.LIKELY if limitless else Confidence.POSSIBLE,
        title=f"{plural(count, 'connection')} half closed: the peer never ends its half",
        tgid=worst.copy.tgid,
        comm=session.comm(worst.copy.tgid),
        fd=fd,
        connections=tuple(case.connection.id for case in cases),
        count=count,
        worst=worst.connection.id,
        explanation=explanation,
        remedy=(
            f"Limit the wait after shutdown({fd}, SHUT_WR): SO_RCVTIMEO or poll with a timeout of a few seconds, "
            f"then close({fd})."
        ),
        evidence=kept(facts()),
    )


def _unseen_finding(session: Session, cases: list[_Unseen]) -> Finding:
    cases.sort(key=lambda case: -case.waited_ns)
    worst = cases[0]
    connection = worst.connection
    owners = connection.owners
    tgid, fd = owners[0] if owners else (-1, -1)
    sides = (connection.local, connection.peer) if worst.local_ended else (connection.peer, connection.local)
    # Where listings have no time in them, nobody knows how long it lasted.
    timed = session.info.sockets.times_known or flow_of(session, connection) is not None
    lasting = timed and worst.waited_ns >= _UNSEEN_NS and not worst.local_ended
    count = len(cases)
    only = len(session.samples_of(connection.id)) == 1
    waited = f"{span(worst.waited_ns)} later" if timed and worst.waited_ns else "by the last snapshot that shows it"
    waited = "by the only snapshot that shows it" if only and not worst.waited_ns else waited

    def facts() -> Iterator[Evidence]:
        note = "this half is over"
        yield from packet_evidence(session, connection, from_peer=not worst.local_ended, flags=TcpFlag.FIN, note=note)
        over = ended_here(session, connection) if worst.local_ended else peer_ended(session, connection)
        yield from told_by_kernel(session, over, note)
        yield from last_sample_evidence(session, connection)

    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if lasting else Severity.INFO,
        confidence=Confidence.POSSIBLE,
        title=f"{plural(count, 'connection')} half closed: {connection.local} "
        + ("waits for its peers" if worst.local_ended else "does not end its half"),
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd if fd >= 0 else None,
        connections=tuple(case.connection.id for case in cases),
        count=count,
        worst=connection.id,
        explanation=(
            f"{sides[0]} had ended its half of the connection at {since_start(session, worst.since_ns)}; {sides[1]} "
            f"had not {waited}. So it is with {plural(count, 'connection')}. Without the syscalls of that process it "
            f"cannot be told whether it goes on sending, which is legal, or forgot to close."
        ),
        remedy=f"Run sockscope diagnose where {sides[1]} is: it shows what that program was told and did instead.",
        evidence=kept(facts()),
    )
