"""A small write waits for the delayed ACK of the small write before it.

What it reports:
    Writes whose bytes left the socket 20 ms and more after they were written, at the moment at which the
    peer's ACK of the write before them came: Nagle's algorithm in the sender waits for an ACK that the
    delayed-ACK timer of the receiver holds back. Both wait for each other, 40 ms on Linux, up to 200 ms elsewhere.

Why it matters:
    Every such answer takes 40 ms longer, whatever the server and the network can do: a connection that carries
    requests one after the other does 24 a second. It does not show in CPU time, nor on a client that
    acknowledges at once, so it comes and goes with the client. A warning, from three stalls on: one may
    be chance. It is certain, for each stall is proved by the bytes themselves: written, held, and released by
    the ACK.

Evidence:
    The two writes, the packet that carried the first at once, the peer's ACK without data, and the packet with
    the second write's bytes right behind it. An option that was set before watching began makes no
    difference: with TCP_NODELAY the bytes would not have waited.

Example:
    `sendto(4, "HTTP/1.1 200 OK…", 38)` leaves at once, `sendto(4, "a small answer", 15)` 60 µs later leaves 41 ms
    later, right after the client's ACK of the first.

Mend:
    Give the kernel the whole answer at once: one buffer, or writev(2), sendmsg(2), MSG_MORE, TCP_CORK. Or set
    TCP_NODELAY, where messages are small and each is worth a packet.

False positives:
    Bytes also wait where the window or the congestion window is full: only little may be in flight.
    A path as slow as the delay itself is no stall of this kind: the handshake's round trip must be shorter than half
    of the ACK's delay. Bytes written with MSG_MORE, or under TCP_CORK, wait because the program wants it.

References:
    RFC 9293 section 3.7.4 (Nagle), RFC 1122 section 4.2.3.2 (delayed ACK); tcp(7) TCP_NODELAY, TCP_CORK,
    TCP_QUICKACK; net/ipv4/tcp_output.c tcp_nagle_test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    NS_PER_MS,
    from_event,
    from_packet,
    kept,
    plural,
    program,
    share,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.holding import payload_moves, served_by
from sockscope.findings.shared.on_wire import Mask, Wire, as_offset, connections_by_side
from sockscope.findings.shared.options import option_events, wants_more
from sockscope.model.calls import CallGroup
from sockscope.model.connections import Connection, Flow, Protocol
from sockscope.model.findings import Confidence, Evidence, Finding, Need, Rule, Severity, Skip
from sockscope.model.tcp import TcpFlag

RULE = Rule(
    slug="nagle-delayed-ack",
    severity=Severity.WARNING,
    summary="a small write waits for the peer's delayed ACK of the one before it: 40 ms lost",
    needs=frozenset({Need.SYSCALLS, Need.PACKETS}),
    follows=frozenset({"use-after-close"}),
    groups=frozenset({CallGroup.NETWORK, CallGroup.TRANSFERS}),
)

_LEAST = 3
_STALL_NS = 20 * NS_PER_MS
_LONGEST_NS = 600 * NS_PER_MS
"""RFC 1122 forbids delayed ACKs of more than 500 ms."""
_RELEASE_NS = 5 * NS_PER_MS
"""The ACK's arrival itself sends what was held; a busy machine may take a while between the two packets."""
_IN_FLIGHT_BYTES = 14_000
"""Below the initial congestion window (RFC 6928: ten segments)."""

_USUAL_SCALE = 7
"""Of windows whose SYN was not seen: what Linux advertises with its default buffers."""
_OTHERWISE = ("TCP_NODELAY", "TCP_CORK")
"""With these, bytes wait for other reasons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stall:
    """One write that waited.

    Attributes:
        sent: the packet before it, that was waited for; released: the packet that carried it; ack: the peer's,
            between the two. Packet rows.
        first: the write that `sent` carried; -1: not seen. held: the write that waited.
        lost_ns: from its entry to its packet.
    """

    sent: int
    ack: int
    released: int
    first: int
    held: int
    lost_ns: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    found: defaultdict[str, dict[int, list[_Stall]]] = defaultdict(dict)
    for connection, stalls in _stalls(session):
        tgid = int(session.events.records["tgid"][stalls[0].held])
        found[program(session, tgid)][connection.id] = stalls
    for by_connection in found.values():
        if sum(map(len, by_connection.values())) >= _LEAST:
            yield _finding(session, by_connection)


def _stalls(session: Session) -> Iterator[tuple[Connection, list[_Stall]]]:
    wire = Wire.of(session, _with_pauses(session))
    sent, ack, released = _released_by_ack(session, wire)
    if not len(released):
        return
    ours = connections_by_side(session)
    ends = wire.flow[released] * 2 + wire.side[released]
    for end in np.unique(ends).tolist():
        connection = ours.get((end // 2, end % 2))
        if connection is None or connection.protocol is not Protocol.TCP:
            continue
        mine = np.flatnonzero(ends == end)
        stalls = _of_connection(session, wire, connection, sent[mine], ack[mine], released[mine])
        if stalls:
            yield connection, stalls


def _with_pauses(session: Session) -> Mask:
    """Flows in which a bare packet comes after a pause, and one with data right behind it: no others need a look."""
    rows, begins = session.packets_of_flows()
    flow = np.repeat(np.arange(len(session.flows), dtype=np.int64), np.diff(begins))
    gap = np.diff(session.packet_ns[rows])
    at = np.flatnonzero((gap[:-1] >= _STALL_NS // 2) & (gap[1:] <= _RELEASE_NS)) + 1
    length = session.packets.records["payload_bytes"]
    at = at[(length[rows[at]] == 0) & (length[rows[at + 1]] > 0)]
    found = np.zeros(len(session.flows), np.bool_)
    found[flow[at]] = True
    return found


def _released_by_ack(session: Session, wire: Wire) -> tuple[Ids, Ids, Ids]:
    """Places of (a packet with data, the peer's late and bare ACK of it, the packet with the next data behind that)."""
    data = np.flatnonzero(wire.length > 0)
    before, after = [], []
    for side in (0, 1):
        own = data[wire.side[data] == side]
        before.append(own[:-1])
        after.append(own[1:])
    sent, released = np.concatenate(before), np.concatenate(after)
    ack = np.maximum(released - 1, 0)
    fits: Mask = (wire.flow[sent] == wire.flow[released]) & (wire.flow[ack] == wire.flow[released])
    fits &= (wire.side[ack] != wire.side[released]) & (wire.length[ack] == 0)
    fits &= (wire.ack[ack] == wire.seq[released]) & (wire.window[ack] > 0)
    fits &= (wire.flags[ack] & np.uint8(TcpFlag.ACK | TcpFlag.FIN | TcpFlag.RST | TcpFlag.SYN)) == TcpFlag.ACK
    fits &= as_offset(wire.seq[released], wire.seq[sent]) == wire.length[sent]
    fits &= wire.time_ns[released] - wire.time_ns[ack] <= _RELEASE_NS
    late = wire.time_ns[ack] - wire.time_ns[sent]
    fits &= (late >= _STALL_NS) & (late <= _LONGEST_NS)
    sent, ack, released = sent[fits], ack[fits], released[fits]
    free = _was_free(session, wire, ack, released) if len(released) else np.zeros(0, np.bool_)
    return sent[free], ack[free], released[free]


def _was_free(session: Session, wire: Wire, ack: Ids, released: Ids) -> Mask:
    """Whether what was held might have gone before that ACK: the window had room for it, and little was in flight."""
    scale = np.full(2 * len(session.flows), _USUAL_SCALE, np.int64)
    opening = np.flatnonzero(wire.has(TcpFlag.SYN))
    told = session.packets.records["wscale"][wire.rows[opening]].astype(np.int64)
    scale[wire.flow[opening] * 2 + wire.side[opening]] = np.maximum(told, 0)
    free = np.zeros(len(released), np.bool_)
    for side in (0, 1):
        mine = np.flatnonzero(wire.side[ack] == side)
        peers = np.flatnonzero((wire.side == side) & wire.has(TcpFlag.ACK))
        at = np.searchsorted(peers, ack[mine]) - 1
        before = peers[np.maximum(at, 0)]
        shift = np.where(wire.has(TcpFlag.SYN)[before], 0, scale[wire.flow[before] * 2 + side])
        window = wire.window[before].astype(np.int64) << shift
        in_flight = as_offset(wire.seq[released[mine]], wire.ack[before])
        good = (at >= 0) & (wire.flow[before] == wire.flow[released[mine]])
        good &= (in_flight > 0) & (in_flight < _IN_FLIGHT_BYTES)
        free[mine] = good & (window - in_flight >= wire.length[released[mine]])
    return free


def _of_connection(
    session: Session, wire: Wire, connection: Connection, sent: Ids, ack: Ids, released: Ids
) -> list[_Stall]:
    delay = wire.time_ns[ack] - wire.time_ns[sent]
    fits = delay > 2 * _round_trip_ns(session.flows[connection.flow])
    if not fits.any() or any(len(option_events(session, connection, name)) for name in _OTHERWISE):
        return []
    _, writes = payload_moves(session, session.events_of(connection.id))
    entered = session.events.records["enter_ns"][writes]
    order = np.argsort(entered, kind="stable")
    writes, entered = writes[order], entered[order]
    # The first write that was entered after the packet before had left cannot be in that: it begins the next.
    at = np.searchsorted(entered, wire.time_ns[sent], "right")
    fits &= at < len(writes)
    at = np.minimum(at, max(len(writes) - 1, 0))
    if not fits.any():
        return []
    fits &= entered[at] <= wire.time_ns[ack] - _STALL_NS
    fits &= ~wants_more(session, writes[at])
    return [
        _Stall(
            sent=int(wire.rows[sent[one]]),
            ack=int(wire.rows[ack[one]]),
            released=int(wire.rows[released[one]]),
            first=int(writes[at[one] - 1]) if at[one] else -1,
            held=int(writes[at[one]]),
            lost_ns=int(wire.time_ns[released[one]] - entered[at[one]]),
        )
        for one in np.flatnonzero(fits).tolist()
    ]


def _round_trip_ns(flow: Flow) -> int:
    """The longer leg of the handshake as it was captured: at either end that is the whole way; 0: not seen."""
    times = [at for at in (flow.syn_ns, flow.synack_ns, flow.established_ns) if at is not None]
    return max((later - earlier for earlier, later in pairwise(times)), default=0)


def _finding(session: Session, found: dict[int, list[_Stall]]) -> Finding:
    every = [(stall, number) for number, stalls in found.items() for stall in stalls]
    worst, connection = max(every, key=lambda one: one[0].lost_ns)
    row = session.events.records[worst.held]
    tgid, fd, call = int(row["tgid"]), int(row["args"][0]), session.events.call(worst.held).name
    lost_ns = sorted(stall.lost_ns for stall, _ in every)
    median = span(lost_ns[len(lost_ns) // 2])
    first_ns = min(int(session.packet_ns[stall.sent]) for stall, _ in every)
    held_bytes, released = int(row["ret"]), session.packets.records["payload_bytes"][worst.released]
    of_what = served_by(session, program(session, tgid))
    known = (
        "TCP_NODELAY was never set on it."
        if session.connections[connection].witnessed
        else "TCP_NODELAY is not set on it, or the bytes would not have waited."
    )
    before = ""
    if worst.first >= 0:
        gap = int(row["enter_ns"]) - int(session.events.records["enter_ns"][worst.first])
        before = (
            f", {span(gap)} after {session.events.call(worst.first).name} of "
            f"{session.events.records['ret'][worst.first]} bytes"
        )
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING,
        confidence=Confidence.CERTAIN,
        title=f"{plural(len(every), 'write')} waited for the peer's delayed ACK, {median} each",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(sorted(found)),
        count=len(found),
        worst=connection,
        explanation=(
            f"{plural(len(every), 'write')} on {share(len(found), of_what)} of {who(session, tgid)} lay in the socket "
            f"until the ACK of the bytes before them came, {span(sum(lost_ns))} in all (first at "
            f"{since_start(session, first_ns)}). In the worst case {call} of {plural(held_bytes, 'byte')} on fd {fd}"
            f"{before}, left only {span(worst.lost_ns)} later, in a packet of {plural(int(released), 'byte')}: Nagle's "
            f"algorithm holds a small segment while another is not acknowledged, and the peer delays that "
            f"ACK, since it waits for the rest. {known}"
        ),
        remedy=(
            f"Write the whole message to fd {fd} at once (one buffer, writev, sendmsg, or MSG_MORE on all {call} calls "
            "but the last); or set TCP_NODELAY on the connection, or once on the listener."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, worst: _Stall) -> Iterator[Evidence]:
    yield from_event(session, worst.held, f"its bytes leave {span(worst.lost_ns)} later")
    if worst.first >= 0:
        yield from_event(session, worst.first, "the write before it")
    yield from_packet(session, worst.sent, "leaves at once")
    delay = int(session.packet_ns[worst.ack] - session.packet_ns[worst.sent])
    yield from_packet(session, worst.ack, f"the peer's ACK, delayed by {span(delay)}")
    yield from_packet(session, worst.released, "what was held leaves")
