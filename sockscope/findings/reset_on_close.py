"""Closed with unread data: the peer gets a reset instead of an end.

What it reports:
    Connections that the program closed while bytes of the peer were still unread. Linux answers such a
    close with RST instead of FIN.

Why it matters:
    A RST throws away what the peer has received and not read yet, so the answer that was written just
    before the close may be lost: the client sees "connection reset by peer" instead of the 413, the
    error page, the farewell.

Evidence:
    The close, the RST right after it without a FIN before (on the wire, and as the kernel told it where the
    engine hears it), how many bytes had arrived and how many were read, and the last answer written.

Example:
    60 068 bytes arrived, 1 024 were read, `sendto(4, "HTTP/1.1 413 …")`, `close(4)`, RST 40 µs later.

Mend:
    After the last write: shutdown(fd, SHUT_WR), read and throw away what still comes (with a limit in
    time and bytes), then close ("lingering close"). Or read the whole request before answering.

False positives:
    SO_LINGER with 0 resets on purpose: that is abortive-linger's. Nor is a TLS close_notify left unread reported.
    Where nothing was written, or long before, or the program is the client, nothing is lost: info only.

References:
    RFC 1122 section 4.2.2.13; RFC 9112 section 9.6 (tear-down); net/ipv4/tcp.c __tcp_close().
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
    from_packet,
    from_proc,
    kept,
    plural,
    program,
    share,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.halves import arrived_bytes, flow_of, last_payload_row, packet_evidence
from sockscope.findings.shared.holding import Copy, Holdings, payload_moves, served_by, tcp_connections
from sockscope.findings.shared.linger import linger_of
from sockscope.findings.shared.told import reset, told_by_kernel
from sockscope.model.calls import CallGroup
from sockscope.model.connections import Connection, Role
from sockscope.model.findings import Confidence, Evidence, Finding, Need, Rule, Severity, Skip
from sockscope.model.tcp import TcpFlag

RULE = Rule(
    slug="reset-on-close",
    severity=Severity.WARNING,
    summary="closed with unread data: the peer gets RST and may lose the answer",
    needs=frozenset({Need.SYSCALLS, Need.PACKETS}),
    yields_to=frozenset({"abortive-linger", "edge-triggered-read-not-drained"}),
    groups=frozenset({CallGroup.NETWORK, CallGroup.DESCRIPTORS, CallGroup.TRANSFERS, CallGroup.TASKS}),
)

_TLS_ALERT = 0x15
_ALERT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reset:
    connection: Connection
    copy: Copy
    rst_ns: int
    unread_bytes: int
    arrived_bytes: int
    last_write: int
    """-1: nothing was written."""

    def severity(self, session: Session) -> Severity:
        fresh = is_fresh(session, self.last_write, self.copy)
        return Severity.WARNING if fresh and self.connection.role is not Role.CLIENT else Severity.INFO


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and severity."""
    holdings = Holdings(session)
    groups: defaultdict[tuple[str, Severity], list[_Reset]] = defaultdict(list)
    for connection in tcp_connections(session):
        case = _judge(session, holdings, connection)
        if case is not None and connection.id not in explained:
            groups[program(session, case.copy.tgid), case.severity(session)].append(case)
    for (name, severity), cases in groups.items():
        yield _finding(session, cases, severity, served_by(session, name))


def _judge(session: Session, holdings: Holdings, connection: Connection) -> _Reset | None:
    found = reset_by_close(session, holdings, connection)
    if found is None or _lingers(session, connection):
        return None
    last, rst_ns = found
    flow = flow_of(session, connection)
    if not connection.witnessed or flow is None or flow.syn_ns is None:
        return None
    arrived = arrived_bytes(session, connection, rst_ns)
    unread = arrived - connection.read_bytes
    if unread <= 0 or _is_tls_alert(session, connection, unread):
        return None
    return _Reset(
        connection=connection,
        copy=last,
        rst_ns=rst_ns,
        unread_bytes=unread,
        arrived_bytes=arrived,
        last_write=last_write(session, connection),
    )


def _lingers(session: Session, connection: Connection) -> bool:
    """SO_LINGER 0 was set: a reset is what the program asked for."""
    linger = linger_of(session, connection)
    return linger is not None and linger.aborts


def _is_tls_alert(session: Session, connection: Connection, unread: int) -> bool:
    if unread > _ALERT_BYTES:
        return False
    row = last_payload_row(session, connection)
    return row >= 0 and session.packets.payload_of(row)[:2] in (bytes([_TLS_ALERT, 3]),)


def _finding(session: Session, cases: list[_Reset], severity: Severity, total: int) -> Finding:
    cases.sort(key=lambda case: -case.unread_bytes)
    worst = cases[0]
    one = worst.copy.descriptor
    count, name = len(cases), who(session, worst.copy.tgid)
    closed_ns = one.closed_ns or 0
    told = (
        f"{name} closed {share(count, total)} with data of the peer unread. In the worst case "
        f"{plural(worst.arrived_bytes, 'byte')} had arrived and {worst.connection.read_bytes} were read when "
        f"fd {one.fd} was closed at {since_start(session, closed_ns)}: the kernel sent RST "
        f"{span(max(0, worst.rst_ns - closed_ns))} later, and no FIN"
    )
    if severity > Severity.INFO:
        written_ns = int(session.effective_ns[worst.last_write])
        told += (
            f". The last answer had been written only {span(max(0, closed_ns - written_ns))} before: what of it the "
            "peer had not read by then may be lost."
        )
    elif worst.last_write < 0:
        told += ". Nothing had been written, so no answer is lost."
    else:
        told += "."
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=Confidence.CERTAIN,
        title=f"{plural(count, 'connection')} reset: closed with unread data",
        tgid=worst.copy.tgid,
        comm=session.comm(worst.copy.tgid),
        fd=one.fd,
        connections=tuple(case.connection.id for case in cases),
        count=count,
        worst=worst.connection.id,
        explanation=told,
        remedy=(
            f"Before close({one.fd}): shutdown({one.fd}, SHUT_WR), then read until 0 is returned (at most a few "
            "seconds); or read the whole request before answering."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, case: _Reset) -> Iterator[Evidence]:
    one = case.copy.descriptor
    note = f"{case.unread_bytes} bytes unread"
    if one.closed_event >= 0:
        yield from_event(session, one.closed_event, note)
    yield from packet_evidence(session, case.connection, from_peer=False, flags=TcpFlag.RST, note="instead of a FIN")
    yield from told_by_kernel(session, reset(session, case.connection, sent=True), "sent by the close itself")
    reads, _ = payload_moves(session, session.events_of(case.connection.id))
    if len(reads):
        yield from_event(session, int(reads[-1]), "the last read")
    if case.last_write >= 0:
        yield from_event(session, case.last_write, "the answer that may be lost")
    row = last_payload_row(session, case.connection)
    if row >= 0:
        yield from_packet(session, row, "the last data of the peer")
    text = f"{case.arrived_bytes} bytes arrived, {case.connection.read_bytes} read"
    yield from_proc(int(np.int64(case.rst_ns)), text)
