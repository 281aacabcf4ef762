"""Segments were lost on the way, and sent again.

What it reports:
    Segments with payload that the target had to send again, of how many it sent, on how many connections; how many
    of them only after its timer ran out, and the time lost so.

Why it matters:
    A segment that its receiver reports missing is sent again after a round trip. One that nobody reports (the last of
    an answer, or a path that is down for a moment) waits for the timer: 200 ms, and twice that each
    time. Loss also halves the rate. A warning from 2 % of all segments on (and five of them): TCP's rate goes with
    one over the root of the loss, and at 2 % little is left of a fast path. Info from 0.5 % (and three).
    Certain where packets show it; likely where only the kernel's counters do, which count probes too.

Evidence:
    The packets sent again on the worst connection, and how long each had been waited for; the kernel's own
    account of its retransmissions (bpf engine), total_retrans in snapshots, RetransSegs of the whole namespace.

Example:
    `127.0.0.1:8080 > 127.0.0.1:40112 PSH,ACK, 512 bytes`, and again 208 ms and 624 ms later.

Mend:
    Not in the program: look at the path (errors and drops of both interfaces, `ip -s link`, `ethtool -S`; a
    policer; a firewall that drops; a filter of the socket's own, SO_ATTACH_FILTER), and whether the receiver's
    host is overloaded.

False positives:
    SYN and SYN-ACK sent again mean a full backlog or nobody there: backlog-overflow tells. What is sent again while
    the peer's window is closed is dropped by its full buffer: slow-reader tells. A tail loss probe is not
    counted where the ACK was only delayed, nor keep-alive probes. Single ones are normal.

References:
    RFC 6298 (the timer), RFC 5681 (fast retransmit), RFC 8985 (RACK and tail loss probes); tcp(7);
    net/ipv4/tcp_timer.c.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    from_event,
    from_packet,
    from_proc,
    from_socket,
    kept,
    plural,
    program,
    share,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.holding import served_by
from sockscope.findings.shared.on_wire import Wire
from sockscope.findings.shared.options import switched_on
from sockscope.findings.shared.sent_again import SentAgain, sent_again
from sockscope.findings.shared.told import told_by_kernel
from sockscope.model.calls import Call
from sockscope.model.connections import Connection, Protocol
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.tcp import SegmentMark, TcpState

RULE = Rule(
    slug="retransmissions",
    severity=Severity.WARNING,
    summary="segments are lost and sent again",
    needs=frozenset(),
    yields_to=frozenset({"slow-reader"}),
    groups=frozenset(),
    bears_loss=True,
)

_WARNING_COUNT, _WARNING_SHARE = 5, 0.02
_INFO_COUNT, _INFO_SHARE = 3, 0.005
_UNKNOWN_SHARE_COUNT = 5
_KINDS = (
    (SegmentMark.FAST_RETRANSMISSION, "at once"),
    (SegmentMark.SPURIOUS_RETRANSMISSION, "in vain"),
    (SegmentMark.RTO, "after a timeout"),
)
_OPENING = np.array([TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.NEW_SYN_RECV], np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lossy:
    """One connection on which the target sent segments again.

    Attributes:
        count: how many. packets: their rows; empty where they are known from counters only.
        timeouts: how many of these after the timer; lost_ns: what was waited for it.
        fast: how many after duplicate ACKs. spurious: how many of what had been acknowledged already.
    """

    connection: Connection
    tgid: int
    fd: int
    count: int
    packets: Ids
    timeouts: int = 0
    fast: int = 0
    spurious: int = 0
    lost_ns: int = 0
    first_ns: int = 0


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    if session.info.packets.available and not session.info.packets.lost_count:
        found, counted = _on_the_wire(session), True
    else:
        found, counted = _in_counters(session), False
    groups: defaultdict[str, list[_Lossy]] = defaultdict(list)
    for lossy in found:
        if lossy.connection.id not in explained:
            groups[program(session, lossy.tgid)].append(lossy)
    sent = _segments_sent(session) if groups and counted else {}
    for name, several in groups.items():
        total = sent.get(name, 0)
        severity = _severity(sum(one.count for one in several), total, counted=counted)
        if severity is not None:
            yield _finding(session, sorted(several, key=lambda one: (-one.lost_ns, -one.count)), severity, total)


def _severity(count: int, total: int, *, counted: bool) -> Severity | None:
    if not counted:
        return Severity.INFO if count >= _UNKNOWN_SHARE_COUNT else None
    if count >= _WARNING_COUNT and count >= _WARNING_SHARE * total:
        return Severity.WARNING
    return Severity.INFO if count >= _INFO_COUNT and count >= _INFO_SHARE * total else None


def _owned(session: Session) -> Iterator[tuple[Connection, int, int]]:
    """Each TCP connection that a process has or had, with that process and its descriptor."""
    for one in session.connections:
        if one.protocol is Protocol.TCP and one.open_file >= 0:
            held = session.open_files[one.open_file].descriptors
            if held:
                descriptor = session.descriptors[held[0]]
                yield one, session.tgid_of_table(descriptor.table), descriptor.fd


def _on_the_wire(session: Session) -> Iterator[_Lossy]:
    """Those whose own side repeated segments, while the peer had room."""
    if not session.flows.columns.retransmission_count.any():
        return
    suspects = [
        (one, tgid, fd)
        for one, tgid, fd in _owned(session)
        if one.flow >= 0
        and session.flows[one.flow].retransmission_count[one.local_side]
        and not session.flows[one.flow].zero_window_count[1 - one.local_side]
    ]
    if not suspects:
        return
    wanted = np.zeros(len(session.flows), np.bool_)
    wanted[[one.flow for one, _, _ in suspects]] = True
    again: SentAgain = sent_again(session, wanted)
    for one, tgid, fd in suspects:
        own = again.of(one.flow, one.local_side)
        if len(own):
            by_timer = own[again.timeout[own]]
            marks = session.packet_marks[again.row[own]]
            yield _Lossy(
                connection=one,
                tgid=tgid,
                fd=fd,
                count=len(own),
                packets=again.row[own],
                timeouts=len(by_timer),
                fast=int((marks & np.uint16(SegmentMark.FAST_RETRANSMISSION) != 0).sum()),
                spurious=int((marks & np.uint16(SegmentMark.SPURIOUS_RETRANSMISSION) != 0).sum()),
                lost_ns=int(again.waited_ns[by_timer].sum()),
                first_ns=int(session.packet_ns[again.row[own[0]]]),
            )


def _segments_sent(session: Session) -> dict[str, int]:
    """Program → segments with payload that it sent, again or not, on all its connections."""
    wire = Wire.of(session)
    ends = (wire.flow * 2 + wire.side)[wire.length > 0]
    number = np.bincount(ends, minlength=2 * len(session.flows))
    names: dict[int, str] = {}
    sent: defaultdict[str, int] = defaultdict(int)
    for one, tgid, _ in _owned(session):
        if one.flow >= 0:
            name = names.setdefault(tgid, program(session, tgid))
            sent[name] += int(number[one.flow * 2 + one.local_side])
    return sent


def _told(session: Session) -> npt.NDArray[np.int64]:
    """Rows of the kernel's events about segments sent again, on connections that had been established."""
    kernel = session.kernel
    found: Ids = np.flatnonzero((kernel["call"] == Call.tcp_retransmit) & ~np.isin(kernel["old"], _OPENING))
    return found


def _in_counters(session: Session) -> Iterator[_Lossy]:
    """From the kernel's events where it told any, else from the growth of total_retrans between snapshots."""
    told = session.kernel_connection[_told(session)]
    by_event = np.bincount(told[told >= 0], minlength=len(session.connections))
    rows = session.sockets.records
    grown = np.unique(session.socket_connection[(rows["total_retrans"] > 0) & (session.socket_connection >= 0)])
    suspects = set(grown.tolist()) | set(np.flatnonzero(by_event).tolist())
    for one, tgid, fd in _owned(session) if suspects else ():
        if one.id in suspects:
            counted = rows["total_retrans"][session.samples_of(one.id)].astype(np.int64)
            count = max(int(by_event[one.id]), int(counted[-1] - counted[0]) if len(counted) else 0)
            if count:
                yield _Lossy(connection=one, tgid=tgid, fd=fd, count=count, packets=np.zeros(0, np.int64))


def _finding(session: Session, found: list[_Lossy], severity: Severity, total: int) -> Finding:
    worst = found[0]
    count = sum(one.count for one in found)
    timeouts, lost_ns = sum(one.timeouts for one in found), sum(one.lost_ns for one in found)
    on_wire = bool(len(worst.packets))
    of_all = f" of {total} ({count / total:.0%})" if total else ""
    segments = f"{plural(count, 'segment')}{of_all}"
    explanation = (
        f"{who(session, worst.tgid)} had to send {segments} again, on {share(len(found), _served(session, worst))}"
    )
    if on_wire:
        explanation += f" (first at {since_start(session, min(one.first_ns for one in found))})"
    explanation += "."
    if timeouts:
        explanation += (
            f" {timeouts} of these went out only after the retransmission timer: {span(lost_ns)} of waiting in all, "
            f"{span(worst.lost_ns)} of it on fd {worst.fd} alone."
        )
    explanation += _kinds(found)
    filtered = switched_on(session, session.events_of(worst.connection.id), "SO_ATTACH_FILTER")
    if len(filtered):
        at = since_start(session, int(session.effective_ns[filtered[0]]))
        explanation += f" The program itself attached a packet filter to fd {worst.fd} at {at}."
    explanation += _of_namespace(session, worst.connection)
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=Confidence.CERTAIN if on_wire else Confidence.LIKELY,
        title=f"{segments} sent again" + (f", {span(lost_ns)} lost in timeouts" if timeouts else ""),
        tgid=worst.tgid,
        comm=session.comm(worst.tgid),
        fd=worst.fd,
        connections=tuple(sorted(one.connection.id for one in found)),
        count=len(found),
        worst=worst.connection.id,
        explanation=explanation,
        remedy=(
            f"Look at the path to {_peers(found)} (drops in `ip -s link` and `ethtool -S` at both ends, firewalls, "
            "policers), at the receiving host's load, and for a filter on the sockets (SO_ATTACH_FILTER)."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _kinds(found: list[_Lossy]) -> str:
    """What made the sender do it, besides the timer."""
    fast, spurious = sum(one.fast for one in found), sum(one.spurious for one in found)
    said = f" {fast} went out at once, as duplicate ACKs told of the loss." if fast else ""
    if spurious:
        said += f" {plural(spurious, 'segment')} had been acknowledged already, and went out in vain."
    return said


def _served(session: Session, lossy: _Lossy) -> int:
    return served_by(session, program(session, lossy.tgid))


def _peers(found: list[_Lossy]) -> str:
    hosts = sorted({one.connection.peer.host for one in found if one.connection.peer is not None})
    return f"{hosts[0]} and {plural(len(hosts) - 1, 'other peer')}" if len(hosts) > 1 else "".join(hosts) or "the peers"


def _of_namespace(session: Session, connection: Connection) -> str:
    facts = session.facts.namespaces
    own = facts[facts["netns"] == connection.netns] if connection.netns else facts
    if len(own) < 2 or len(np.unique(own["netns"])) > 1:
        return ""
    grown = int(own["retrans_segs"][-1]) - int(own["retrans_segs"][0])
    return f" Its whole network namespace sent {plural(grown, 'segment')} again meanwhile." if grown > 0 else ""


def _kind(session: Session, packet: int) -> str:
    mark = int(session.packet_marks[packet])
    return next((f" {words}" for kind, words in _KINDS if mark & kind), "")


def _evidence(session: Session, worst: _Lossy) -> Iterator[Evidence]:
    records = session.packets.records
    if len(worst.packets):
        again = int(worst.packets[0])
        rows = session.packets_of(worst.connection.id)
        same = (records["seq"][rows] == records["seq"][again]) & (records["sport"][rows] == records["sport"][again])
        same &= records["payload_bytes"][rows] > 0
        every = rows[same]
        first_ns = int(session.packet_ns[every[0]])
        later = span(int(session.packet_ns[again]) - first_ns)
        again_words = f"sent again{_kind(session, again)}, {later} after the first time"
        yield from_packet(session, again, again_words)
        if int(every[0]) != again:
            yield from_packet(session, int(every[0]), "sent first")
        for row in every[1:].tolist():
            if row != again:
                yield from_packet(session, row, f"again, after {span(int(session.packet_ns[row]) - first_ns)}")
    for event in switched_on(session, session.events_of(worst.connection.id), "SO_ATTACH_FILTER")[:1].tolist():
        yield from_event(session, event, "a packet filter of the program's own")
    told = _told(session)
    mine = told[session.kernel_connection[told] == worst.connection.id]
    if len(mine):
        yield from told_by_kernel(session, int(mine[0]), f"the kernel told of {len(mine)}")
    samples = session.samples_of(worst.connection.id)
    if len(samples):
        counter = int(session.sockets.records["total_retrans"][samples[-1]])
        if counter:
            yield from_socket(session, int(samples[-1]), f"total_retrans {counter}")
    elif not len(worst.packets) and not len(mine):
        yield from_proc(session.info.ended_ns, f"{worst.count} segments sent again")
