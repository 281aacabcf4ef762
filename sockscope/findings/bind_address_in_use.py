"""bind or listen fails with EADDRINUSE, and why.

What it reports:
    A server that could not have its address: either somebody listens there (it says who), or a
    connection of a former run is still in TIME_WAIT (or open) on that port and SO_REUSEADDR was not set
    before bind.

Why it matters:
    The service does not start. After a restart it stays away for up to a minute, until the last
    TIME_WAIT has gone; a supervisor that gives up earlier leaves it down.

Evidence:
    The failed call, the option calls on the same socket (or that there were none), and the sockets that
    the kernel shows on the port.

Example:
    `bind(3, {AF_INET, 127.0.0.1:8080}) = -1 EADDRINUSE`, 4 times; two sockets in TIME_WAIT on port 8080, and
    no `setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [1])` before it.

Mend:
    `setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1)` before `bind`: it lets a listener bind over
    TIME_WAIT (never over another listener). Where someone listens: end it, or take another port. For a
    unix socket: remove the file that a former run left.

False positives:
    A program that tries another port next, or that gets the address at a later attempt, has coped:
    that is reported as info. So is 0.0.0.0 refused where the same program has the port under [::]
    already (which covers both).

References:
    bind(2) EADDRINUSE; socket(7) SO_REUSEADDR; RFC 9293 section 3.6.1 (TIME-WAIT).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Session
from sockscope.findings.shared.binding import INET, binds_of, bound_to, refused_addresses, reuse_events
from sockscope.findings.shared.evidence import (
    from_event,
    from_proc,
    from_socket,
    kept,
    listed,
    plural,
    program,
    since_start,
    state_name,
    who,
)
from sockscope.findings.shared.listener_holders import held_listeners
from sockscope.model.calls import Call, CallGroup
from sockscope.model.descriptors import OpenFile
from sockscope.model.findings import Confidence, Evidence, Finding, Holder, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.sockaddr import Address, Family
from sockscope.model.tcp import TcpState

RULE = Rule(
    slug="bind-address-in-use",
    severity=Severity.ERROR,
    summary="bind fails with EADDRINUSE: who listens there, or which TIME_WAIT, without SO_REUSEADDR",
    groups=frozenset({CallGroup.NETWORK}),
    times=False,
    bears_loss=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cause:
    """Why the address was refused.

    Attributes:
        certain: seen, and not only concluded from what was not seen.
        coped: no harm in it: the program's own socket covers the address already.
        rows: socket rows that show it.
    """

    words: str
    title: str
    remedy: str
    certain: bool
    coped: bool = False
    holder: Holder | None = None
    rows: tuple[int, ...] = ()


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and address."""
    tgids = session.events.records["tgid"]
    groups: defaultdict[tuple[str, Address], list[int]] = defaultdict(list)
    for event in refused_addresses(session).tolist():
        address = bound_to(session, event)
        if address is not None:
            groups[program(session, int(tgids[event])), address].append(event)
    if groups:
        # Who holds the port without a use for it is the cause, and a finding of its own.
        told = {event for one in held_listeners(session) for event in one.refused.tolist()}
        for (_, address), events in groups.items():
            if not told.issuperset(events):
                yield _finding(session, address, events)


def _finding(session: Session, address: Address, events: list[int]) -> Finding:
    first, last = events[0], events[-1]
    row = session.events.records[last]
    tgid, fd = int(row["tgid"]), int(row["args"][0])
    file = int(session.event_open_file[last])
    reused = reuse_events(session, file) if file >= 0 else np.zeros(0, np.int64)
    in_time = any(int(session.effective_ns[e]) < int(session.effective_ns[last]) for e in reused.tolist())
    cause = _cause(session, address, last, in_time)
    coped = _coped(session, events)
    known = file >= 0 and session.open_files[file].witnessed
    times = "once" if len(events) == 1 else f"{len(events)} times"
    option = ""
    if address.family in INET and cause.holder is None:
        option = (
            " SO_REUSEADDR was set on that socket in time."
            if in_time
            else " SO_REUSEADDR was not set on that socket before bind."
            if known
            else " Whether SO_REUSEADDR was set on that socket was not seen."
        )
    mild = bool(coped) or cause.coped
    return Finding(
        rule=RULE.slug,
        severity=Severity.INFO if mild else Severity.ERROR,
        confidence=Confidence.CERTAIN if cause.certain else Confidence.LIKELY,
        title=f"cannot bind {address}: {cause.title}",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        holder=cause.holder,
        count=len(events),
        explanation=(
            f"{who(session, tgid)} asked for {address} and was refused {times} (EADDRINUSE), first at "
            f"{since_start(session, int(session.effective_ns[first]))}. {cause.words}{option}{coped}"
        ),
        remedy=cause.remedy.format(fd=fd),
        evidence=kept(_evidence(session, events, cause, reused.tolist(), known)),
    )


def _coped(session: Session, events: list[int]) -> str:
    """In words, how the program got on: by a later attempt, or on another port; empty where it did not."""
    records = session.events.records
    last = events[-1]
    after = session.events_of_tgid(int(records["tgid"][last]))
    worked = (records["call"][after] == Call.bind) & (records["ret"][after] == 0)
    wanted = bound_to(session, last)
    for event in after[worked & (session.effective_ns[after] > session.effective_ns[last])].tolist():
        got = bound_to(session, event)
        if got is None or wanted is None or got.family != wanted.family:
            continue
        if got == wanted:
            return f" It got the address at {since_start(session, int(session.effective_ns[event]))}."
        if got.family in INET and got.packed == wanted.packed:
            return f" It took {got} instead."
    return ""


def _cause(session: Session, address: Address, event: int, in_time: bool) -> _Cause:
    if address.family == Family.UNIX:
        return _Cause(
            words="A file (or abstract name) of that name exists already.",
            title="the name exists",
            remedy="Remove the socket file before bind (after making sure that nobody answers there).",
            certain=True,
        )
    own = _own_listener(session, address, event)
    if own is not None:
        return _held_by_target(session, address, own, event)
    rows = session.sockets.records
    on_port = np.nonzero((rows["local_port"] == address.port) & (rows["protocol"] == 6))[0]
    on_port = on_port[rows["snapshot"][on_port] == _snapshot_near(session, int(session.effective_ns[event]))]
    listening = on_port[rows["state"][on_port] == TcpState.LISTEN]
    if len(listening):
        return _held_by_other(session, address, listening.tolist())
    return _left_over(session, address, on_port.tolist(), in_time)


def _own_listener(session: Session, address: Address, event: int) -> OpenFile | None:
    """A socket of the target that listened on the port at that moment."""
    when = int(session.effective_ns[event])
    asked = int(session.event_open_file[event])
    for file in session.open_files:
        if not file.listening or file.id == asked or file.local is None or file.local.port != address.port:
            continue
        if file.created_ns <= when and (file.released_ns is None or file.released_ns > when):
            return file
    return None


def _snapshot_near(session: Session, when_ns: int) -> int:
    """The first snapshot after that time (what refused may not have been there before), else the last; -1: none."""
    rows = session.sockets.records
    if not len(rows):
        return NO_ID
    after = np.nonzero(rows["time_ns"] >= when_ns)[0]
    return int(rows["snapshot"][after].min() if len(after) else rows["snapshot"].max())


def _held_by_target(session: Session, address: Address, file: OpenFile, event: int) -> _Cause:
    when = int(session.effective_ns[event])
    named = [session.descriptors[d] for d in file.descriptors]
    live = [d for d in named if d.opened_ns <= when and (d.closed_ns is None or d.closed_ns > when)]
    tgid = session.tgid_of_table(live[0].table) if live else -1
    same = tgid == int(session.events.records["tgid"][event])
    covers = same and file.local is not None and file.local.family != address.family
    holder = Holder(tgid=tgid, comm=session.comm(tgid), fd=live[0].fd) if live else None
    held = f"{who(session, tgid)} (fd {live[0].fd})" if live else "another socket of the target"
    return _Cause(
        words=f"{held} listens on {file.local}{', which covers both families' if covers else ''}.",
        title=f"{held} listens there",
        remedy=(
            "Bind once; or set IPV6_V6ONLY on the IPv6 socket so that each family has its own listener."
            if same
            else f"End {held} first, or share the port on purpose (SO_REUSEPORT on both, or pass the listener on)."
        ),
        certain=True,
        coped=covers,
        holder=holder,
    )


def _held_by_other(session: Session, address: Address, rows: list[int]) -> _Cause:
    owners = session.sockets.owners
    inodes = np.unique(session.sockets.records["inode"][rows])
    found = owners[np.isin(owners["inode"], inodes[inodes > 0])]
    holder = None
    held = "a process that could not be seen"
    if len(found):
        tgid, fd = int(found["tgid"][0]), int(found["fd"][0])
        comm = session.comm(tgid)
        holder = Holder(tgid=tgid, comm=comm, fd=fd) if fd >= 0 else None
        named = f" (fd {fd})" if fd >= 0 else ""
        held = f"{comm}[{tgid}]{named}" if comm != "?" else f"process {tgid}{named}"
    return _Cause(
        words=f"Port {address.port} is listened on by {held}.",
        title=f"{held} listens there",
        remedy=f"End {held} first (`ss -ltnp 'sport = :{address.port}'` shows it), or take another port.",
        certain=True,
        holder=holder,
        rows=tuple(rows[-1:]),
    )


def _left_over(session: Session, address: Address, rows: list[int], in_time: bool) -> _Cause:
    records = session.sockets.records
    states: Counter[str] = Counter()
    seen: set[tuple[bytes, int]] = set()
    for row in reversed(rows):
        key = (records["peer"][row].tobytes(), int(records["peer_port"][row]))
        if key not in seen and key[1]:
            seen.add(key)
            states[state_name(int(records["state"][row]))] += 1
    remedy = (
        "setsockopt(fd {fd}, SOL_SOCKET, SO_REUSEADDR, 1) before bind: a listener may then bind over TIME_WAIT."
        if not in_time
        else "Another socket holds the port bound without SO_REUSEADDR, or bound and not listening: close it first."
    )
    if not states or in_time:
        return _Cause(
            words=f"No listener was seen on port {address.port}."
            + ("" if in_time else " What remains is a socket of a former run, in TIME_WAIT most likely."),
            title="left over from a former run, without SO_REUSEADDR" if not in_time else "bound by another socket",
            remedy=remedy,
            certain=False,
        )
    shown = listed(f"{plural(count, 'socket')} in {name}" for name, count in states.most_common())
    main = "TIME_WAIT" if "TIME_WAIT" in states else states.most_common(1)[0][0]
    evident = [row for row in rows if state_name(int(records["state"][row])) == main]
    return _Cause(
        words=f"Nobody listens there; of former connections the kernel still has {shown} on port {address.port}.",
        title=f"{main} on port {address.port}, and SO_REUSEADDR not set",
        remedy=remedy,
        certain=True,
        rows=tuple(evident[-1:]),
    )


def _evidence(session: Session, events: list[int], cause: _Cause, reused: list[int], known: bool) -> Iterator[Evidence]:
    first = events[0]
    yield from_event(session, first, "refused")
    for row in cause.rows:
        yield from_socket(session, row, "what holds the port")
    if cause.holder is not None and not cause.rows:
        held = cause.holder
        yield from_proc(int(session.effective_ns[first]), f"{held.comm}[{held.tgid}] fd {held.fd} listens there")
    for event in reused[:1]:
        yield from_event(session, event, "SO_REUSEADDR")
    file = int(session.event_open_file[first])
    if known and not reused and file >= 0:
        yield from_proc(
            int(session.effective_ns[first]),
            f"fd {int(session.events.records['args'][first][0])}: no SO_REUSEADDR before bind "
            f"({plural(len(binds_of(session, file)), 'bind')} tried on it)",
        )
    if len(events) > 1:
        yield from_event(session, events[-1], f"refused again, the last of {len(events)}")
