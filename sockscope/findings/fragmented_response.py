"""An answer is written in very many small pieces.

What it reports:
    Answers for which the program called write (send, writev, …) at least 20 times, one right after the other, with
    fewer than 128 bytes each on average: how many writes and packets each took, and how large they were.

Why it matters:
    Each write is a syscall, and without Nagle's algorithm a packet: some 66 bytes of headers on the wire for a few of
    payload, an interrupt and a wake-up at the receiver for each. A large answer made so takes ten times the
    CPU time on both sides. With Nagle's algorithm there are fewer packets, and 40 ms stalls
    (nagle-delayed-ack). A warning where most answers of a program are written so and go out so; info where only some
    are (from three on), or where the kernel still put them together into few packets. Certain: it is counted.

Evidence:
    The first and the last write of the worst answer and how many lie between; packets of the answer on the
    wire, where they were captured.

Example:
    `json.dump(rows, wfile)` with an unbuffered file: 812 times `sendto(4, …, 3)` for 2.4 KiB, in 812 packets.

Mend:
    Put the answer together in a buffer (a buffered file, BytesIO, a string builder) and write it once; where it is too
    large for that, in pieces of 16 KiB and more. Headers and body from different places go out together by
    writev(2), MSG_MORE, or TCP_CORK.

False positives:
    Headers and body in two or three writes are no fault. An answer that comes to be bit by bit (events, progress, a
    relay) is written so rightly: where there are more than 5 ms between two writes on average, or the thread
    reads from another connection or pipe, or waits, between them, nothing is reported; nor where the program asks the
    kernel to gather (MSG_MORE, TCP_CORK).

References:
    tcp(7) TCP_CORK, TCP_NODELAY; send(2) MSG_MORE; writev(2); RFC 896.
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
    from_event,
    from_proc,
    kept,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.on_wire import Mask, Wire
from sockscope.findings.shared.options import corked_connections, gathering_writes
from sockscope.model.calls import READS, WAITS, CallGroup
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.seed import FileKind

RULE = Rule(
    slug="fragmented-response",
    severity=Severity.WARNING,
    summary="an answer is written in very many small pieces",
    yields_to=frozenset({"nagle-delayed-ack"}),
    groups=frozenset({CallGroup.NETWORK, CallGroup.TRANSFERS}),
)

_WRITES = 20
_MEAN_BYTES = 128
_GAP_NS = 5 * NS_PER_MS
_ANSWERS = 3
_PACKETS = 10
"""Fewer a fragmented answer: the kernel put them together."""
_PAUSE_NS = NS_PER_MS

_READS = np.array(sorted(READS), np.uint16)
_WAITS = np.array(sorted(WAITS), np.uint16)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """The fragmented answers of one program.

    Attributes:
        rows: rows of `session.exchanges`, most writes first.
        answers: how many answers the program gave in all.
        packets: shape (rows,), how many packets carried each; None where they were not captured.
    """

    rows: Ids
    answers: int
    packets: Ids | None

    @property
    def severity(self) -> Severity:
        most = 2 * len(self.rows) >= self.answers
        each_a_packet = self.packets is None or float(np.median(self.packets)) >= _PACKETS
        return Severity.WARNING if most and each_a_packet else Severity.INFO


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    made = session.exchanges
    many = np.flatnonzero((made["answered"] != 0) & (made["write_count"] >= _WRITES))
    if not len(many):
        return
    rows = many[made["written_bytes"][many] < made["write_count"][many].astype(np.int64) * _MEAN_BYTES]
    rows = rows[_in_one_go(made[rows]) & ~np.isin(made["connection"][rows], sorted(explained))]
    rows = rows[~_gathered(session, rows)]
    rows = rows[~_passed_on(session, rows)]
    if not len(rows):
        return
    name_of = {tgid: program(session, tgid) for tgid in np.unique(made["tgid"]).tolist()}
    answers: defaultdict[str, int] = defaultdict(int)
    for tgid, number in zip(*np.unique(made["tgid"][made["answered"] != 0], return_counts=True), strict=True):
        answers[name_of[int(tgid)]] += int(number)
    names = np.array([name_of[tgid] for tgid in made["tgid"][rows].tolist()])
    for name in sorted(set(names.tolist())):
        own = rows[names == name]
        if len(own) >= _ANSWERS:
            own = own[np.argsort(-made["write_count"][own].astype(np.int64), kind="stable")]
            packets = _packets(session, own)
            yield _finding(session, _Pieces(rows=own, answers=answers[name], packets=packets))


def _in_one_go(made: npt.NDArray[np.void]) -> Mask:
    took = made["last_write_ns"] - made["first_write_ns"]
    found: Mask = (made["first_write_ns"] >= 0) & (took < (made["write_count"].astype(np.int64) - 1) * _GAP_NS)
    return found


def _gathered(session: Session, rows: Ids) -> Mask:
    """Answers on connections where the program asks the kernel to gather what it writes."""
    made, count = session.exchanges, len(session.connections)
    more = session.event_connection[gathering_writes(session)]
    gathering = np.bincount(more[more >= 0], minlength=count)
    written = np.bincount(made["connection"], weights=made["write_count"], minlength=count)
    asked = (gathering > 0) & (2 * gathering >= written)
    asked[corked_connections(session)] = True
    found: Mask = asked[made["connection"][rows]]
    return found


def _passed_on(session: Session, rows: Ids) -> Mask:
    """Answers whose thread waited, or read from elsewhere, about as often as it wrote: they came to be bit by bit."""
    made, records = session.exchanges, session.events.records
    piped = np.array([file.kind == FileKind.PIPE for file in session.open_files] or [False], np.bool_)
    found = np.zeros(len(rows), np.bool_)
    for tid in np.unique(made["tid"][rows]).tolist():
        events = session.events_of_tid(tid)
        calls = records["call"][events]
        elsewhere = (session.event_connection[events] >= 0) | (
            (session.event_open_file[events] >= 0) & piped[session.event_open_file[events]]
        )
        took = records["exit_ns"][events] - records["enter_ns"][events]
        breaks = (np.isin(calls, _READS) & elsewhere) | (np.isin(calls, _WAITS) & (took >= _PAUSE_NS))
        counted = np.concatenate([[0], np.cumsum(breaks)])
        times = session.effective_ns[events]
        own = np.flatnonzero(made["tid"][rows] == tid)
        first, last = (np.searchsorted(times, made[name][rows[own]]) for name in ("first_write_ns", "last_write_ns"))
        found[own] = 2 * (counted[last] - counted[first]) >= made["write_count"][rows[own]]
    return found


def _packets(session: Session, rows: Ids) -> Ids | None:
    """How many packets with payload the target sent during each answer; None where a connection's were not captured."""
    made = session.exchanges
    connections = [session.connections[number] for number in made["connection"][rows].tolist()]
    if not session.info.packets.whole or any(one.flow < 0 for one in connections):
        return None
    flow = np.array([one.flow for one in connections], np.int64)
    side = np.array([one.local_side for one in connections], np.int64)
    wanted = np.zeros(len(session.flows), np.bool_)
    wanted[flow] = True
    wire = Wire.of(session, wanted)
    data = np.flatnonzero(wire.length > 0)
    # One rising key a direction of a flow, so that one sorted search answers for all.
    length = session.info.ended_ns - session.info.started_ns + 2
    order = np.argsort(wire.flow[data] * 2 + wire.side[data], kind="stable")
    data = data[order]

    def key(end: Ids, when: Ids) -> Ids:
        return end * length + np.clip(when - session.info.started_ns, 0, length - 1)

    keys = key(wire.flow[data] * 2 + wire.side[data], wire.time_ns[data])
    first = np.searchsorted(keys, key(flow * 2 + side, made["first_write_ns"][rows]))
    last = np.searchsorted(keys, key(flow * 2 + side, made["last_write_ns"][rows]), "right")
    found: Ids = last - first
    return found if found.all() else None


def _finding(session: Session, pieces: _Pieces) -> Finding:
    made, rows = session.exchanges, pieces.rows
    worst = made[rows[0]]
    event = int(worst["first_write_event"])
    tgid, fd = int(worst["tgid"]), int(session.events.records["args"][event][0])
    call = session.events.call(event).name
    writes, total = int(worst["write_count"]), int(worst["written_bytes"])
    usual = int(np.median(made["write_count"][rows]))
    connections = np.unique(made["connection"][rows]).tolist()
    which = f"{'All' if len(rows) == pieces.answers else f'{len(rows)} of'} {pieces.answers} answers"
    first_ns = int(made["first_write_ns"][rows].min())
    sent = "" if pieces.packets is None else f", {plural(int(pieces.packets[0]), 'packet')} on the wire"
    mean = int(made["written_bytes"][rows].sum() / made["write_count"][rows].sum())
    return Finding(
        rule=RULE.slug,
        severity=pieces.severity,
        confidence=Confidence.CERTAIN,
        title=f"{which[0].lower() + which[1:]} written in about {usual} pieces of {plural(mean, 'byte')} each",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(connections),
        count=len(connections),
        worst=int(worst["connection"]),
        explanation=(
            f"{which} of {who(session, tgid)} on {plural(len(connections), 'connection')} were written in {_WRITES} "
            f"pieces and more (first at {since_start(session, first_ns)}), {plural(mean, 'byte')} a write on average. "
            f"The worst, on fd {fd}, took {writes} writes for {plural(total, 'byte')}{sent}, and "
            f"{span(int(worst['last_write_ns']) - int(worst['first_write_ns']))}."
        ),
        remedy=(
            f"Gather the answer in a buffer and write it to fd {fd} once (a buffered file around the socket will do); "
            f"or give the pieces to one writev, or all {call} calls but the last MSG_MORE."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, worst: np.void) -> Iterator[Evidence]:
    first, last = int(worst["first_write_event"]), int(worst["last_write_event"])
    yield from_event(session, first, f"the first of {worst['write_count']} writes of this answer")
    if int(worst["last_read_event"]) >= 0:
        yield from_event(session, int(worst["last_read_event"]), "the request")
    events = session.events_of(int(worst["connection"]))
    between = events[(events != first) & (events != last)]
    times = session.effective_ns[between]
    low, high = session.effective_ns[first], session.effective_ns[last]
    inside = between[(times >= low) & (times <= high)]
    for event in inside[:2].tolist():
        yield from_event(session, event)
    if len(inside) > 2:
        yield from_proc(int(session.effective_ns[inside[2]]), f"{len(inside) - 2} more")
    yield from_event(session, last, "the last")
