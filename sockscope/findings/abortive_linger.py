"""SO_LINGER with a time of 0: close sends RST, and what the peer has not got yet is thrown away.

What it reports:
    Connections that the program closed with SO_LINGER {on, 0 seconds} set on them (or on their listener, from
    which accepted sockets inherit it), so that they ended with RST instead of FIN.

Why it matters:
    Such a close throws away what is still in the send buffer, and nothing that gets lost on the way is sent again:
    the client gets the beginning of its answer and "connection reset by peer". It works in every test with a
    short answer and a fast client. Where bytes of a fresh answer were not acknowledged at the close that is a
    warning. Where all was acknowledged, or nothing was written, nothing is lost: info, because the option is
    also set on purpose (no TIME_WAIT; to drop a client that does not read).

Evidence:
    The setsockopt, the close, the RST right after it without a FIN before, how much had been written, sent and
    acknowledged by then. Certain with the setsockopt witnessed; likely where the option must have been set before
    watching began: RST at close though nothing was left unread.

Example:
    `setsockopt(5, SOL_SOCKET, SO_LINGER, {onoff=1, linger=0})`, `sendto(5, …, 100000) = 100000`, `close(5)`, RST
    30 µs later: 96 928 of the 100 000 bytes were thrown away.

Mend:
    Take the option away: close then sends what is left, and FIN. Against many sockets in TIME_WAIT on the server
    let the clients close first (keep-alive). A limit for clients that do not read is TCP_USER_TIMEOUT.

False positives:
    A program that waited a second or more for its peer before it aborted (nginx's
    reset_timedout_connection), one that is the client, or one whose peer has everything: info at most.
    A close with unread data resets as well, that is reset-on-close: it is silent where this option was set,
    and this rule wants the queue empty where it was not seen to be set.

References:
    socket(7) SO_LINGER; RFC 9293 section 3.10.7.1 (ABORT call); net/ipv4/tcp.c __tcp_close(); RFC 1337.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Session
from sockscope.findings.shared.close_resets import is_fresh, last_write, reset_by_close
from sockscope.findings.shared.evidence import (
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
from sockscope.findings.shared.halves import arrived_bytes, flow_of, packet_evidence
from sockscope.findings.shared.holding import Copy, Holdings, served_by, tcp_connections
from sockscope.findings.shared.linger import SO_LINGER, SOL_SOCKET, Linger, linger_of
from sockscope.findings.shared.told import reset, told_by_kernel
from sockscope.model.calls import Call, CallGroup
from sockscope.model.connections import Connection, Role
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.sockaddr import encode_key
from sockscope.model.tcp import TcpFlag

RULE = Rule(
    slug="abortive-linger",
    severity=Severity.WARNING,
    summary="SO_LINGER 0: close resets the connection and throws away what was not sent",
    groups=frozenset({CallGroup.NETWORK, CallGroup.DESCRIPTORS, CallGroup.TRANSFERS}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Abort:
    """One connection that was aborted.

    Attributes:
        linger: None: it was set before watching began, by all that is known.
        lost_bytes: written, and not acknowledged when the RST went out; unsent_bytes: those never sent at all.
        last_write: -1: nothing was written.
    """

    connection: Connection
    copy: Copy
    linger: Linger | None
    rst_ns: int
    lost_bytes: int
    unsent_bytes: int
    last_write: int

    def severity(self, session: Session) -> Severity:
        harms = self.lost_bytes > 0 and self.connection.role is not Role.CLIENT
        return Severity.WARNING if harms and is_fresh(session, self.last_write, self.copy) else Severity.INFO


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program: of those that did harm, where there are any."""
    records = session.events.records
    options = records["args"][np.flatnonzero(session.event_call == Call.setsockopt)]
    is_set = bool(((options[:, 1] == SOL_SOCKET) & (options[:, 2] == SO_LINGER)).any())
    if not session.info.packets.available and not len(session.kernel):
        if is_set:
            yield Skip(rule=RULE.slug, reason="SO_LINGER was set, and no packets were captured that show the resets")
        return
    holdings = Holdings(session)
    groups: defaultdict[str, list[_Abort]] = defaultdict(list)
    for connection in tcp_connections(session):
        case = _judge(session, holdings, connection, is_set=is_set)
        if case is not None and connection.id not in explained:
            groups[program(session, case.copy.tgid)].append(case)
    for name, cases in groups.items():
        severity = max(case.severity(session) for case in cases)
        worst = [case for case in cases if case.severity(session) is severity]
        yield _finding(session, worst, severity, served_by(session, name))


def _judge(session: Session, holdings: Holdings, connection: Connection, *, is_set: bool) -> _Abort | None:
    found = reset_by_close(session, holdings, connection)
    if found is None:
        return None
    last, rst_ns = found
    linger = linger_of(session, connection) if is_set else None
    if linger is None and not _must_have_been_set(session, connection, last.descriptor.closed_ns or 0):
        return None
    if linger is not None and not linger.aborts:
        return None
    lost, unsent = _lost(session, connection, rst_ns)
    return _Abort(
        connection=connection,
        copy=last,
        linger=linger,
        rst_ns=rst_ns,
        lost_bytes=lost,
        unsent_bytes=unsent,
        last_write=last_write(session, connection),
    )


def _must_have_been_set(session: Session, connection: Connection, closed_ns: int) -> bool:
    """Nothing was unread, so only the option explains the RST; and it may have been set before watching began."""
    flow = flow_of(session, connection)
    if flow is None:
        return False
    if connection.witnessed:
        listener = session.open_files[connection.listener] if connection.listener >= 0 else None
        unknown = listener is not None and not listener.witnessed
        return (
            unknown
            and flow.syn_ns is not None
            and arrived_bytes(session, connection, closed_ns) <= (connection.read_bytes)
        )
    samples = session.samples_of(connection.id)
    samples = samples[session.sockets.records["time_ns"][samples] < closed_ns]
    if not len(samples) or int(session.sockets.records["recv_q"][samples[-1]]):
        return False
    data_ns = flow.last_payload_ns[1 - connection.local_side]
    return data_ns is None or data_ns < int(session.sockets.records["time_ns"][samples[-1]])


def _lost(session: Session, connection: Connection, rst_ns: int) -> tuple[int, int]:
    """(bytes written and not acknowledged before the RST, those of them that never went out)."""
    flow, rows = flow_of(session, connection), session.packets_of(connection.id)
    if flow is None or connection.local is None or not len(rows):
        return 0, 0
    rows = rows[session.packet_ns[rows] <= rst_ns]
    packets = session.packets.records[rows]
    end = flow.ends[connection.local_side]
    ours = packets["sport"] == end.port
    if flow.ends[0].port == flow.ends[1].port:
        ours = (packets["src"] == np.frombuffer(encode_key(end), np.uint8)).all(axis=1)
    sent = packets[ours & ((packets["flags"] & TcpFlag.RST) == 0)]
    acks = packets[~ours & ((packets["flags"] & TcpFlag.ACK) != 0)]
    if not len(sent):
        return 0, 0
    begins = bool(sent["flags"][0] & TcpFlag.SYN)
    base = np.uint32(int(sent["seq"][0]) + begins & 0xFFFF_FFFF)
    out = int((sent["seq"] + sent["payload_bytes"] - base).astype(np.int32).max())
    acked = int((acks["ack"] - base).astype(np.int32).max()) if len(acks) else 0
    written = connection.written_bytes if begins and connection.witnessed else out
    return max(0, written - max(0, acked)), max(0, written - max(0, out))


def _finding(session: Session, cases: list[_Abort], severity: Severity, total: int) -> Finding:
    cases.sort(key=lambda case: (-case.lost_bytes, case.linger is None))
    worst = cases[0]
    one, count, name = worst.copy.descriptor, len(cases), who(session, worst.copy.tgid)
    closed_ns = one.closed_ns or 0
    how = "SO_LINGER with 0 seconds was set on"
    if worst.linger is None:
        how = "nothing was left unread, so SO_LINGER with 0 seconds must have been set, before watching began, on"
    told = (
        f"{name} closed {share(count, max(total, count))} by RST: {how} "
        f"{'the listener' if _by_listener(session, worst) else 'the socket'}. On fd {one.fd} the RST went out "
        f"{span(max(0, worst.rst_ns - closed_ns))} after the close at {since_start(session, closed_ns)}."
    )
    if severity > Severity.INFO:
        written_ns = int(session.effective_ns[worst.last_write])
        told += (
            f" Its answer had been written {span(max(0, closed_ns - written_ns))} before, and "
            f"{plural(worst.lost_bytes, 'byte')} of it were not acknowledged by then: {_fate(worst)}."
        )
        if count > 1:
            told += f" {plural(sum(case.lost_bytes for case in cases), 'byte')} on all of these."
        title = f"{plural(count, 'connection')} aborted by SO_LINGER 0 with the answer under way"
    elif worst.lost_bytes:
        told += f" {plural(worst.lost_bytes, 'byte')} had waited for the peer for a while: it may be meant."
        title = f"{plural(count, 'connection')} aborted by SO_LINGER 0"
    else:
        told += " The peer had acknowledged all that was written, so nothing is lost."
        title = f"{plural(count, 'connection')} ended by RST on purpose (SO_LINGER 0), nothing lost"
    call = "set before" if worst.linger is None else f"setsockopt({_fd_of(session, worst)}, SOL_SOCKET, SO_LINGER)"
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=Confidence.LIKELY if worst.linger is None else Confidence.CERTAIN,
        title=title,
        tgid=worst.copy.tgid,
        comm=session.comm(worst.copy.tgid),
        fd=one.fd,
        connections=tuple(case.connection.id for case in cases),
        count=count,
        worst=worst.connection.id,
        explanation=told,
        remedy=(
            f"Take SO_LINGER 0 away ({call}): close({one.fd}) then goes on sending what is left, and ends with FIN. "
            "Where clients that do not read must be dropped, do that after a time limit."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _fate(case: _Abort) -> str:
    if case.unsent_bytes:
        return f"{case.unsent_bytes} had not even been sent, and were thrown away"
    return "what of it is lost on the way is not sent again"


def _by_listener(session: Session, case: _Abort) -> bool:
    file = int(session.event_open_file[case.linger.event]) if case.linger is not None else -1
    return file >= 0 and file != case.connection.open_file


def _fd_of(session: Session, case: _Abort) -> int:
    assert case.linger is not None
    return int(session.events.records["args"][case.linger.event][0])


def _evidence(session: Session, case: _Abort) -> Iterator[Evidence]:
    one = case.copy.descriptor
    if case.linger is not None:
        yield from_event(session, case.linger.event, "from now on close means abort")
    if one.closed_event >= 0:
        note = f"{case.lost_bytes} bytes not acknowledged" if case.lost_bytes else "nothing is under way"
        yield from_event(session, one.closed_event, note)
    yield from packet_evidence(session, case.connection, from_peer=False, flags=TcpFlag.RST, note="instead of a FIN")
    yield from told_by_kernel(session, reset(session, case.connection, sent=True), "sent by the close itself")
    if case.last_write >= 0:
        yield from_event(session, case.last_write, "the last of the answer")
    written = case.connection.written_bytes
    text = f"{written} bytes written, {written - case.lost_bytes} acknowledged, {case.unsent_bytes} never sent"
    if case.lost_bytes <= written:
        yield from_proc(case.rst_ns, text)
