"""A request that took far longer than the server's others, and where its time went.

What it reports:
    Requests that were read late, or answered late: a second and more from the request's arrival to the first byte
    of the answer, and ten times what the server's median request takes. It says where that time went (the
    socket's queue, or the program), and what the thread that answered did meanwhile: connecting to another
    service, waiting for its answer, blocked on another client, waiting for a child, free in its event loop, or
    in no call that is seen.

Why it matters:
    The client waited, and an average does not show it. Which of the places holds the time decides whom to ask: a
    request that lies in the queue wants another thread, one that waits for a database wants the
    database's plan or a time limit, one that computes wants a profiler.

Evidence:
    The packets that brought the request, the read that took it, the longest call of the answering thread between, and
    the first write of the answer; processor time from /proc, where it was sampled.

Example:
    `GET /report` read at +2.104 s; `connect(9, {10.0.0.5:5432})`, `recvfrom(9, …)` for 1.49 s; `sendto(7, "HTTP/1.1
    200 OK")` at +3.605 s. The other 40 requests took 1.2 ms.

Mend:
    Give what the handler asks for a time limit and an answer of its own for when it passes; take the
    work off the path of the request; or give the server more threads where requests lie in the queue.

False positives:
    Slow may be right: a long poll, a big report, BLPOP. So it is a warning only where an HTTP request waited
    because its thread was blocked by something that can be named (another service, another client, a child), or
    lay unread; whatever the program does on purpose or on the CPU is told as information at most, one line a server.
    A second (two, for information), ten times the median, and a median of ten requests at least. A time in which the
    machine or the tracer was slow is nobody's fault: where calls that never wait took long then, or our own samples
    came late, nothing is said. Time on the wire is not the server's and not counted (retransmissions tells of
    loss); neither is a streamed answer, whose first byte counts, nor a request sent ahead, which waits for the
    answer before it. Of connections whose packets were not seen from their beginning only the program's part is known.

References:
    `sockscope report` shows all phases of each server's requests; RFC 9110 section 15.6.5 (504 Gateway Timeout).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.exchanges.latency import Durations, answered_among, answered_rows, request_words, servers_of
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    NS_PER_S,
    from_event,
    from_packet,
    kept,
    plural,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.meanwhile import BLOCKED, Kind, Meanwhile, blamed, meanwhile, words
from sockscope.model.columns import pieces
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.latency import Phase

RULE = Rule(
    slug="slow-request",
    severity=Severity.WARNING,
    summary="a request took over a second and ten times the median: in the queue, or in the program, and at what",
    follows=frozenset({"blocking-call-in-event-loop", "slow-reader"}),
)

_LEAST_NS = NS_PER_S
_WORTH_NS = 2 * NS_PER_S
"""What is only information must be twice as long to be worth a line."""
_TIMES_MEDIAN = 10
_FEWEST = 10
"""Requests of a server from which on their median says something."""
_LOOKED_AT = 50
"""Slow requests of a server looked into, the slowest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slow:
    """One slow request.

    Attributes:
        row: of the exchanges.
        queue_ns, program_ns: in the socket's queue, and from there to the first write.
        did: what the thread did in the larger part.
        http: the request in words; empty where it is not HTTP/1.
    """

    row: int
    queue_ns: int
    program_ns: int
    did: Meanwhile
    http: str

    @property
    def queued(self) -> bool:
        return self.queue_ns > self.program_ns

    @property
    def took_ns(self) -> int:
        return self.queue_ns + self.program_ns

    @property
    def faulty(self) -> bool:
        """More than information: somebody can be named who kept a request waiting that wanted an answer at once."""
        return bool(self.http) and (self.queued or blamed(self.did, _LEAST_NS))


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a server and place; what is information only, one a server."""
    rows = session.exchanges
    if not any(_some_slow(rows[part]) for part in pieces(len(rows))):
        return
    answered = np.flatnonzero(answered_rows(session))
    durations = Durations(session).duration_ns
    queue, program = durations[Phase.SOCKET_QUEUE], durations[Phase.THINKING]
    for part in pieces(len(rows)):
        for column in (queue, program):
            column[part] = np.maximum(column[part], 0)
    names, server = servers_of(session, rows["connection"][answered])
    for number, name in enumerate(names):
        mine = answered[server == number]
        if len(mine) >= _FEWEST:
            yield from _of_server(session, name, mine, queue, program)


def _some_slow(rows: npt.NDArray[np.void]) -> bool:
    began = np.where(rows["arrived_ns"] >= 0, rows["arrived_ns"], rows["first_read_ns"])
    return bool((answered_among(rows) & (rows["first_write_ns"] - began >= _LEAST_NS)).any())


def _of_server(session: Session, name: str, mine: Ids, queue: Ids, program: Ids) -> Iterator[Finding]:
    took = queue[mine] + program[mine]
    median = int(np.median(took))
    every = median >= _LEAST_NS
    slow = mine[(took >= _LEAST_NS) & (every | (took >= _TIMES_MEDIAN * median))]
    if not len(slow):
        return
    slow = slow[np.argsort(-(queue[slow] + program[slow]), kind="stable")]
    groups: defaultdict[tuple[bool, Kind], list[_Slow]] = defaultdict(list)
    for row in slow[:_LOOKED_AT].tolist():
        one = _slow(session, row, int(queue[row]), int(program[row]))
        if one.did.starved:
            continue
        groups[one.queued, one.did.kind if one.did.kind in BLOCKED or one.queued else Kind.MIXED].append(one)
    faulty = [ones for ones in groups.values() if not every and any(one.faulty for one in ones)]
    for ones in faulty:
        yield _finding(session, name, ones, mine, median, Severity.WARNING)
    worth = [ones for ones in groups.values() if ones[0].took_ns >= _WORTH_NS or every]
    if not faulty and worth:
        yield _finding(session, name, max(worth, key=len), mine, median, Severity.INFO)


def _slow(session: Session, row: int, queue_ns: int, program_ns: int) -> _Slow:
    one = session.exchanges[row]
    reader = int(session.events.records["tid"][one["first_read_event"]])
    read = max(int(one["first_read_ns"]), int(one["arrived_whole_ns"]))
    wrote = int(one["first_write_ns"])
    connection = int(one["connection"])
    if queue_ns > program_ns:
        did = meanwhile(session, reader, int(one["first_read_ns"]) - queue_ns, int(one["first_read_ns"]))
    else:
        did = meanwhile(session, int(one["tid"]), max(read, wrote - program_ns), wrote, besides=connection)
    return _Slow(
        row=row,
        queue_ns=queue_ns,
        program_ns=program_ns,
        did=did,
        http=request_words(session, int(one["first_read_event"])),
    )


def _finding(session: Session, name: str, ones: list[_Slow], mine: Ids, median: int, severity: Severity) -> Finding:
    rows: npt.NDArray[np.void] = session.exchanges
    worst = ones[0]
    one = rows[worst.row]
    tgid, tid = int(one["tgid"]), int(one["tid"])
    place = "unread in the socket's queue" if worst.queued else "in the program"
    connections = tuple(sorted({int(rows["connection"][each.row]) for each in ones}))
    every = median >= _LEAST_NS
    compared = (
        f"That is the rule here: the median of {len(mine)} requests is {span(median)}."
        if every
        else f"The median of the server's {len(mine)} requests is {span(median)}."
    )
    asked = worst.http or "the request"
    title = f"{plural(len(ones), 'request')} to {name} took up to {span(worst.took_ns)}, most of it {place}"
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=Confidence.CERTAIN if severity is Severity.WARNING and not worst.queued else Confidence.LIKELY,
        title=title,
        tgid=tgid,
        comm=session.comm(tgid),
        fd=_fd(session, worst),
        connections=connections,
        count=len(ones),
        worst=int(one["connection"]),
        explanation=(
            f"The slowest: {asked} on connection {int(one['connection'])}, read at "
            f"{since_start(session, int(one['first_read_ns']))}, got the first byte of its answer at "
            f"{since_start(session, int(one['first_write_ns']))}: {span(worst.queue_ns)} in the socket's queue, "
            f"{span(worst.program_ns)} in the program. {compared} "
            f"Meanwhile the thread {who(session, tgid, worst.did.tid)} "
            f"{words(session, worst.did)}.{_handed(session, worst, tid)}"
        ),
        remedy=_remedy(session, worst),
        evidence=kept(_evidence(session, worst)),
    )


def _handed(session: Session, worst: _Slow, tid: int) -> str:
    reader = int(session.events.records["tid"][session.exchanges["first_read_event"][worst.row]])
    if worst.queued or reader == tid:
        return ""
    return f" (Thread {reader} had read the request: it may have waited between the two.)"


def _fd(session: Session, worst: _Slow) -> int | None:
    event = int(session.exchanges["first_write_event"][worst.row])
    descriptor = int(session.event_descriptor[event])
    return session.descriptors[descriptor].fd if descriptor >= 0 else None


def _remedy(session: Session, worst: _Slow) -> str:
    did = worst.did
    call = session.events.call(did.event).name if did.event >= 0 else ""
    if did.kind in (Kind.CONNECT, Kind.SERVICE):
        peer = session.connections[did.connection].peer if did.connection >= 0 else None
        service = str(peer) if peer is not None and peer.port else "the service asked"
        return (
            f"Ask why {service} takes that long; and set a time limit on {call} (SO_RCVTIMEO, or poll before it) with "
            "an answer of your own for when it passes, so that a slow service does not make this one slow."
        )
    if did.kind is Kind.CLIENT:
        return f"One client's silence must not hold up another: a thread each, or non-blocking {call} in an event loop."
    if did.kind is Kind.CHILD:
        return f"Do not wait for the child with the request in hand ({call}): give it a time limit."
    if worst.queued:
        return "More threads or processes to read requests, or shorter work in the one that reads them."
    if did.kind is Kind.WAIT:
        return (
            "The thread was free: if the client is meant to wait (a long poll) all is well; "
            "else look for what woke it so late."
        )
    return "Look with a profiler (CPU), or at locks and disks, for what the handler of this request does in that time."


def _evidence(session: Session, worst: _Slow) -> Iterator[Evidence]:
    one = session.exchanges[worst.row]
    if worst.did.event >= 0:
        yield from_event(session, worst.did.event, f"{span(worst.did.spent_ns)} in calls like this")
    arrived = int(one["arrived_ns"])
    if arrived >= 0:
        packets = session.packets_of(int(one["connection"]))
        row = packets[int(np.searchsorted(session.packet_ns[packets], arrived))]
        yield from_packet(session, int(row), "the request arrives")
    yield from_event(session, int(one["first_read_event"]), "it is read")
    yield from_event(session, int(one["first_write_event"]), "the answer begins")
