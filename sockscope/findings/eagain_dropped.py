"""A socket was not ready, and the program took that for a success or for the end.

What it reports:
    On stream connections: a send that returned EAGAIN, after which the program went on with other data, or closed,
    without ever sending those bytes; and a read that returned EAGAIN on a new connection, which the
    program then closed as if its client had ended it.

Why it matters:
    Bytes that were not taken are gone without an error: a hole in the stream, a message cut in two (the part that
    was taken before stays), an answer that never comes. A client whose connection is closed because its request had
    not arrived yet sees a reset. Both depend on timing: fast clients and small answers never show it.

Evidence:
    The call that returned EAGAIN with what it was given, the next thing that was sent instead or the close, and
    how much was never sent. The bytes are recognised by how they begin: the payload prefix must be recorded.

Example:
    `sendto(7, "message 000017 …", 8192, 0) = -1 EAGAIN`, and 212 ms later `sendto(7, "message 000048 …") = 8192`:
    31 messages are missing.

Mend:
    Keep what was not taken in a queue of that connection, wait for EPOLLOUT (POLLOUT), and send it first.
    Where a client is too slow to be waited for, close its connection instead of sending it a part. EAGAIN from a
    read means: later; wait for EPOLLIN.

False positives:
    Some broadcast servers leave messages out for slow clients on purpose, so it is a warning and likely, not more.
    What is sent later, whole or as the beginning of a longer write, was not dropped; nor is it looked at where a
    wait said that there was room before the next write. Not reported: datagrams (leaving them out is normal),
    calls that waited (SO_SNDTIMEO, SO_RCVTIMEO), peers that had gone, processes that ended, MSG_PEEK, a TLS
    close_notify, and reads on connections that were ever answered. A read taken for the end is certain where the
    client's data came after the close, and an error then.

References:
    send(2) EAGAIN; recv(2) EAGAIN; epoll(7); socket(7) SO_SNDTIMEO.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    GRACE_NS,
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
from sockscope.findings.shared.halves import flow_of, last_payload_row, peer_fin_ns
from sockscope.findings.shared.holding import Holdings, served_by
from sockscope.findings.shared.partial_writes import PLAIN, VECTORS, requested
from sockscope.findings.shared.readiness import OUT, Names, ready_of
from sockscope.model.calls import READS, USUAL_GROUPS, WAITS, WRITES, Call, CallGroup
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.events import EventFlag, Section
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="eagain-dropped",
    severity=Severity.WARNING,
    summary="EAGAIN taken for a success or for the end: bytes never sent, or a live connection closed",
    yields_to=frozenset({"short-write-dropped", "sigpipe-death", "write-after-peer-close", "connect-not-completed"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_EAGAIN = -11
_AT_ONCE_NS = 10 * NS_PER_MS
"""A call that took longer waited for a time limit."""
_CONNECTIONS_LOOKED_AT = 500
_WRITES_LOOKED_AT = 5000
_WAITS_LOOKED_AT = 50
_MSG_PEEK = 2
_TLS_ALERT = b"\x15\x03"
_SENDS = by_call(Call(number) for number in (*PLAIN.tolist(), *VECTORS.tolist()))
_WRITES, _READS, _WAITS = by_call(WRITES), by_call(READS), by_call(WAITS)
_FLAGS_AT = {Call.recvfrom: 3, Call.recvmsg: 2}


Mask = npt.NDArray[np.bool_]


class _How(StrEnum):
    OTHER_DATA = "other data sent instead"
    CLOSED = "closed instead"
    READ = "a read's EAGAIN taken for the end"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dropped:
    """What happened on one connection.

    Attributes:
        refused: calls that returned EAGAIN and whose bytes were never sent (for READ the read), in order.
        after: the event that shows it: the write of other data, the close.
        late: the packet of the peer's data that came after the close; -1 for none.
    """

    connection: int
    how: _How
    refused: tuple[int, ...]
    after: int
    lost_bytes: int = 0
    late: int = NO_ID


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and manner."""
    refused = np.flatnonzero(session.events.records["ret"] == _EAGAIN)
    refused = refused[session.event_connection[refused] >= 0]
    if not len(refused):
        return
    groups: defaultdict[tuple[str, _How], list[_Dropped]] = defaultdict(list)
    holdings, names = Holdings(session), Names(session)
    for dropped in (
        *_sends(session, refused, holdings, names, explained),
        *_reads(session, refused, holdings, explained),
    ):
        tgid = int(session.events.records["tgid"][dropped.refused[0]])
        groups[program(session, tgid), dropped.how].append(dropped)
    for (name, how), found in groups.items():
        yield _finding(session, how, found, served_by(session, name))


def _sends(
    session: Session, refused: Ids, holdings: Holdings, names: Names, explained: frozenset[int]
) -> Iterator[_Dropped]:
    records = session.events.records
    refused = refused[_SENDS[records["call"][refused]]]
    refused = refused[records["exit_ns"][refused] >= session.info.started_ns]
    refused = refused[_at_once(session, refused)]
    for number in np.unique(session.event_connection[refused])[:_CONNECTIONS_LOOKED_AT].tolist():
        if number not in explained and session.connections[number].protocol is not Protocol.UDP:
            dropped = _dropped(session, holdings, names, session.connections[number])
            if dropped is not None:
                yield dropped


def _at_once(session: Session, events: Ids) -> Mask:
    """Which of the calls did not wait for a time limit."""
    rows = session.events.records[events]
    quick = (rows["enter_ns"] >= 0) & (rows["exit_ns"] - rows["enter_ns"] < _AT_ONCE_NS)
    at_once: Mask = quick & ((rows["flags"] & EventFlag.URING) == 0)
    return at_once


def _dropped(session: Session, holdings: Holdings, names: Names, connection: Connection) -> _Dropped | None:
    events = session.events_of(connection.id)
    writes = events[_WRITES[session.events.records["call"][events]]][-_WRITES_LOOKED_AT:]
    returned = session.events.records["ret"][writes]
    begins = [_begin(session, event) for event in writes.tolist()]
    refused, took = np.flatnonzero((returned == _EAGAIN) & _at_once(session, writes)), np.flatnonzero(returned > 0)
    sent_last = _Sent({at: begins[at] for at in took.tolist()}, {len(begins[at]) for at in refused.tolist()})
    lost: list[int] = []
    after = NO_ID
    for at in refused.tolist():
        later = int(np.searchsorted(took, at))
        if later == len(took) or not begins[at] or sent_last.of(begins[at]) > at:
            continue
        event, following = int(writes[at]), int(writes[took[later]])
        if not _had_room(session, names, connection, event, following):
            lost.append(event)
            after = after if after >= 0 else following
    if lost:
        lost_bytes = sum(max(0, requested(session, event)) for event in lost)
        return _Dropped(
            connection=connection.id, how=_How.OTHER_DATA, refused=tuple(lost), after=after, lost_bytes=lost_bytes
        )
    if len(refused) and int(refused[-1]) == len(writes) - 1:
        return _closed(session, holdings, connection, int(writes[-1]))
    return None


def _begin(session: Session, event: int) -> bytes:
    return session.events.section(event, Section.PAYLOAD) or b""


class _Sent:
    """Which of the writes that were taken began like some bytes, the last of them.

    Args:
        begins: place → how the write there began; empty where that is not known, which may be anything.
        lengths: of the beginnings that will be asked for.
    """

    def __init__(self, begins: dict[int, bytes], lengths: set[int]) -> None:
        self._last: dict[bytes, int] = {}
        self._short: set[int] = set()
        self._unknown = -1
        for at, begin in begins.items():
            if not begin:
                self._unknown = at
                continue
            self._short.add(len(begin))
            for length in {len(begin), *(length for length in lengths if length < len(begin))}:
                self._last[begin[:length]] = at

    def of(self, begin: bytes) -> int:
        """Its place; -1 for none. The same bytes, alone, with more behind them, or in smaller parts."""
        parts = (begin[:length] for length in self._short if length < len(begin))
        return max(self._unknown, self._last.get(begin, -1), *(self._last.get(part, -1) for part in parts))


def _had_room(session: Session, names: Names, connection: Connection, event: int, following: int) -> bool:
    """Whether a wait told of room in between: the program minds the flow, and chose what to send next."""
    events = session.events_of_tid(int(session.events.records["tid"][event]))
    when = session.effective_ns[events]
    between = events[(when > session.effective_ns[event]) & (when < session.effective_ns[following])]
    waits = between[_WAITS[session.events.records["call"][between]]][-_WAITS_LOOKED_AT:]
    return any(
        ready.bits & OUT and names.of(wait, ready)[0] == connection.open_file
        for wait in waits.tolist()
        for ready in ready_of(session, wait) or ()
    )


def _closed(session: Session, holdings: Holdings, connection: Connection, refused: int) -> _Dropped | None:
    """Closed at once after a refused write, though the peer was there."""
    close = _close_of(session, holdings, connection)
    refused_ns = int(session.effective_ns[refused])
    if _begin(session, refused).startswith(_TLS_ALERT):
        return None  # close_notify, as good as it goes
    if close < 0 or int(session.effective_ns[close]) - refused_ns > GRACE_NS:
        return None
    if int(session.events.records["tid"][close]) != int(session.events.records["tid"][refused]):
        return None
    if _waited(session, refused, close) or _peer_left(session, connection, int(session.effective_ns[close])):
        return None
    return _Dropped(
        connection=connection.id,
        how=_How.CLOSED,
        refused=(refused,),
        after=close,
        lost_bytes=max(0, requested(session, refused)),
    )


def _close_of(session: Session, holdings: Holdings, connection: Connection) -> int:
    """The close by which its program ended it, while the process went on; -1 for none."""
    copies = holdings.copies(connection.open_file)
    if len(copies) != 1 or not copies[0].given_up:
        return NO_ID
    return copies[0].descriptor.closed_event


def _waited(session: Session, event: int, close: int) -> bool:
    events = session.events_of_tid(int(session.events.records["tid"][event]))
    when = session.effective_ns[events]
    between = events[(when > session.effective_ns[event]) & (when < session.effective_ns[close])]
    return bool(_WAITS[session.events.records["call"][between]].any())


def _peer_left(session: Session, connection: Connection, before_ns: int) -> bool:
    ended = peer_fin_ns(session, connection)
    flow = flow_of(session, connection)
    reset = flow.rst_ns[1 - connection.local_side] if flow is not None else None
    return any(at is not None and at <= before_ns for at in (ended, reset))


def _reads(session: Session, refused: Ids, holdings: Holdings, explained: frozenset[int]) -> Iterator[_Dropped]:
    refused = refused[_READS[session.events.records["call"][refused]]]
    for number in np.unique(session.event_connection[refused]).tolist():
        connection = session.connections[number]
        new = connection.witnessed and connection.role is Role.SERVER and not connection.written_bytes
        if new and number not in explained and connection.protocol is not Protocol.UDP:
            dropped = _taken_for_end(session, holdings, connection)
            if dropped is not None:
                yield dropped


def _taken_for_end(session: Session, holdings: Holdings, connection: Connection) -> _Dropped | None:
    records = session.events.records
    close = _close_of(session, holdings, connection)
    if close < 0:
        return None
    closed_ns = int(session.effective_ns[close])
    moves = _moves(session, connection)
    if not len(moves) or _WRITES[records["call"][moves]].any():
        return None
    last = int(moves[-1])
    row = records[last]
    if int(row["ret"]) != _EAGAIN or int(row["tid"]) != int(records["tid"][close]) or _peeks(session, last):
        return None
    if not _at_once(session, moves[-1:])[0] or closed_ns - int(row["exit_ns"]) > GRACE_NS:
        return None
    if _waited(session, last, close) or _peer_left(session, connection, closed_ns):
        return None
    packet = last_payload_row(session, connection)
    late = packet if packet >= 0 and int(session.packet_ns[packet]) > closed_ns else NO_ID
    return _Dropped(connection=connection.id, how=_How.READ, refused=(last,), after=close, late=late)


def _moves(session: Session, connection: Connection) -> Ids:
    events = session.events_of(connection.id)
    calls = session.events.records["call"][events]
    moves: Ids = events[_READS[calls] | _WRITES[calls] | (calls == Call.shutdown)]
    return moves


def _peeks(session: Session, event: int) -> bool:
    at = _FLAGS_AT.get(session.events.call(event), -1)
    return at >= 0 and bool(int(session.events.records["args"][event][at]) & _MSG_PEEK)


def _finding(session: Session, how: _How, found: list[_Dropped], total: int) -> Finding:
    found.sort(key=lambda one: (one.late < 0, -one.lost_bytes))
    worst, count = found[0], len(found)
    first = worst.refused[0]
    row = session.events.records[first]
    tgid, fd, call = int(row["tgid"]), int(row["args"][0]), session.events.call(first).name
    first_ns, after_ns = int(session.effective_ns[first]), int(session.effective_ns[worst.after])
    on = share(count, max(total, count))
    late = sum(one.late >= 0 for one in found)
    if how is _How.READ:
        title = f"{plural(count, 'connection')} closed because a read returned EAGAIN"
        told = (
            f"On {on} {who(session, tgid)} read before anything had arrived: {call} on fd {fd} returned EAGAIN at "
            f"{since_start(session, first_ns)}, and {span(after_ns - first_ns)} later it closed the connection, though "
            "the client had not."
        )
        if late:
            told += f" On {late} of these the client's data came after that, and was answered with a reset."
        remedy = f"Where {call} returns EAGAIN keep fd {fd} and wait for EPOLLIN (POLLIN): only 0 is the end."
    else:
        lost, calls = sum(one.lost_bytes for one in found), sum(len(one.refused) for one in found)
        title = f"{plural(count, 'connection')}: {plural(lost, 'byte')} not taken (EAGAIN) and never sent"
        told = (
            f"On {on} of {who(session, tgid)} {plural(calls, 'send')} returned EAGAIN, and what they were given, "
            f"{lost} bytes, was never sent. On fd {fd} {call} was not taken first at {since_start(session, first_ns)}"
            f"{_quoted(session, first)}; {span(after_ns - first_ns)} later "
        )
        if how is _How.OTHER_DATA:
            told += f"the next thing that went out was something else{_quoted(session, worst.after)}."
            told += f" {plural(len(worst.refused), 'piece')} of this stream are missing."
        else:
            told += "the program closed the connection, whose peer was there and had not read all yet."
        remedy = (
            f"Where {call} returns EAGAIN keep the bytes in a queue of fd {fd}, wait for EPOLLOUT, and send them "
            "before anything else; or close clients that are too slow, so that they know."
        )
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR if late else Severity.WARNING,
        confidence=Confidence.CERTAIN if late else Confidence.LIKELY,
        title=title,
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(sorted(one.connection for one in found)),
        count=count,
        worst=worst.connection,
        explanation=told,
        remedy=remedy,
        evidence=kept(_evidence(session, found)),
    )


def _quoted(session: Session, event: int) -> str:
    words = _begin(session, event)[:24]
    if not words or not all(32 <= byte < 127 for byte in words):
        return ""
    return f' ("{words.decode("ascii")}…")'


def _evidence(session: Session, found: list[_Dropped]) -> Iterator[Evidence]:
    worst = found[0]
    first = worst.refused[0]
    reads = worst.how is _How.READ
    yield from_event(session, first, "not yet, which is not the end" if reads else "not taken, and never sent later")
    yield from_event(session, worst.after, "sent instead" if worst.how is _How.OTHER_DATA else "closed")
    if len(worst.refused) > 1:
        yield from_event(session, worst.refused[-1], f"the last of {len(worst.refused)} that were not taken")
    if worst.late >= 0:
        yield from_packet(session, worst.late, "the client's data comes too late")
    for other in found[1:3]:
        yield from_event(session, other.refused[0], "the same")
