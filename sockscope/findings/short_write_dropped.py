"""A socket took part of a message, and the rest is never sent.

What it reports:
    A write or send on a stream socket that took fewer bytes than it was given, after which the program
    closes the connection, goes on with other data, or forgets about it, without sending the
    remaining bytes.

Why it matters:
    The client gets a cut answer: a download that ends early, a JSON document without its end, and with
    a Content-Length a client that waits for bytes that never come. It shows only where the client is slow
    or the answer is large, so tests do not find it.

Evidence:
    The short write with what was asked and taken, what followed on the connection, its end.

Example:
    `sendto(5, …, 1048576, 0) = 196608`, then `close(5)`: 851968 bytes were never sent.

Mend:
    Send what is left, in a loop, from where the last call stopped: `sendall` in Python, a queue and
    EPOLLOUT in an event loop. A blocking socket with a timeout (SO_SNDTIMEO) sends in part as well.

False positives:
    The rest may come later, from another address, by writev or sendfile: whatever is written afterwards
    counts towards it. Not reported where the peer had gone (an end of file, a reset or a failed write
    after the short one), where the program went on waiting for room (EAGAIN, or a wait for EPOLLOUT that told of
    none) or its process ended.
    A close long after the short write may be a time limit for slow clients: it counts only where the
    socket's buffer had been empty meanwhile.

References:
    send(2), write(2) RETURN VALUE; socket(7) SO_SNDTIMEO; RFC 9110 section 8.6 (Content-Length).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    from_socket,
    kept,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.partial_writes import Partial, partial_writes, requested
from sockscope.findings.shared.readiness import ERR, HUP, OUT, RDHUP, Names, Ready, ready_of
from sockscope.model.calls import READS, USUAL_GROUPS, WAITS, WRITES, Call, CallGroup
from sockscope.model.connections import Connection
from sockscope.model.descriptors import Ended
from sockscope.model.events import Section
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="short-write-dropped",
    severity=Severity.ERROR,
    summary="part of a message was taken and the rest never sent",
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_READS = np.array(sorted(READS), np.uint16)
_WRITES = np.array(sorted(WRITES), np.uint16)
_WAITS = np.array(sorted(WAITS), np.uint16)
_WAITS_LOOKED_AT = 50
_NEVER_NS = 1 << 62
_GONE = HUP | ERR | RDHUP
_CLOSED = frozenset({Ended.CLOSE, Ended.CLOSE_RANGE, Ended.REPLACED})
_FORGOTTEN_NS = 2 * GRACE_NS


class _How(StrEnum):
    CLOSED = "the connection closed"
    OTHER_DATA = "other data sent from the same buffer"
    FORGOTTEN = "and never sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dropped:
    """A short write whose rest was not sent.

    Attributes:
        after: the event that shows it (close, shutdown, the next write); -1 where nothing came.
        lost_bytes: at least so many.
        drained_row: the snapshot that shows the buffer empty; -1 for none.
    """

    partial: Partial
    how: _How
    after: int
    after_ns: int
    lost_bytes: int
    drained_row: int = NO_ID


class _Lookups:
    """What is dear to find, found once for one run over a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._times: dict[tuple[str, int], tuple[Ids, Ids]] = {}
        self.names = Names(session)
        rows = session.events.records
        spliced = np.flatnonzero(session.event_call == Call.splice)
        self.spliced = set(zip(rows["tgid"][spliced].tolist(), rows["args"][spliced, 2].tolist(), strict=True))
        """(tgid, fd) that were spliced to: splice(2) is filed under where it takes from."""

    def of_thread(self, tid: int, after_ns: int, until_ns: int) -> Ids:
        """What a thread did after one moment and before another."""
        return self._between(("thread", tid), after_ns, until_ns)

    def of_connection(self, connection: int, after_ns: int) -> Ids:
        """What was done on a connection after that moment."""
        return self._between(("connection", connection), after_ns, _NEVER_NS)

    def _between(self, key: tuple[str, int], after_ns: int, until_ns: int) -> Ids:
        if key not in self._times:
            kind, number = key
            events = self._session.events_of_tid(number) if kind == "thread" else self._session.events_of(number)
            self._times[key] = events, self._session.effective_ns[events]
        events, times = self._times[key]
        return events[np.searchsorted(times, after_ns, "right") : np.searchsorted(times, until_ns, "left")]


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and manner."""
    lookups = _Lookups(session)
    last: dict[int, Partial] = {}
    groups: defaultdict[tuple[str, _How], dict[int, _Dropped]] = defaultdict(dict)
    for partial in sorted(partial_writes(session), key=lambda one: int(session.effective_ns[one.event])):
        last[partial.connection] = partial
        _keep(session, groups, _replaced(session, partial, lookups))
    # Only the last short write of a connection can be the one whose rest is missing at its end.
    for partial in last.values():
        _keep(session, groups, _abandoned(session, partial, lookups))
    for (_, how), found in groups.items():
        yield _finding(session, how, list(found.values()))


def _keep(session: Session, groups: defaultdict[tuple[str, _How], dict[int, _Dropped]], found: _Dropped | None) -> None:
    if found is not None:
        tgid = int(session.events.records["tgid"][found.partial.event])
        groups[program(session, tgid), found.how].setdefault(found.partial.connection, found)


def _replaced(session: Session, partial: Partial, lookups: _Lookups) -> _Dropped | None:
    """The relay's fault: the buffer is filled anew from its start, and sent, before the rest was sent."""
    if not partial.buffer:
        return None
    later = lookups.of_connection(partial.connection, int(session.effective_ns[partial.event]))
    writes = later[np.isin(session.events.records["call"][later], _WRITES)]
    if not len(writes):
        return None
    following = int(writes[0])
    row, made = session.events.records[following], session.events.records[partial.event]
    if (
        requested(session, following) < 0
        or int(row["args"][1]) != partial.buffer
        or int(row["tid"]) != int(made["tid"])
    ):
        return None
    since, until = int(session.effective_ns[partial.event]), int(session.effective_ns[following])
    between = lookups.of_thread(int(made["tid"]), since, until)
    rows = session.events.records[between]
    filled = np.isin(rows["call"], _READS) & (rows["ret"] > 0) & (rows["args"][:, 1] == partial.buffer)
    if not filled.any():
        return None
    return _Dropped(
        partial=partial,
        how=_How.OTHER_DATA,
        after=following,
        after_ns=int(session.effective_ns[following]),
        lost_bytes=partial.left,
    )


def _abandoned(session: Session, partial: Partial, lookups: _Lookups) -> _Dropped | None:
    connection = session.connections[partial.connection]
    later = lookups.of_connection(partial.connection, int(session.effective_ns[partial.event]))
    rows = session.events.records[later]
    writes = np.isin(rows["call"], _WRITES)
    if (writes & (rows["ret"] < 0)).any() or (writes & (rows["exit_ns"] < 0)).any():
        return None  # it tries, and waits for room, or the peer has gone
    made = session.events.records[partial.event]
    if (int(made["tgid"]), int(made["args"][0])) in lookups.spliced:
        return None
    lost = partial.left - int(rows["ret"][writes & (rows["ret"] > 0)].sum())
    if lost <= 0 or _peer_gone(session, connection, partial, later, lookups):
        return None
    since = int(session.effective_ns[partial.event])
    if writes.any():
        since = int(session.effective_ns[later[writes][-1]])
    ended = _ended_by(session, connection, later)
    drained = _drained(session, connection, since)
    if ended is None:
        if (
            drained < 0
            or session.info.ended_ns - since < _FORGOTTEN_NS
            or not _goes_on(session, partial, since, lookups)
        ):
            return None
        until = session.info.ended_ns
        return _Dropped(
            partial=partial, how=_How.FORGOTTEN, after=NO_ID, after_ns=until, lost_bytes=lost, drained_row=drained
        )
    event, when = ended
    if event < 0 or (when - since > GRACE_NS and drained < 0):
        return None
    if drained < 0 and _waited_in_vain(session, partial, since, when, lookups):
        return None
    return _Dropped(partial=partial, how=_How.CLOSED, after=event, after_ns=when, lost_bytes=lost, drained_row=drained)


def _peer_gone(session: Session, connection: Connection, partial: Partial, later: Ids, lookups: _Lookups) -> bool:
    """Whether the peer ended or reset the connection after the short write: nobody is left to get the rest."""
    since = int(session.effective_ns[partial.event])
    rows = session.events.records[later]
    reads = np.isin(rows["call"], _READS)
    if (reads & ((rows["ret"] == 0) | ((rows["ret"] < 0) & (rows["ret"] != -11) & (rows["ret"] != -4)))).any():
        return True
    ended = _closed_ns(session, connection)
    if _told_gone(session, partial, session.info.ended_ns if ended is None else ended, lookups):
        return True
    if connection.flow < 0:
        return False
    flow, peer = session.flows[connection.flow], 1 - connection.local_side
    return any(
        at is not None and since <= at and (ended is None or at < ended)
        for at in (flow.fin_ns[peer], flow.rst_ns[peer])
    )


def _waited_in_vain(session: Session, partial: Partial, since_ns: int, until_ns: int, lookups: _Lookups) -> bool:
    """Whether the thread waited for room after its last write, and none came: its client takes nothing."""
    file = session.connections[partial.connection].open_file
    row = session.events.records[partial.event]
    between = lookups.of_thread(int(row["tid"]), since_ns, until_ns)
    waits = between[np.isin(session.events.records["call"][between], _WAITS)][-_WAITS_LOOKED_AT:].tolist()
    if any(
        ready.bits & OUT and lookups.names.of(wait, ready)[0] == file
        for wait in waits
        for ready in _ready(session, wait)
    ):
        return False
    epolls = {one.epoll for one in session.interests if one.open_file == file and one.events & OUT}
    return any(_asks_for_room(session, wait, int(row["args"][0]), epolls) for wait in waits)


def _ready(session: Session, wait: int) -> frozenset[Ready]:
    return ready_of(session, wait) or frozenset()


def _asks_for_room(session: Session, wait: int, fd: int, epolls: set[int]) -> bool:
    """Whether the wait was (also) for the descriptor to become writable."""
    polled = session.events.section(wait, Section.POLLFDS)
    if polled is not None:
        return any(number == fd and asked & OUT for number, asked, _ in struct.iter_unpack("<ihh", _whole(polled, 8)))
    sets = session.events.section(wait, Section.FDSETS_IN)
    if sets is not None:
        size = len(sets) // 3
        writing = sets[size : 2 * size]
        return fd // 8 < size and bool(writing[fd // 8] >> fd % 8 & 1)
    return int(session.event_open_file[wait]) in epolls


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]


def _told_gone(session: Session, partial: Partial, until_ns: int, lookups: _Lookups) -> bool:
    """Whether a wait of the same thread reported a hang-up of the connection before it was closed."""
    file = session.connections[partial.connection].open_file
    since, tid = int(session.effective_ns[partial.event]), int(session.events.records["tid"][partial.event])
    between = lookups.of_thread(tid, since, until_ns)
    waits = between[np.isin(session.events.records["call"][between], _WAITS)][-_WAITS_LOOKED_AT:]
    return any(
        ready.bits & _GONE and lookups.names.of(wait, ready)[0] == file
        for wait in waits.tolist()
        for ready in ready_of(session, wait) or ()
    )


def _closed_ns(session: Session, connection: Connection) -> int | None:
    return session.open_files[connection.open_file].released_ns if connection.open_file >= 0 else None


def _ended_by(session: Session, connection: Connection, later: Ids) -> tuple[int, int] | None:
    """(event, time) of the program's own end of its half; event -1: it ended otherwise. None: it has not."""
    rows = session.events.records[later]
    shut = later[(rows["call"] == Call.shutdown) & (rows["ret"] == 0) & (rows["args"][:, 1] != 0)]
    if len(shut):
        return int(shut[0]), int(session.effective_ns[shut[0]])
    released = _closed_ns(session, connection)
    if released is None:
        return None
    named = [session.descriptors[d] for d in session.open_files[connection.open_file].descriptors]
    final = max(named, key=lambda d: d.closed_ns or 0)
    return (final.closed_event if final.ended in _CLOSED else NO_ID), released


def _drained(session: Session, connection: Connection, since_ns: int) -> int:
    """A snapshot after that time which shows the send queue empty: there was room for the rest; -1 for none."""
    rows = session.samples_of(connection.id)
    shown = session.sockets.records[rows]
    fits = rows[(shown["time_ns"] > since_ns) & (shown["send_q"] == 0) & (shown["inode"] > 0)]
    return int(fits[0]) if len(fits) else NO_ID


def _goes_on(session: Session, partial: Partial, since_ns: int, lookups: _Lookups) -> bool:
    """Whether the thread did other things afterwards (else it may be at work on the rest)."""
    after = lookups.of_thread(int(session.events.records["tid"][partial.event]), since_ns, _NEVER_NS)
    return bool((session.event_connection[after] != partial.connection).any())


def _finding(session: Session, how: _How, found: list[_Dropped]) -> Finding:
    found.sort(key=lambda one: -one.lost_bytes)
    worst = found[0]
    partial = worst.partial
    row = session.events.records[partial.event]
    tgid, fd = int(row["tgid"]), int(row["args"][0])
    call = session.events.call(partial.event).name
    count = len(found)
    certain = how is not _How.FORGOTTEN
    later = span(worst.after_ns - int(session.effective_ns[partial.event]))
    what_next = {
        _How.CLOSED: f"{later} later it closed the connection",
        _How.OTHER_DATA: f"{later} later it sent other data, read into the same buffer",
        _How.FORGOTTEN: f"for {later} it did nothing about it, though the buffer had room again",
    }[how]
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR if certain else Severity.WARNING,
        confidence=Confidence.CERTAIN if certain else Confidence.LIKELY,
        title=f"{plural(count, 'connection')}: rest of a short {call} dropped, {how.value}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=tuple(sorted(one.partial.connection for one in found)),
        count=count,
        worst=partial.connection,
        explanation=(
            f"{who(session, tgid)} gave {call} on fd {fd} {partial.asked} bytes at "
            f"{since_start(session, int(session.effective_ns[partial.event]))}; {partial.taken} were taken. "
            f"{what_next[0].upper()}{what_next[1:]}: {worst.lost_bytes} bytes were never sent. "
            f"{plural(count, 'connection')} lost {sum(one.lost_bytes for one in found)} bytes in all."
        ),
        remedy=(
            f"Look at what {call} returns, and send the rest of it until nothing is left (sendall in Python; in an "
            "event loop keep the rest and wait for EPOLLOUT)."
        ),
        evidence=kept(_evidence(session, found)),
    )


def _evidence(session: Session, found: list[_Dropped]) -> Iterator[Evidence]:
    worst = found[0]
    yield from_event(session, worst.partial.event, f"{worst.partial.left} bytes are left")
    if worst.after >= 0:
        yield from_event(session, worst.after, f"{worst.lost_bytes} bytes were never sent")
    if worst.drained_row >= 0:
        yield from_socket(session, worst.drained_row, "room again")
    for other in found[1:3]:
        yield from_event(session, other.partial.event, f"the same: {other.partial.left} bytes left")
