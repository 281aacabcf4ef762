"""An edge-triggered connection is read once a wake-up, and what did not fit the buffer is left behind.

What it reports:
    A connection registered with EPOLLET from which a read filled its whole buffer, after which the program went back
    to epoll_wait without another read. What was left in the socket stays there: the request is never seen whole, and
    the connection hangs until its client happens to send more.

Why it matters:
    EPOLLET reports a change, not a state: for bytes that have arrived already epoll_wait does not return again. It
    shows with requests longer than the buffer only, so it passes every test with short ones, and then some
    clients wait for ever. That is an error: the connection does not go on by itself.

Evidence:
    The registration with EPOLLET (from epoll_ctl, or /proc/PID/fdinfo where it was before the attach), the
    read that returned all it had asked for, the epoll_wait that followed, and what was left: the receive
    queue in a snapshot, or the bytes on the wire against those read.

Example:
    `recvfrom(7, …, 4096) = 4096`, `epoll_wait(4, …) <unfinished ...>`, and `recv-q 1904` for 1.8 s.

Mend:
    After each event read until the call fails with EAGAIN or returns less than was asked for; or register without
    EPOLLET: level-triggered epoll reports the connection again while bytes wait.

False positives:
    A read that returned less than asked is a sound end on a stream (epoll(7), Q9). EPOLLONESHOT, and an
    EPOLL_CTL_MOD after the read, have the rest reported again. A program may leave bytes on purpose,
    because it cannot pass them on (nothing is said while one of its writes waits for room, or its answer is
    not taken), or keep its own note of what is readable (Go, nginx): it then reads again without an event.
    So certain is only what went on when a client sent more, and at once. What is left to the end of the
    session must be there for a second, in a program of which the former was seen, or (likely) in a process of one
    thread that waits for nothing else: no timer, no service that it has asked.

References:
    epoll(7) "Level-triggered and edge-triggered", Q9; epoll_ctl(2) EPOLLET, EPOLLONESHOT.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.event_loops import spans
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    NS_PER_MS,
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
from sockscope.model.calls import EPOLL_WAITS, READS, USUAL_GROUPS, WRITES, Call, CallGroup
from sockscope.model.connections import Connection, Role
from sockscope.model.descriptors import EpollInterest
from sockscope.model.events import Section
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpState

RULE = Rule(
    slug="edge-triggered-read-not-drained",
    severity=Severity.ERROR,
    summary="EPOLLET, and one read a wake-up: what did not fit the buffer stays in the socket, and the client waits",
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_EPOLLIN, _EPOLLONESHOT, _EPOLLET = 1, 1 << 30, 1 << 31
_MSG_PEEK = 2
_EAGAIN = -11
_LEAST_NS = 300 * NS_PER_MS
_AT_ONCE_NS = 100 * NS_PER_MS
_LOOKED_AT = 500
_WAITS_IN_VAIN = 2

_READS, _WRITES, _EPOLL_WAITS = by_call(READS), by_call(WRITES), by_call(EPOLL_WAITS)
_VECTORS = by_call([Call.readv, Call.preadv, Call.preadv2, Call.recvmsg])
_MANY = by_call([Call.recvmmsg, Call.pread64, Call.preadv])
_CAN_BE_LEFT = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """One time that bytes were left behind.

    Attributes:
        read: the one that filled its buffer.
        wait: the epoll_wait that its thread began next.
        bytes_left: how many stayed.
        until_ns: when the client sent more, or the connection or the session ended.
        socket: the socket row that shows them; -1 where the wire alone tells.
        more: the packet that woke it; -1 for none.
    """

    connection: int
    interest: EpollInterest
    tgid: int
    read: int
    wait: int
    bytes_left: int
    since_ns: int
    until_ns: int
    socket: int
    more: int

    @property
    def lasted_ns(self) -> int:
        return self.until_ns - self.since_ns


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    interests = {
        session.open_files[one.open_file].connection: one
        for one in session.interests
        if one.events & _EPOLLET and one.events & _EPOLLIN and not one.events & _EPOLLONESHOT and one.open_file >= 0
    }
    interests.pop(NO_ID, None)
    if not interests:
        return
    candidates = _candidates(session, np.array(sorted(interests), np.int64))
    if not len(candidates):
        return
    if not session.info.packets.available and not session.info.sockets.snapshot_count:
        yield Skip(rule=RULE.slug, reason="neither packets nor socket states: whether anything was left is not known")
        return
    groups: defaultdict[str, list[_Left]] = defaultdict(list)
    for read, following in candidates[:_LOOKED_AT].tolist():
        left = _judge(session, interests[int(session.event_connection[read])], read, following)
        if left is not None:
            groups[program(session, left.tgid)].append(left)
    for found in groups.values():
        proven = any(one.more >= 0 for one in found)
        sure = [one for one in found if one.more >= 0 or proven or _has_nothing_else(session, one)]
        if sure:
            yield _finding(session, sure, proven)


def _candidates(session: Session, connections: Ids) -> Ids:
    """Shape (k, 2): reads that filled their buffer, and the next on the same connection (-1: none) if it was not soon.

    The longest pauses first.
    """
    records = session.events.records
    watched = np.zeros(len(session.connections) + 1, np.bool_)
    watched[connections] = True
    rows = np.flatnonzero(_READS[session.event_call] & watched[session.event_connection])
    order = np.lexsort((session.effective_ns[rows], session.event_connection[rows]))
    rows = rows[order]
    calls, returned = records["call"][rows], records["ret"][rows]
    began, ended = spans(session, rows)
    same = np.append(session.event_connection[rows[1:]] == session.event_connection[rows[:-1]], False)
    following = np.where(same, np.append(rows[1:], NO_ID), NO_ID)
    pause = np.where(same, np.append(began[1:], 0), session.info.ended_ns) - ended
    peeked = (calls == Call.recvfrom) & (records["args"][rows, 3] & np.uint64(_MSG_PEEK) != 0)
    asked = records["args"][rows, 2].astype(np.int64)
    maybe = (returned > 0) & (pause >= _LEAST_NS) & ~_MANY[calls] & ~peeked & (_VECTORS[calls] | (asked == returned))
    for at in np.flatnonzero(maybe & _VECTORS[calls]).tolist():
        total = session.events.section(int(rows[at]), Section.IOV_TOTAL)
        maybe[at] = total is not None and int.from_bytes(total, "little") == int(returned[at])
    found = np.flatnonzero(maybe)
    found = found[np.argsort(-pause[found], kind="stable")]
    return np.stack([rows[found], following[found]], axis=1)


def _judge(session: Session, interest: EpollInterest, read: int, following: int) -> _Left | None:
    """What was left behind after this read; None where nothing was, or the program knows of it."""
    records = session.events.records
    connection = session.connections[int(session.event_connection[read])]
    if connection.role is not Role.SERVER:
        return None
    tgid, tid = int(records["tgid"][read]), int(records["tid"][read])
    since = int(records["exit_ns"][read])
    resumed = int(records["enter_ns"][following]) if following >= 0 else session.info.ended_ns
    gone = session.open_files[interest.open_file].released_ns
    ended = min(resumed, session.info.ended_ns if gone is None else gone)
    more = _next_packet(session, connection, since, ended)
    until = int(session.packet_ns[more]) if more >= 0 else ended
    if until - since < _LEAST_NS:
        return None
    wait = _wait_after(session, interest.epoll, tid, since, until)
    if wait < 0 or _touched(session, connection.id, since, int(records["enter_ns"][wait]), until):
        return None
    if following >= 0 and (more < 0 or resumed - until > _AT_ONCE_NS):
        # It went on without being told: it kept its own note.
        return None
    if following < 0 and (more >= 0 or until - since < GRACE_NS):
        return None
    socket, left = _left_behind(session, connection, read, since, until)
    if left <= 0 or _cannot_pass_on(session, tgid, connection.id, until):
        return None
    return _Left(
        connection=connection.id,
        interest=interest,
        tgid=tgid,
        read=read,
        wait=wait,
        bytes_left=left,
        since_ns=since,
        until_ns=until,
        socket=socket,
        more=more,
    )


def _inbound(session: Session, connection: Connection) -> Ids:
    """Packet rows with payload from the peer, in time."""
    rows = session.packets_of(connection.id)
    if connection.peer is None or not len(rows):
        return rows[:0]
    records = session.packets.records[rows]
    found: Ids = rows[(records["payload_bytes"] > 0) & (records["sport"] == connection.peer.port)]
    return found


def _next_packet(session: Session, connection: Connection, since: int, until: int) -> int:
    """The first packet with payload from the peer in that time; -1."""
    rows = _inbound(session, connection)
    times = session.packet_ns[rows]
    found = rows[(times > since) & (times <= until)]
    return int(found[0]) if len(found) else NO_ID


def _wait_after(session: Session, epoll: int, tid: int, since: int, until: int) -> int:
    """The thread's first wait on the instance that began after its read; -1."""
    waits = session.events_of_open_file(epoll)
    records = session.events.records
    began = records["enter_ns"][waits]
    fits = _EPOLL_WAITS[records["call"][waits]] & (records["tid"][waits] == tid) & (began > since) & (began < until)
    found = waits[fits]
    return int(found[0]) if len(found) else NO_ID


def _touched(session: Session, connection: int, since: int, wait_ns: int, until: int) -> bool:
    """Whether anything was done about the connection after the wait began, or its registration changed before."""
    records = session.events.records
    events = session.events_of(connection)
    began = np.where(records["enter_ns"][events] >= 0, records["enter_ns"][events], records["exit_ns"][events])
    later = (began > wait_ns) & (began < until)
    changed = (began > since) & (began < until) & (records["call"][events] == Call.epoll_ctl)
    return bool((later | changed).any())


def _left_behind(session: Session, connection: Connection, read: int, since: int, until: int) -> tuple[int, int]:
    """(socket row that shows it or -1, bytes left after the read); 0 bytes where nothing proves any."""
    rows = session.samples_of(connection.id)
    shown = session.sockets.records[rows]
    inside = (shown["time_ns"] > since) & (shown["time_ns"] < until) & np.isin(shown["state"], _CAN_BE_LEFT)
    rows, shown = rows[inside], shown[inside]
    if len(rows):
        # In CLOSE_WAIT the FIN counts as a byte.
        queued = shown["recv_q"].astype(np.int64) - (shown["state"] == TcpState.CLOSE_WAIT)
        if (shown["send_q"] > 0).all():
            return NO_ID, 0
        return int(rows[0]), int(queued.min())
    flow = session.flows[connection.flow] if connection.flow >= 0 else None
    lossless = session.info.packets.whole
    if flow is None or not connection.witnessed or not lossless or any(flow.retransmission_count):
        return NO_ID, 0
    packets = _inbound(session, connection)
    packets = packets[session.packet_ns[packets] <= since]
    came = int(session.packets.records["payload_bytes"][packets].sum())
    records = session.events.records
    events = session.events_of(connection.id)
    taken = events[_READS[records["call"][events]] & (records["ret"][events] > 0)]
    taken = taken[records["exit_ns"][taken] <= since]
    return NO_ID, came - int(records["ret"][taken].sum())


def _cannot_pass_on(session: Session, tgid: int, connection: int, until: int) -> bool:
    """Whether the process waits for room: the last write on some connection found none."""
    records = session.events.records
    events = session.events_of_tgid(tgid)
    events = events[_WRITES[records["call"][events]] & (session.effective_ns[events] < until)]
    refused = events[records["ret"][events] == _EAGAIN]
    on = session.event_connection
    return any(int(events[on[events] == one][-1]) in refused for one in np.unique(on[refused]).tolist())


def _has_nothing_else(session: Session, left: _Left) -> bool:
    """Whether the process can only be waiting for an event of this connection: one thread, no timer, no service."""
    process = session.processes.get(left.tgid)
    if process is None or len(process.tids) > 1:
        return False
    for one in session.interests:
        if one.epoll == left.interest.epoll and one.removed_ns is None:
            file = session.open_files[one.open_file]
            asked = file.connection >= 0 and session.connections[file.connection].role is Role.CLIENT
            if asked or file.kind in (FileKind.TIMERFD, FileKind.EPOLL):
                return False
    records = session.events.records
    waits = session.events_of_open_file(left.interest.epoll)
    waits = waits[_EPOLL_WAITS[records["call"][waits]] & (session.effective_ns[waits] > left.since_ns)]
    if not len(waits):
        return False
    timeouts = records["args"][waits, 3].astype(np.uint32).view(np.int32)
    endless = session.events.call(int(waits[-1])) is not Call.epoll_pwait2 and int(timeouts[-1]) < 0
    in_vain = int((records["ret"][waits] == 0).sum() - (records["exit_ns"][waits] < 0).sum())
    return endless or in_vain >= _WAITS_IN_VAIN


def _finding(session: Session, found: list[_Left], proven: bool) -> Finding:
    worst = max(found, key=lambda one: (one.more < 0, one.lasted_ns))
    connections = tuple(sorted({one.connection for one in found}))
    row = session.events.records[worst.read]
    asked = int(row["ret"])
    name = session.events.call(worst.read).name
    fds = {session.descriptors[int(session.event_descriptor[one.read])].fd for one in found}
    fd = session.descriptors[int(session.event_descriptor[worst.read])].fd
    registered = (
        "before watching began (fdinfo shows it)"
        if worst.interest.added_event < 0
        else f"at {since_start(session, worst.interest.added_ns)}"
    )
    resumed = [one for one in found if one.more >= 0]
    woken = max(resumed, key=lambda one: one.lasted_ns, default=None)
    hanging = len({one.connection for one in found if one.more < 0})
    outcome = []
    if hanging:
        of = "The connection" if len(connections) == 1 else f"{hanging} of {plural(len(connections), 'connection')}"
        outcome.append(f"{of} {'hangs' if hanging == 1 else 'hang'} so to the end of the session.")
    if woken is not None:
        outcome.append(
            f"{'The one' if hanging == 0 and len(resumed) == 1 else 'One'} that went on did so only when its client "
            f"sent more, {span(woken.lasted_ns)} later."
        )
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR,
        confidence=Confidence.CERTAIN if proven else Confidence.LIKELY,
        title=f"{plural(len(connections), 'connection')} left half read: one {name} a wake-up (EPOLLET)",
        tgid=worst.tgid,
        comm=session.comm(worst.tgid),
        fd=fd if len(fds) == 1 else None,
        connections=connections,
        count=len(connections),
        worst=worst.connection,
        explanation=(
            f"At {since_start(session, worst.since_ns)} {who(session, worst.tgid)} read {asked} bytes from fd {fd}, "
            f"all that it asked for, and went back to epoll_wait; {worst.bytes_left} more were there and stayed for "
            f"{span(worst.lasted_ns)}. It registered the connection with EPOLLET {registered}: epoll_wait tells of new "
            f"bytes alone, not of those left behind. {' '.join(outcome)}"
        ),
        remedy=(
            f"After each event of fd {fd} call {name} until it fails with EAGAIN or returns less than was asked for "
            "(non-blocking); or register it without EPOLLET."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, left: _Left) -> Iterator[Evidence]:
    yield from_event(session, left.read, "the buffer is full: there may be more")
    if left.interest.added_event >= 0:
        yield from_event(session, left.interest.added_event, "edge-triggered")
    else:
        yield from_proc(
            session.info.started_ns,
            f"/proc/{left.tgid}/fdinfo: tfd: {left.interest.fd} events: {left.interest.events:x} (EPOLLET)",
        )
    yield from_event(session, left.wait, "waits again, without another read")
    if left.socket >= 0:
        yield from_socket(session, left.socket, f"{left.bytes_left} bytes left behind")
    if left.more >= 0:
        yield from_packet(session, left.more, "the client sends more; only this wakes it")
