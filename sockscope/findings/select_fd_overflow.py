"""A descriptor of 1024 or more meets select, whose sets hold 1024.

What it reports:
    select or pselect6 called with nfds above 1024, so that the kernel reads and writes bits beyond an fd_set; and the
    same program's other way to fail: connections with numbers of 1024 and more which a process that
    waits by select never asks about.

Why it matters:
    An fd_set is 128 bytes, whatever the limit on descriptors. FD_SET(1030, &set) writes into what lies behind it, and
    so does the kernel with the result: another set, a local variable, the return address. It works until the
    1025th descriptor is open. With a guard (number < FD_SETSIZE) nothing is damaged, and the connection is never
    served instead.

Evidence:
    The nfds of each call and where its sets lie: closer together than the bits they must hold means that they overlap.
    The descriptors of 1024 and more that were open meanwhile, and what became of them: bytes that nobody reads.

Example:
    `select(1027, 0x7ffd5c2a1b40, 0x7ffd5c2a1bc0, NULL, …)`: 128 bytes apart, and 129 bytes written.

Mend:
    poll(2) or epoll(7), which have no such limit. Where select has to stay: never let a descriptor above 1023 near it.

False positives:
    Sets of a program's own, allocated large enough, are legal on Linux (Ruby does so). So where the sets do
    not overlap, or there is but one, it is a warning and likely; an error and certain where they overlap.
    Connections of 1024 and more count as not watched only where the process waits by select alone, the
    connection was never used, and bytes (or an end of file) have been on it for a second and more.

References:
    select(2) "Bugs" (FD_SETSIZE), poll(2), epoll(7).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    from_proc,
    from_socket,
    kept,
    listed,
    plural,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.holding import uses_of
from sockscope.model.calls import WAITS, Call
from sockscope.model.columns import rows_of
from sockscope.model.descriptors import Descriptor
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpState

RULE = Rule(
    slug="select-fd-overflow",
    severity=Severity.ERROR,
    summary="a descriptor of 1024 or more in select, whose sets hold 1024",
    bears_loss=True,
)

FD_SETSIZE = 1024
_EBADF = -9
_SETS = range(1, 4)
_FAR = 1 << 16
"""Sets that lie further apart are no neighbours."""

_SELECTS = by_call([Call.select, Call.pselect6])
_WAITS = by_call(WAITS)
_SERVED = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unwatched:
    """A connection that select cannot be asked about. `row`: the socket row with bytes that nobody reads."""

    descriptor: Descriptor
    connection: int
    row: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a process."""
    records = session.events.records
    selects = rows_of(session.event_call, lambda calls: _SELECTS[calls])
    if not len(selects):
        return
    tgids = records["tgid"][selects]
    for tgid in np.unique(tgids).tolist():
        own = selects[tgids == tgid]
        over = own[records["args"][own, 0].astype(np.int64) > FD_SETSIZE]
        if len(over):
            yield _overflow(session, tgid, over)
        elif unwatched := _unwatched(session, tgid):
            yield _not_watched(session, tgid, own, unwatched)


def _high(session: Session, tgid: int) -> list[Descriptor]:
    """The process's descriptors of 1024 and more that were open at the end, or closed in the session."""
    return [
        one
        for one in session.descriptors
        if one.fd >= FD_SETSIZE and tgid in session.tables[one.table].tgids and one.open_file >= 0
    ]


def _overlapping(session: Session, event: int) -> tuple[int, int] | None:
    """(bytes between two of the call's sets, bytes of each that are written), where they overlap; None otherwise."""
    arguments = session.events.records["args"][event]
    sets = sorted(int(arguments[at]) for at in _SETS if int(arguments[at]))
    written = -(-int(arguments[0]) // 8)
    apart = [b - a for a, b in pairwise(sets) if 0 < b - a < min(written, _FAR)]
    return (min(apart), written) if apart else None


def _overflow(session: Session, tgid: int, over: Ids) -> Finding:
    records = session.events.records
    most = int(over[int(np.argmax(records["args"][over, 0].astype(np.int64)))])
    nfds = int(records["args"][most, 0])
    overlap = _overlapping(session, most)
    high = _high(session, tgid)
    connections = tuple(sorted({session.open_files[one.open_file].connection for one in high} - {NO_ID}))
    fds = sorted({one.fd for one in high})
    call = session.events.call(most).name
    beyond = (
        f"{plural(-(-nfds // 8) - FD_SETSIZE // 8, 'byte')} beyond each fd_set of glibc, which holds {FD_SETSIZE} bits"
    )
    proof = (
        f"Its sets lie {overlap[0]} bytes apart and {overlap[1]} bytes of each are read and written: they overlap, so "
        "that one set's bits are taken for another's."
        if overlap is not None
        else "Its sets lie far enough apart not to overlap; unless the program allocated them larger than an fd_set, "
        "what lies behind them is overwritten."
    )
    failed = int((records["ret"][over] == _EBADF).sum())
    refused = (
        f" {failed} of these calls failed with EBADF: they asked about numbers that nobody had put into a set."
        if failed
        else ""
    )
    numbers = (
        f" It had {plural(len(fds), 'descriptor')} of {FD_SETSIZE} and more: {listed(map(str, fds))}." if fds else ""
    )
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR if overlap is not None else Severity.WARNING,
        confidence=Confidence.CERTAIN if overlap is not None else Confidence.LIKELY,
        title=f"{call} with nfds {nfds}: an fd_set ends at {FD_SETSIZE}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fds[0] if len(fds) == 1 else None,
        connections=connections,
        count=max(1, len(connections)),
        worst=connections[-1] if connections else None,
        explanation=(
            f"{who(session, tgid)} called {call} {plural(len(over), 'time')} with nfds above {FD_SETSIZE}, first at "
            f"{since_start(session, int(session.effective_ns[over[0]]))}, {nfds} at most: {beyond}. "
            f"{proof}{refused}{numbers}"
        ),
        remedy=_MEND.format(call=call),
        evidence=kept(
            (
                from_event(session, most, f"reads and writes {-(-nfds // 8)} bytes of each set"),
                from_event(session, int(over[0]), "the first above 1024"),
                *_born(session, high),
            )
        ),
    )


_MEND = (
    "Use poll (the same shape, no limit) or epoll in the place of {call}; until then refuse, by closing them, "
    "connections whose descriptor is 1024 or more."
)


def _born(session: Session, high: list[Descriptor]) -> Iterator[Evidence]:
    for one in sorted(high, key=lambda one: one.opened_ns)[:2]:
        if one.opened_event >= 0:
            yield from_event(session, one.opened_event, f"fd {one.fd} does not fit an fd_set")
        else:
            yield from_proc(one.opened_ns, f"fd {one.fd} does not fit an fd_set")


def _unwatched(session: Session, tgid: int) -> list[_Unwatched]:
    """Connections of 1024 and more that nobody uses while something waits on them, in a process of select alone."""
    events = session.events_of_tgid(tgid)
    calls = session.events.records["call"][events]
    if session.info.syscalls.lost_count or (_WAITS[calls] & ~_SELECTS[calls]).any():
        return []
    found = []
    for one in _high(session, tgid):
        connection = session.open_files[one.open_file].connection
        if one.closed_ns is not None or connection < 0 or len(session.open_files[one.open_file].descriptors) > 1:
            continue
        if len(uses_of(session, session.events_of_descriptor(one.id))):
            continue
        rows = session.samples_of(connection)
        shown = session.sockets.records[rows]
        waiting = rows[(shown["recv_q"] > 0) & np.isin(shown["state"], _SERVED)]
        if not len(waiting):
            continue
        times = session.sockets.records["time_ns"][waiting]
        if int(times[-1]) - int(times[0]) >= GRACE_NS:
            found.append(_Unwatched(descriptor=one, connection=connection, row=int(waiting[-1])))
    return found


def _not_watched(session: Session, tgid: int, selects: Ids, unwatched: list[_Unwatched]) -> Finding:
    call = session.events.call(int(selects[-1])).name
    fds = sorted(one.descriptor.fd for one in unwatched)
    worst = min(unwatched, key=lambda one: one.descriptor.opened_ns)
    nfds = int(session.events.records["args"][selects, 0].astype(np.int64).max())
    age = session.info.ended_ns - max(worst.descriptor.opened_ns, session.info.started_ns)
    queued = int(session.sockets.records["recv_q"][worst.row])
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR,
        confidence=Confidence.LIKELY,
        title=f"{plural(len(unwatched), 'connection')} never served: {call} cannot be asked about fd {fds[0]}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fds[0] if len(fds) == 1 else None,
        connections=tuple(sorted(one.connection for one in unwatched)),
        count=len(unwatched),
        worst=worst.connection,
        explanation=(
            f"{who(session, tgid)} holds {plural(len(fds), 'connection')} as fd {listed(map(str, fds))}, and waits by "
            f"{call} alone, with nfds {nfds} at most: an fd_set ends at {FD_SETSIZE}. None of its calls has named "
            f"{'it' if len(fds) == 1 else 'them'}; on fd {worst.descriptor.fd} {plural(queued, 'byte')} wait to be "
            f"read, and nothing was done with it for {span(age)}."
        ),
        remedy=_MEND.format(call=call),
        evidence=kept(
            (
                from_socket(session, worst.row, "bytes that nobody reads"),
                *_born(session, [worst.descriptor]),
                from_event(session, int(selects[-1]), "waits for the others"),
            )
        ),
    )
