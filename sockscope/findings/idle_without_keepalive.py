"""Connections lie idle, and nobody would notice if their peers were dead.

What it reports:
    Established connections on which nothing was sent or received for long, without SO_KEEPALIVE, of a program that
    limits no wait of its own: it blocks in read, or waits for events, without a time limit.

Why it matters:
    A peer that loses its power or its network, or a firewall that forgets the connection, sends no FIN. TCP
    itself notices only when it has something to send. Until then the socket, its descriptor, and whatever the
    program keeps for it stay: for good. Over months they add up to EMFILE. Only info: the peers seen here may
    be well, and a program may mean to wait. Certain where the one thread of the process waits without a limit; likely
    where others might have a timer that makes no system call we watch (a futex with a limit).

Evidence:
    What the kernel says of the sockets (last_data_recv, last_data_sent of tcp_info; no keep-alive timer), the wait
    or read without a limit; no timerfd, no SIGALRM handler, no SO_RCVTIMEO or TCP_USER_TIMEOUT as far as was seen.

Example:
    40 connections idle for up to 12 min, `epoll_wait(5, …, -1)`, and none of them has a keep-alive timer.

Mend:
    setsockopt(SO_KEEPALIVE) on the listener (accepted sockets inherit it), with TCP_KEEPIDLE,
    TCP_KEEPINTVL and TCP_KEEPCNT for less than two hours; or a time limit of the program's own for
    connections that are silent.

False positives:
    It takes 8 connections idle for 5 s together, or one for a minute. One whose request is still being
    worked on is not idle. A process, or another of the same program, that limits any of its waits is taken to look
    after its connections. One that is out of descriptors has the same connections for a worse reason
    (descriptor-exhaustion counts them); those that a leak keeps are told by fd-leak. A peer on the same host
    cannot vanish without a word; such connections are counted all the same, as stand-ins for those that can.

References:
    socket(7) SO_KEEPALIVE; tcp(7) TCP_KEEPIDLE, TCP_USER_TIMEOUT; RFC 1122 section 4.2.3.6; sock_diag(7).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    NS_PER_MS,
    NS_PER_S,
    from_event,
    from_proc,
    from_socket,
    kept,
    plural,
    program,
    share,
    span,
    who,
)
from sockscope.findings.shared.exhaustion import exhausted
from sockscope.findings.shared.holding import served_by
from sockscope.findings.shared.options import switched_on
from sockscope.findings.shared.time_limits import Limits
from sockscope.findings.shared.zero_windows import KEEPALIVE
from sockscope.model.calls import USUAL_GROUPS, CallGroup
from sockscope.model.connections import Connection, Role
from sockscope.model.descriptors import Ended
from sockscope.model.findings import Confidence, Evidence, Finding, Need, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpState

RULE = Rule(
    slug="idle-without-keepalive",
    severity=Severity.INFO,
    summary="idle connections without keep-alive, in a program without time limits: dead peers go unnoticed",
    needs=frozenset({Need.SYSCALLS, Need.SOCKETS}),
    yields_to=frozenset({"fd-leak"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_CROWD, _CROWD_IDLE_NS = 8, 5 * NS_PER_S
_ALONE_IDLE_NS = 60 * NS_PER_S
_STALE_NS = 2 * NS_PER_S
"""A snapshot so shortly before the end (of the process, or of the watching) speaks for it."""
_OPTIONS = ("SO_KEEPALIVE", "SO_RCVTIMEO", "SO_RCVTIMEO_NEW", "TCP_USER_TIMEOUT")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Idle:
    """One idle connection. `row`: the socket row that says so, the last one."""

    connection: Connection
    tgid: int
    fd: int
    row: int
    idle_ns: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    if not session.info.sockets.has_timers:
        yield Skip(
            rule=RULE.slug, reason="the socket listings have no timers, so none is known to be missing: use ss -tanio"
        )
        return
    rows, idle_ns = _idle_rows(session)
    known = np.isin(session.socket_connection[rows], np.array(sorted(explained), np.int64))
    rows, idle_ns = rows[~known], idle_ns[~known]
    if not len(rows):
        return
    limits = Limits(session)
    without_limit = frozenset(session.socket_connection[rows].tolist()) - _with_options(session, rows)
    groups: defaultdict[str, list[_Idle]] = defaultdict(list)
    for row, waited in zip(rows.tolist(), idle_ns.tolist(), strict=True):
        connection = session.connections[int(session.socket_connection[row])]
        if connection.id not in without_limit or connection.role is not Role.SERVER or connection.open_file < 0:
            continue
        named = (session.descriptors[number] for number in session.open_files[connection.open_file].descriptors)
        holder = next((one for one in named if one.ended in (None, Ended.EXIT)), None)
        if holder is not None:
            tgid = session.tgid_of_table(holder.table)
            groups[program(session, tgid)].append(
                _Idle(connection=connection, tgid=tgid, fd=holder.fd, row=row, idle_ns=waited)
            )
    failed = session.events.records["tgid"][exhausted(session)]
    worse_off = {program(session, tgid) for tgid in np.unique(failed).tolist()}
    for name, found in groups.items():
        if name in worse_off:
            continue
        found.sort(key=lambda one: -one.idle_ns)
        if (len(found) >= _CROWD or found[0].idle_ns >= _ALONE_IDLE_NS) and not limits.of_program(name):
            waits = limits.endless(found[0].tgid, found[0].connection.id)
            if waits != NO_ID:
                yield _finding(session, found, waits)


def _idle_rows(session: Session) -> tuple[Ids, Ids]:
    """(the last rows of connections that were idle to the end, without a keep-alive timer; for how long each was)."""
    records = session.sockets.records
    idle = np.minimum(records["last_data_recv_ms"], records["last_data_sent_ms"]).astype(np.int64) * NS_PER_MS
    fits = (records["state"] == TcpState.ESTABLISHED) & (records["protocol"] == 6) & (records["has_info"] == 1)
    fits &= (records["send_q"] == 0) & (records["recv_q"] == 0) & (idle >= _CROWD_IDLE_NS)
    fits &= session.socket_connection >= 0
    kept_alive = session.socket_connection[(records["timer"] == KEEPALIVE) & (session.socket_connection >= 0)]
    numbers = np.setdiff1d(session.socket_connection[fits], np.concatenate([kept_alive, _at_work(session)]))
    if not len(numbers):
        none = np.zeros(0, np.int64)
        return none, none
    ends = np.full(len(session.connections), -1, np.int64)
    ends[numbers] = [_end_of(session, session.connections[number]) for number in numbers.tolist()]
    of_row = np.where(session.socket_connection >= 0, ends[session.socket_connection], -1)
    before = np.flatnonzero(records["time_ns"] < of_row)
    last = np.full(len(session.connections), -1, np.int64)
    last[session.socket_connection[before]] = before
    rows = last[numbers]
    rows = rows[(rows >= 0) & fits[rows]]
    final = int(records["time_ns"].max())
    rows = rows[np.minimum(of_row[rows], final) - records["time_ns"][rows] <= _STALE_NS]
    # A connection that a later snapshot misses has gone; one whose process ended went with it.
    return rows, idle[rows]


def _end_of(session: Session, connection: Connection) -> int:
    """Until when it was the program's: to the exit of the process, or the end; -1 where the program closed it."""
    if connection.open_file < 0:
        return -1
    file = session.open_files[connection.open_file]
    if file.released_ns is None:
        return session.info.ended_ns + 1 if connection.gone_ns is None else -1
    ended = {session.descriptors[number].ended for number in file.descriptors}
    return file.released_ns if Ended.EXIT in ended else -1


def _at_work(session: Session) -> npt.NDArray[np.int32]:
    """Connections whose last request was not answered, of a server that does answer."""
    made = session.exchanges
    if not len(made) or not made["answered"].any():
        return np.zeros(0, np.int32)
    last = np.append(made["connection"][1:] != made["connection"][:-1], True)
    found: npt.NDArray[np.int32] = made["connection"][last & (made["answered"] == 0)]
    return found


def _with_options(session: Session, rows: Ids) -> frozenset[int]:
    """Connections of these rows for which, or for whose listener, one of the options was switched on."""
    numbers = session.socket_connection[rows]
    events = np.flatnonzero(np.isin(session.event_connection, numbers))
    found = {int(session.event_connection[e]) for name in _OPTIONS for e in switched_on(session, events, name).tolist()}
    listener_of = {number: session.connections[number].listener for number in numbers.tolist()}
    for listener in set(listener_of.values()) - {NO_ID}:
        above = session.events_of_open_file(listener)
        if any(len(switched_on(session, above, name)) for name in _OPTIONS):
            found |= {number for number, its in listener_of.items() if its == listener}
    return frozenset(found)


def _finding(session: Session, found: list[_Idle], waits: int) -> Finding:
    worst = found[0]
    count = len(found)
    least = span(found[-1].idle_ns)
    row = session.events.records[waits]
    call = session.events.call(waits).name
    threads = len(session.processes[worst.tgid].tids) if worst.tgid in session.processes else 2
    total = served_by(session, program(session, worst.tgid))
    return Finding(
        rule=RULE.slug,
        severity=Severity.INFO,
        confidence=Confidence.CERTAIN if threads <= 1 else Confidence.LIKELY,
        title=f"{plural(count, 'connection')} idle for up to {span(worst.idle_ns)}, without keep-alive or time limit",
        tgid=worst.tgid,
        comm=session.comm(worst.tgid),
        fd=worst.fd,
        connections=tuple(sorted(one.connection.id for one in found)),
        count=count,
        worst=worst.connection.id,
        explanation=(
            f"On {share(count, total)} of {who(session, worst.tgid)} nothing was sent or received for {least} to "
            f"{span(worst.idle_ns)}. None has SO_KEEPALIVE (their sockets have no keep-alive timer), and "
            f"{who(session, int(row['tgid']), int(row['tid']))} waits in {call} without a time limit: if one of these "
            "peers vanished without a FIN, nothing would ever tell."
        ),
        remedy=(
            "Set SO_KEEPALIVE on the listener, which accepted sockets inherit, and TCP_KEEPIDLE to some minutes; or "
            f"give {call} a time limit, and close what is silent for too long."
        ),
        evidence=kept(_evidence(session, worst, waits)),
    )


def _evidence(session: Session, worst: _Idle, waits: int) -> Iterator[Evidence]:
    shown = session.sockets.records[worst.row]
    times = f"last received {shown['last_data_recv_ms']} ms, last sent {shown['last_data_sent_ms']} ms before"
    yield from_socket(session, worst.row, f"{times}; timer {shown['timer']}: no keep-alive")
    yield from_event(session, waits, "waits without a time limit")
    if not worst.connection.witnessed:
        yield from_proc(session.info.started_ns, f"fd {worst.fd} was open before watching began")
