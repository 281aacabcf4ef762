"""A listener's accept queue is full, and clients are turned away.

What it reports:
    Listening sockets whose queue snapshots show beyond its limit (Recv-Q above Send-Q: the queue holds the
    backlog and one), and clients whose SYN, or last ACK of the handshake, the kernel ignored meanwhile.

Why it matters:
    The kernel drops what does not fit, silently: the client tries again after 1 s, 3 s, 7 s. To its user the server
    hangs, in the server's own log nothing shows. A warning; certain where snapshots show the full queue and the
    wire the ignored clients, likely where only one of both was seen (for the other, two snapshots, or the
    namespace's counter of overflows), info where the queue was full and the wire shows that nobody was turned away.

Evidence:
    The LISTEN row in snapshots, SYNs that were sent again or never answered, the listen(2) call and its backlog, what
    the accepting thread did when the queue was full, ListenOverflows of the network namespace (of all its
    listeners together: it only supports).

Example:
    `listen(3, 2)`, 3 connections wait, and the SYNs of 7 clients are answered only when they are repeated, 1 s later.

Mend:
    Accept at once, whatever the requests need: the queue is for moments only. And give listen(2) a backlog that a burst
    fits into (SOMAXCONN); the kernel cuts it to net.core.somaxconn.

False positives:
    A queue is filled up to its limit for moments in health: one snapshot alone says nothing. A SYN that is
    repeated because the path lost it goes unanswered too: the queue must have been full, or the kernel have
    counted an overflow. A queue that nobody empties at all has its own rules, which come first (unaccepted-connection,
    edge-triggered-listener-not-drained, descriptor-exhaustion, blocking-call-in-event-loop, slow-reader, accept-stall):
    this is then told as their consequence.

References:
    listen(2) (backlog, somaxconn); tcp(7) tcp_abort_on_overflow; net/ipv4/tcp_input.c tcp_conn_request,
    include/net/sock.h sk_acceptq_is_full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.analysis.wire.columns import NEVER
from sockscope.findings.shared.accept_queue import accepts_of, doing_at, held_at
from sockscope.findings.shared.evidence import (
    NS_PER_MS,
    from_event,
    from_packet,
    from_proc,
    from_socket,
    kept,
    plural,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.on_wire import Wire
from sockscope.model.calls import Call
from sockscope.model.descriptors import Descriptor, OpenFile
from sockscope.model.findings import Confidence, Evidence, Finding, Need, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpFlag, TcpState

RULE = Rule(
    slug="backlog-overflow",
    severity=Severity.WARNING,
    summary="a listener's accept queue is full and clients are turned away",
    needs=frozenset({Need.SOCKETS}),
    follows=frozenset(
        {
            "unaccepted-connection",
            "edge-triggered-listener-not-drained",
            "descriptor-exhaustion",
            "blocking-call-in-event-loop",
            "slow-reader",
            "accept-stall",
        }
    ),
    groups=frozenset(),
    bears_loss=True,
)

_TWICE = 2
_UNANSWERED_NS = 100 * NS_PER_MS
_REPEATED_NS = 500 * NS_PER_MS
"""A SYN is repeated after 1 s (RFC 6298); one that comes again sooner is another's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Full:
    """One listener whose queue ran over.

    Attributes:
        rows: socket rows that show it full, in time; may be empty.
        limit: the backlog in force; peak: the most that waited.
        ignored: flows of clients whose SYN or ACK was ignored. packets: the repeated ones, packet rows.
        grown: by how much ListenOverflows of its namespace grew; 0 where unknown.
    """

    listener: OpenFile
    descriptor: Descriptor
    port: int
    rows: Ids
    limit: int
    peak: int
    ignored: tuple[int, ...]
    packets: Ids
    longest_ns: int
    grown: int

    @property
    def grade(self) -> tuple[Severity, Confidence] | None:
        if len(self.rows) and self.ignored:
            return Severity.WARNING, Confidence.CERTAIN
        if len(self.ignored) >= _TWICE and self.grown:
            return Severity.WARNING, Confidence.LIKELY
        return None


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a listener."""
    if not session.info.sockets.has_limits:
        yield Skip(rule=RULE.slug, reason="netstat does not tell the backlog of a listener: use ss -tan")
        return
    records = session.sockets.records
    listening = np.flatnonzero((records["state"] == TcpState.LISTEN) & (records["protocol"] == 6))
    if not len(listening):
        return
    overflowed = (records["recv_q"][listening] > records["send_q"][listening]).any()
    if not overflowed and not len(session.facts.namespaces):
        return
    find = _Listeners(session)
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    for row in listening.tolist():
        rows_of[find.of(int(records["inode"][row]), int(records["local_port"][row]))].append(row)
    rows_of.pop(NO_ID, None)
    if not overflowed and not any(_grown(session, int(records["netns"][rows[-1]])) for rows in rows_of.values()):
        return
    suspects = _unanswered(session)
    for number, rows in rows_of.items():
        full = _judge(session, session.open_files[number], np.array(rows, np.int64), suspects)
        if full is not None and (grade := _grade(session, full)) is not None:
            yield _finding(session, full, *grade)


def _grade(session: Session, full: _Full) -> tuple[Severity, Confidence] | None:
    if full.grade is not None or len(full.rows) < _TWICE:
        return full.grade
    seen = session.info.packets.available and session.info.packets.whole
    return (Severity.INFO, Confidence.CERTAIN) if seen else (Severity.WARNING, Confidence.LIKELY)


class _Listeners:
    """Which open file a LISTEN row is: by its inode, where that is known, else by its port."""

    def __init__(self, session: Session) -> None:
        files = [file for file in session.open_files if file.listening]
        self._by_inode = {file.inode: file.id for file in files if file.inode}
        # Of several that had the port one after the other, the last.
        self._by_port = {file.local.port: file.id for file in files if not file.inode and file.local is not None}

    def of(self, inode: int, port: int) -> int:
        """Its open file; -1 where it is none of the target's."""
        return self._by_inode.get(inode, self._by_port.get(port, NO_ID))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ignored:
    """A handshake of which the kernel ignored a packet.

    Attributes:
        row: the packet that had to be repeated, or its first repetition. waited_ns: from the first SYN to the answer.
    """

    flow: int
    port: int
    row: int
    waited_ns: int


def _unanswered(session: Session) -> list[_Ignored]:
    """Clients whose SYN or whose ACK of the SYN-ACK came to nothing, at least the first time."""
    ended = session.info.ended_ns
    columns = session.flows.columns
    repeated = columns.retransmission_count.any(axis=1)
    wanted = (columns.syn_ns != NEVER) & (repeated | (columns.synack_ns == NEVER))
    if not wanted.any():
        return []
    wire = Wire.of(session, wanted)
    opening = np.flatnonzero(wire.has(TcpFlag.SYN))
    answer = (wire.flags[opening] & np.uint8(TcpFlag.ACK)) != 0
    found = []
    for number in np.flatnonzero(wanted).tolist():
        flow = session.flows[number]
        mine = wire.flow[opening] == number
        syns, answers = opening[mine & ~answer], opening[mine & answer]
        if not len(syns) or flow.rst_ns[1] is not None:
            continue
        first = int(wire.time_ns[syns[0]])
        answered = int(wire.time_ns[answers[0]]) if len(answers) else ended
        row = -1
        if len(syns) > 1 and int(wire.time_ns[syns[1]]) - first >= _REPEATED_NS and answered > wire.time_ns[syns[1]]:
            row = int(wire.rows[syns[1]])
        elif not len(answers) and ended - first >= _UNANSWERED_NS:
            row = int(wire.rows[syns[0]])
        elif len(answers) > 1 and flow.established_ns is not None and flow.established_ns < wire.time_ns[answers[-1]]:
            # The ACK of the handshake was there, and the SYN-ACK was sent once more.
            row, answered = int(wire.rows[answers[-1]]), int(wire.time_ns[answers[-1]])
        if row >= 0:
            found.append(_Ignored(flow=number, port=flow.ends[1].port, row=row, waited_ns=answered - first))
    return found


def _judge(session: Session, listener: OpenFile, rows: Ids, suspects: list[_Ignored]) -> _Full | None:
    shown = session.sockets.records[rows]
    full = rows[shown["recv_q"] > shown["send_q"]]
    port = int(shown["local_port"][-1])
    ignored = sorted((one for one in suspects if one.port == port), key=lambda one: -one.waited_ns)
    if not len(full) and not ignored:
        return None
    at = int(session.sockets.records["time_ns"][full[0]]) if len(full) else int(shown["time_ns"][-1])
    held = held_at(session, listener.id, at) or session.holders_of(listener.id)
    if not held:
        return None
    return _Full(
        listener=listener,
        descriptor=held[0],
        port=port,
        rows=full,
        limit=int(shown["send_q"][-1]),
        peak=int(shown["recv_q"].max()),
        ignored=tuple(one.flow for one in ignored),
        packets=np.array([one.row for one in ignored], np.int64),
        longest_ns=max((one.waited_ns for one in ignored), default=0),
        grown=_grown(session, int(shown["netns"][-1])),
    )


def _grown(session: Session, netns: int) -> int:
    facts = session.facts.namespaces
    own = facts[facts["netns"] == netns]
    return int(own["listen_overflows"][-1]) - int(own["listen_overflows"][0]) if len(own) else 0


def _somaxconn(session: Session, full: _Full) -> int:
    facts = session.facts.namespaces
    netns = int(session.sockets.records["netns"][full.rows[0]]) if len(full.rows) else 0
    own = facts[facts["netns"] == netns] if netns else facts
    return int(own["somaxconn"][-1]) if len(own) else 0


def _listen_event(session: Session, listener: OpenFile) -> int:
    events = session.events_of_open_file(listener.id)
    rows = session.events.records[events]
    found = events[(rows["call"] == Call.listen) & (rows["ret"] == 0)]
    return int(found[-1]) if len(found) else NO_ID


def _backlog_words(session: Session, full: _Full, listened: int) -> str:
    """Where the limit comes from."""
    somaxconn = _somaxconn(session, full)
    if listened >= 0:
        asked = int(np.int64(session.events.records["args"][listened, 1]).astype(np.int32))
        if 0 <= full.limit < asked or (asked < 0 and somaxconn):
            return f"listen asked for a backlog of {asked}, which net.core.somaxconn cuts to {full.limit}"
        return f"listen was given a backlog of {asked}" + (f" (somaxconn would allow {somaxconn})" if somaxconn else "")
    if somaxconn and full.limit == somaxconn:
        return f"its backlog is {full.limit}, all that net.core.somaxconn allows"
    return f"its backlog is {full.limit}" + (f" (net.core.somaxconn allows {somaxconn})" if somaxconn else "")


def _acceptor(session: Session, full: _Full) -> tuple[int, str]:
    """(the call of the accepting thread when the queue was full, or its last before; what it did, in words)."""
    accepts = accepts_of(session, full.listener)
    when = (
        int(session.sockets.records["time_ns"][full.rows[0]])
        if len(full.rows)
        else int(session.packet_ns[full.packets[0]])
    )
    before = accepts[session.effective_ns[accepts] <= when]
    chosen = before[-1:] if len(before) else accepts[:1]
    if not len(chosen):
        return NO_ID, " No accept was seen in this session."
    tid = int(session.events.records["tid"][chosen[0]])
    doing, blocked = doing_at(session, tid, when)
    if doing < 0:
        return NO_ID, ""
    name, tgid = session.events.call(doing).name, int(session.events.records["tgid"][doing])
    if blocked:
        return doing, f" {who(session, tgid, tid)}, which accepts, was in {name} then."
    ago = span(when - int(session.effective_ns[doing]))
    return (
        doing,
        f" {who(session, tgid, tid)}, which accepts, was at work: its last call, {name}, had been {ago} before.",
    )


def _finding(session: Session, full: _Full, severity: Severity, confidence: Confidence) -> Finding:
    tgid, fd = session.tgid_of_table(full.descriptor.table), full.descriptor.fd
    listened = _listen_event(session, full.listener)
    doing, words = _acceptor(session, full)
    turned = len(full.ignored)
    parts = [f"The accept queue of port {full.port} ({who(session, tgid)}, fd {fd})"]
    if len(full.rows):
        first = int(session.sockets.records["time_ns"][full.rows[0]])
        parts.append(
            f" was full in {plural(len(full.rows), 'snapshot')} (first at {since_start(session, first)}): "
            f"{full.peak} waited, where {full.limit} and one find room: "
        )
    else:
        parts.append(" ran over between the snapshots: ")
    parts.append(_backlog_words(session, full, listened) + ".")
    if turned:
        parts.append(
            f" The kernel ignored {plural(turned, 'client')} meanwhile, which had to try again: the unluckiest waited "
            f"{span(full.longest_ns)} for its connection."
        )
    elif severity is Severity.INFO:
        parts.append(" Nobody was turned away as far as packets show.")
    if full.grown:
        parts.append(f" ListenOverflows of the whole network namespace grew by {full.grown}.")
    parts.append(words)
    what = f"{plural(turned, 'client')} turned away" if turned else "no room for more"
    flows = set(full.ignored)
    affected = tuple(one.id for one in session.connections if one.flow in flows) if flows else ()
    worst = next((one for one in affected if session.connections[one].flow == full.ignored[0]), None)
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=confidence,
        title=f"accept queue of port {full.port} full at {full.limit}+1: {what}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=affected,
        count=max(turned, 1),
        worst=worst,
        explanation="".join(parts),
        remedy=(
            f"Accept from fd {fd} as soon as clients come, and do the work elsewhere; give listen(fd {fd}) a backlog "
            "that a burst fits into (SOMAXCONN, 4096), and raise net.core.somaxconn where that is smaller."
        ),
        evidence=kept(_evidence(session, full, listened, doing)),
    )


def _evidence(session: Session, full: _Full, listened: int, doing: int) -> Iterator[Evidence]:
    for row in full.rows[:1].tolist():
        shown = session.sockets.records[row]
        yield from_socket(session, row, f"{shown['recv_q']} wait, the limit is {shown['send_q']}")
    for row in full.packets[:2].tolist():
        yield from_packet(session, row, _ignored_words(session, row))
    if listened >= 0:
        yield from_event(session, listened, "its backlog")
    if doing >= 0:
        yield from_event(session, doing, "what the accepting thread did")
    if len(full.rows) > 1:
        yield from_socket(session, int(full.rows[-1]), "still full")
    if full.grown:
        yield from_proc(session.info.ended_ns, f"ListenOverflows of the network namespace: +{full.grown}")


def _ignored_words(session: Session, row: int) -> str:
    """What the packet of an `_Ignored` shows."""
    if int(session.packets.records["flags"][row]) & TcpFlag.ACK:
        return "the SYN-ACK again: the client's ACK was ignored, for the queue was full"
    flow = int(session.packet_flow[row])
    if int(session.packet_ns[row]) > session.flows[flow].first_ns:
        return "again: the first SYN was ignored, for the queue was full"
    return "ignored: the queue is full"
