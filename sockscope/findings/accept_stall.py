"""Connections were ready to be accepted, and for a long time nobody accepted them.

What it reports:
    Connections whose handshake was complete and that were accepted a second and more later, because nothing was
    taken from their listener's queue meanwhile; and what the thread that accepts did in that time.

Why it matters:
    The client is connected and has sent its request: to it the server hangs. The program's own log begins
    at accept and shows a quick answer, so nobody finds the time there. If the queue fills meanwhile, more
    clients cannot connect at all.

Evidence:
    The handshake's last packet (or the kernel's own word), the accept that took the connection, the accept before it,
    and the longest call of the accepting thread in between.

Example:
    Five handshakes at +0.52 s; the only thread is in `recvfrom(4)` for 1.80 s, reading from a client that stays
    silent; then `accept4(3) = 4` five times in 2 ms.

Mend:
    Let nothing else hold up the thread that accepts: serve clients in threads, processes or an event loop, and
    give reads a time limit.

False positives:
    A queue that moves is none: the connection at its head must have waited for a second without one accept on the
    listener, so a crowd that is taken one by one is not reported, however long its last one waits. What comes
    before the first accept is the program starting. A deferred accept (TCP_DEFER_ACCEPT) waits for the
    request, so the wait counts from the request's arrival. It is a warning where one thread accepts and was blocked
    in a call; where several accept, and all were busy (a pool at its limit), where the thread waited for other
    events (paused on purpose), or made no call that is seen, it is information from two seconds on: that may be how
    the server limits its load. Where calls that never wait took long meanwhile, or our own samples came late, the
    machine or the tracer was slow, and nothing is said.

References:
    listen(2) (backlog), accept(2), tcp(7) TCP_DEFER_ACCEPT.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS, EAGAIN, accepts_of
from sockscope.findings.shared.evidence import (
    NS_PER_MS,
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
from sockscope.findings.shared.told import established, told_by_kernel
from sockscope.model.descriptors import OpenFile
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="accept-stall",
    severity=Severity.WARNING,
    summary="connections were complete, and accepted a second or more later: what the accepting thread did meanwhile",
    follows=frozenset(
        {
            "unaccepted-connection",
            "edge-triggered-listener-not-drained",
            "blocking-call-in-event-loop",
            "descriptor-exhaustion",
            "slow-reader",
        }
    ),
)

_STALL_NS = NS_PER_S
_WORTH_NS = 2 * NS_PER_S
"""What is only information must be twice as long to be worth a line."""
_AT_ONCE_NS = 500 * NS_PER_MS
"""TCP_DEFER_ACCEPT gives up after a second at the least: what is accepted sooner and empty is not deferred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stall:
    """A time in which nothing was taken from a queue that was not empty.

    Attributes:
        accept: the one that ended it.
        before: the accept before it; -1 for none seen.
        began_ns, ended_ns: since the later of the last accept and the arrival of the queue's head.
    """

    accept: int
    before: int
    began_ns: int
    ended_ns: int

    @property
    def lasted_ns(self) -> int:
        return self.ended_ns - self.began_ns


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a listener."""
    rows = session.exchanges
    accepted = np.flatnonzero(rows["accept_ns"] >= 0)
    if not len(accepted):
        return
    rows = rows[accepted]
    if not (rows["established_ns"] >= 0).any():
        yield Skip(rule=RULE.slug, reason="neither packets nor the kernel told when handshakes were complete")
        return
    waited = np.where(rows["established_ns"] >= 0, rows["accept_ns"] - rows["established_ns"], 0)
    if not (waited >= _STALL_NS).any():
        return
    listener = np.array([session.connections[c].listener for c in rows["connection"].tolist()], np.int64)
    for number in np.unique(listener[(waited >= _STALL_NS) & (listener >= 0)]).tolist():
        yield from _of_listener(session, session.open_files[number], rows[listener == number])


def _of_listener(session: Session, listener: OpenFile, rows: np.ndarray) -> Iterator[Finding]:
    since = _since(rows)
    accepts = accepts_of(session, listener)
    began_ns = _first_attention(session, listener, accepts)
    late = np.flatnonzero((since >= began_ns) & (rows["accept_ns"] - since >= _STALL_NS))
    stalls = _stalls(session, accepts, since[late], rows["accept_ns"][late])
    if not stalls:
        return
    touched = np.zeros(len(rows), np.bool_)
    for stall in stalls:
        inside = np.minimum(rows["accept_ns"], stall.ended_ns) - np.maximum(since, stall.began_ns)
        touched |= (since >= began_ns) & (inside >= _STALL_NS // 2)
    if touched.any():
        yield from _finding(session, listener, accepts, stalls, rows[touched], since[touched])


def _since(rows: np.ndarray) -> Ids:
    """From when each connection could be accepted; never, where that is not certain."""
    never = np.iinfo(np.int64).max
    arrived = (rows["arrived_ns"] >= 0) & (rows["arrived_ns"] <= rows["accept_ns"])
    at_once = (rows["established_ns"] >= 0) & ~arrived & (rows["accept_ns"] - rows["established_ns"] < _AT_ONCE_NS)
    certain = (rows["established_ns"] >= 0) & (arrived | at_once.any() | (rows["syn_ns"] < 0))
    since = np.where(arrived, np.maximum(rows["established_ns"], rows["arrived_ns"]), rows["established_ns"])
    found: Ids = np.where(certain, since, never - _STALL_NS)
    return found


def _first_attention(session: Session, listener: OpenFile, accepts: Ids) -> int:
    """When the program began to accept there: before that it is starting."""
    if not listener.witnessed:
        return session.info.started_ns
    entered = session.events.records["enter_ns"][accepts]
    return int(entered.min()) if len(entered) else session.info.ended_ns


def _stalls(session: Session, accepts: Ids, since: Ids, accept_ns: Ids) -> list[_Stall]:
    """The times in which the head of the queue waited: between one accept and the next, with somebody there."""
    records = session.events.records
    returned = records["exit_ns"][accepts]
    order = np.argsort(returned, kind="stable")
    accepts, returned = accepts[order], returned[order]
    # One that found nothing says as much as one that took something: the queue was empty then.
    tells = (records["ret"][accepts] >= 0) | (records["ret"][accepts] == -EAGAIN)
    accepts, returned = accepts[tells & (returned >= 0)], returned[tells & (returned >= 0)]
    found: dict[int, _Stall] = {}
    for came, taken in zip(since.tolist(), accept_ns.tolist(), strict=True):
        at = int(np.searchsorted(returned, taken))
        if at >= len(accepts):
            continue
        before = int(accepts[at - 1]) if at else NO_ID
        began = max(came, int(returned[at - 1]) if at else came)
        if taken - began >= _STALL_NS:
            stall = _Stall(accept=int(accepts[at]), before=before, began_ns=began, ended_ns=taken)
            found[stall.accept] = stall
    return sorted(found.values(), key=lambda one: -one.lasted_ns)


def _finding(
    session: Session, listener: OpenFile, accepts: Ids, stalls: list[_Stall], rows: np.ndarray, since: Ids
) -> Iterator[Finding]:
    worst = stalls[0]
    records = session.events.records
    tgid, tid = int(records["tgid"][worst.accept]), int(records["tid"][worst.accept])
    acceptors = np.unique(records["tid"][accepts])
    doer = int(records["tid"][worst.before]) if worst.before >= 0 else tid
    did = meanwhile(session, doer, worst.began_ns, worst.ended_ns)
    alone = len(acceptors) == 1
    faulty = alone and blamed(did, _STALL_NS)
    if did.starved or (not faulty and worst.lasted_ns < _WORTH_NS):
        return
    waited = rows["accept_ns"] - since
    longest = int(np.argmax(waited))
    connections = rows["connection"]
    count = len(connections)
    fd = int(records["args"][worst.accept, 0])
    where = str(listener.local) if listener.local is not None else f"fd {fd}"
    again = f" That happened {len(stalls)} times." if len(stalls) > 1 else ""
    others = "" if alone else f" {len(acceptors)} threads accept there, and none did: all were busy."
    yield Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if faulty else Severity.INFO,
        confidence=Confidence.CERTAIN if faulty else Confidence.LIKELY,
        title=f"{plural(count, 'connection')} to {where} waited up to {span(int(waited[longest]))} to be accepted",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(sorted(connections.tolist())),
        count=count,
        worst=int(connections[longest]),
        explanation=(
            f"{plural(count, 'connection')} to {where} had completed the handshake, the first at "
            f"{since_start(session, int(since.min()))}, and nothing was accepted for {span(worst.lasted_ns)}, until "
            f"{since_start(session, worst.ended_ns)}. "
            f"Meanwhile {who(session, did.tgid, did.tid)}, which accepts there, {words(session, did)}.{others}{again}"
        ),
        remedy=_remedy(session, did, fd, alone=alone),
        evidence=kept(_evidence(session, worst, did, rows[longest])),
    )


def _remedy(session: Session, did: Meanwhile, fd: int, *, alone: bool) -> str:
    if not alone:
        return (
            f"More threads or processes to accept on fd {fd}, or less time for which one connection keeps one of them."
        )
    call = session.events.call(did.event).name if did.event >= 0 else ""
    if did.kind is Kind.CLIENT:
        return (
            f"Serve each connection in a thread, a process or an event loop, so that accept is called on fd {fd} while "
            f"a client is silent; and give {call} a time limit (SO_RCVTIMEO)."
        )
    if did.kind in BLOCKED:
        return f"Take {call} out of the thread that accepts on fd {fd}, or give it a time limit."
    return f"Look what keeps the thread from accepting on fd {fd}: long work, a lock, or a pause that is meant."


def _evidence(session: Session, stall: _Stall, did: Meanwhile, row: np.void) -> Iterator[Evidence]:
    if did.event >= 0:
        yield from_event(session, did.event, "what the accepting thread did instead")
    connection = session.connections[int(row["connection"])]
    packets = session.packets_of(connection.id)
    at = int(np.searchsorted(session.packet_ns[packets], int(row["established_ns"])))
    if at < len(packets):
        yield from_packet(session, int(packets[at]), "the handshake is complete: it can be accepted")
    else:
        yield from told_by_kernel(session, established(session, connection), "it can be accepted")
    if stall.before >= 0:
        yield from_event(session, stall.before, "the accept before")
    if connection.opened_event >= 0 and session.events.call(connection.opened_event) in ACCEPTS:
        yield from_event(session, connection.opened_event, "the accept that took it")
