"""A connect that was only begun is used as if it were done.

What it reports:
    Non-blocking connects that returned EINPROGRESS, after which the program never found out how they ended: it sent
    or received at once, without waiting for the socket to be writable, and went on after that failed; or the
    connection was refused (or timed out) and the program neither asked (getsockopt SO_ERROR, connect again,
    getpeername) nor was told (a failed read or write, a hang-up in a wait), and keeps the socket.

Why it matters:
    What is written to such a socket goes nowhere, and the error that says why is thrown away: a metrics or log
    exporter that sends nothing for weeks. It is an error where the connect failed and the program went on all the
    same; a warning where it gave up a connect that was still under way, because the first read or write was not
    ready (ENOTCONN, EAGAIN): that depends on how far away the peer is, and never shows in tests.

Evidence:
    The connect, the calls after it with what they returned, the RST of the peer or the kernel's word that the
    socket went from SYN_SENT to CLOSE, and how often it went like this.

Example:
    `connect(5, 127.0.0.1:8125) = -1 EINPROGRESS`, `sendto(5, …) = -1 ECONNREFUSED`, and 5 more sends, each EPIPE.

Mend:
    After EINPROGRESS wait for EPOLLOUT (POLLOUT), then getsockopt(SOL_SOCKET, SO_ERROR): 0 means connected; else
    close the socket and report the error. Or use a blocking connect with a time limit.

False positives:
    Waiting for EPOLLOUT and then just writing, with the error of that write looked at, is common and harmless: one
    failed read or write, after which the socket is closed, is how the program learns. A first try that returns
    EAGAIN is, too, where the program then waits. A connect that is given up after a wait had its time. Sockets
    that wait to the end of the session are still at it; less than a second of keeping counts for nothing.

References:
    connect(2) EINPROGRESS; socket(7) SO_ERROR; send(2) ENOTCONN, EPIPE; RFC 9293 section 3.10.1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.replay.decode import socket_address
from sockscope.analysis.session import Session
from sockscope.findings.shared import told
from sockscope.findings.shared.binding import INET, SOCK_STREAM
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    kept,
    plural,
    program,
    share,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.halves import flow_of, packet_evidence
from sockscope.findings.shared.holding import DELIBERATE, Holdings
from sockscope.findings.shared.readiness import Names, ready_of
from sockscope.model.calls import READS, USUAL_GROUPS, WAITS, WRITES, Call, CallGroup
from sockscope.model.descriptors import OpenFile
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.tcp import TcpFlag

RULE = Rule(
    slug="connect-not-completed",
    severity=Severity.ERROR,
    summary="EINPROGRESS, and then used as if connected, or never asked how it ended",
    yields_to=frozenset({"sigpipe-death"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_EINPROGRESS, _EAGAIN, _ENOTCONN, _EPIPE = -115, -11, -107, -32
_NOT_YET = (_EAGAIN, _ENOTCONN)
_SO_ERROR = 4
_WAITS_LOOKED_AT = 50
_MOVES, _WAITS = by_call(READS | WRITES), by_call(WAITS)


class _How(StrEnum):
    WENT_ON = "failed, and the program went on"
    UNNOTICED = "failed, and nobody noticed"
    GIVEN_UP = "given up before it was done"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One connect.

    Attributes:
        used: what was called on it and failed, in order.
        closed: the close that gave it up; -1 for none.
        kept_ns: how long the socket was kept after the connect had failed (or been given up).
    """

    file: OpenFile
    how: _How
    connect: int
    used: tuple[int, ...]
    closed: int
    kept_ns: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program, manner and peer."""
    records = session.events.records
    begun = np.flatnonzero((session.event_call == Call.connect) & (session.event_open_file >= 0))
    begun = begun[records["ret"][begun] == _EINPROGRESS]
    if not len(begun):
        return
    names, holdings = Names(session), Holdings(session)
    groups: defaultdict[tuple[str, _How, str], list[_Case]] = defaultdict(list)
    tried: defaultdict[tuple[str, str], int] = defaultdict(int)
    for connect in begun[np.argsort(session.effective_ns[begun], kind="stable")].tolist():
        file = session.open_files[int(session.event_open_file[connect])]
        if file.socket_type not in (0, SOCK_STREAM) or file.family not in (0, *INET):
            continue
        name = program(session, int(records["tgid"][connect]))
        target = str(socket_address(session.events.blob_of(connect)) or "")
        tried[name, target] += 1
        if file.connection < 0 or file.connection not in explained:
            case = _judge(session, holdings, names, file, connect)
            if case is not None:
                groups[name, case.how, target].append(case)
    for (name, _, target), cases in groups.items():
        yield _finding(session, cases, target, tried[name, target])


def _judge(session: Session, holdings: Holdings, names: Names, file: OpenFile, connect: int) -> _Case | None:
    """Follow what was done on the socket after the connect, until the program knows how it ended."""
    records = session.events.records
    events = session.events_of_open_file(file.id)
    began = int(session.effective_ns[connect])
    events = events[session.effective_ns[events] > began]
    failures: list[int] = []
    for event in events.tolist():
        call, ret = session.events.call(event), int(records["ret"][event])
        if _MOVES[int(call)]:
            if ret >= 0 or int(records["exit_ns"][event]) < 0:
                return None
            failures.append(event)
        elif _asks(session, event, call, ret):
            break
    last = holdings.copies(file.id)[0]
    if len(file.descriptors) != 1:
        return None
    closed = last.descriptor.closed_event if last.descriptor.ended in DELIBERATE else NO_ID
    failed_ns = _failed_ns(session, file, failures, began)
    if len(failures) >= 2 and failed_ns is not None:
        return _went_on(session, file, connect, failures, closed, last.until_ns)
    if failures and failed_ns is None and closed >= 0:
        return _given_up(session, file, connect, failures, closed)
    if not failures and failed_ns is not None:
        asked = any(_asks(session, e, session.events.call(e), int(records["ret"][e])) for e in events.tolist())
        kept_ns = last.until_ns - failed_ns
        if not asked and kept_ns >= GRACE_NS and not _waits_for(session, holdings, names, file, began):
            return _Case(file=file, how=_How.UNNOTICED, connect=connect, used=(), closed=NO_ID, kept_ns=kept_ns)
    return None


def _asks(session: Session, event: int, call: Call, ret: int) -> bool:
    """Whether the call says how the connect ended."""
    if call is Call.getsockopt:
        args = session.events.records["args"][event]
        return int(args[1]) == 1 and int(args[2]) == _SO_ERROR
    return call is Call.connect or (call is Call.getpeername and ret == 0)


def _failed_ns(session: Session, file: OpenFile, failures: list[int], began: int) -> int | None:
    """When the connect failed: by the first failure that says so, else the peer's RST, else the kernel's word."""
    returned = session.events.records["ret"]
    for event in failures:
        if int(returned[event]) not in _NOT_YET:
            return int(session.effective_ns[event])
    if file.connection < 0:
        return None
    connection = session.connections[file.connection]
    flow = flow_of(session, connection)
    if flow is not None and flow.established_ns is None and flow.synack_ns is None:
        rst = flow.rst_ns[1 - connection.local_side]
        if rst is not None and rst >= began - GRACE_NS:
            return rst
    return None if flow is not None else told.when(session, told.reset(session, connection, sent=False))


def _went_on(
    session: Session, file: OpenFile, connect: int, failures: list[int], closed: int, until_ns: int
) -> _Case | None:
    """It failed, the first use said so, and more followed."""
    returned = session.events.records["ret"]
    said = next(at for at, event in enumerate(failures) if int(returned[event]) not in _NOT_YET)
    if len(failures) - said < 2:
        return None  # learned by the first real failure, and left
    kept_ns = until_ns - int(session.effective_ns[failures[said]])
    return _Case(file=file, how=_How.WENT_ON, connect=connect, used=tuple(failures), closed=closed, kept_ns=kept_ns)


def _given_up(session: Session, file: OpenFile, connect: int, failures: list[int], closed: int) -> _Case | None:
    """Not ready yet, and closed for that, without a wait."""
    records = session.events.records
    events = session.events_of_tid(int(records["tid"][connect]))
    when = session.effective_ns[events]
    between = events[(when > session.effective_ns[connect]) & (when < session.effective_ns[closed])]
    if _WAITS[records["call"][between]].any():
        return None
    kept_ns = int(session.effective_ns[closed]) - int(session.effective_ns[connect])
    if kept_ns >= GRACE_NS:
        return None
    return _Case(file=file, how=_How.GIVEN_UP, connect=connect, used=tuple(failures), closed=closed, kept_ns=kept_ns)


def _waits_for(session: Session, holdings: Holdings, names: Names, file: OpenFile, began: int) -> bool:
    """Whether a wait told of it, or would."""
    copy = holdings.copies(file.id)[0]
    if holdings.watches(copy):
        return True
    events = session.events_of_tgid(copy.tgid)
    events = events[(session.effective_ns[events] > began)]
    waits = events[_WAITS[session.events.records["call"][events]]][:_WAITS_LOOKED_AT]
    return any(
        names.of(wait, ready)[0] == file.id for wait in waits.tolist() for ready in ready_of(session, wait) or ()
    )


def _finding(session: Session, cases: list[_Case], target: str, tried: int) -> Finding:
    worst = max(cases, key=lambda case: len(case.used))
    records = session.events.records
    row = records[worst.connect]
    tgid, fd, count = int(row["tgid"]), int(row["args"][0]), len(cases)
    at = since_start(session, int(session.effective_ns[worst.connect]))
    to = f" to {target}" if target else ""
    told_of = f"{who(session, tgid)} began {share(count, max(count, tried), 'connect')}{to} like this: on fd {fd} "
    told_of += f"connect returned EINPROGRESS at {at}"
    uses = sum(len(case.used) for case in cases)
    if worst.how is _How.WENT_ON:
        call, second = (session.events.call(event).name for event in worst.used[:2])
        told_of += (
            f"; {call} was called {_after(session, worst.connect, worst.used[0])} "
            f"later and failed ({_errno(session, worst.used[0])}), and the program went on without asking: {second} "
            f"failed ({_errno(session, worst.used[1])}). {plural(uses, 'call')} failed in all; nothing arrived."
        )
        title = f"connect{to} never completed: {plural(uses, 'call')} on it failed"
    elif worst.how is _How.UNNOTICED:
        told_of += (
            f". It was refused, and for {span(worst.kept_ns)} the program has neither asked how it ended nor waited "
            "for it, and keeps the socket as if it were connected."
        )
        title = f"{plural(count, 'connect')}{to} refused, and nobody noticed"
    else:
        call = session.events.call(worst.used[0]).name
        told_of += (
            f"; {call} was called {_after(session, worst.connect, worst.used[0])} later and failed "
            f"({_errno(session, worst.used[0])}), which only says that it is not done yet, and "
            f"{span(worst.kept_ns)} after the connect the program closed the socket."
        )
        title = f"{plural(count, 'connect')}{to} given up while under way"
    connections = tuple(case.file.connection for case in cases if case.file.connection >= 0)
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if worst.how is _How.GIVEN_UP else Severity.ERROR,
        confidence=Confidence.LIKELY if worst.how is _How.UNNOTICED else Confidence.CERTAIN,
        title=title,
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=connections,
        count=count,
        worst=connections[0] if connections else None,
        explanation=told_of,
        remedy=(
            f"After EINPROGRESS wait until fd {fd} is writable (EPOLLOUT, POLLOUT), then ask getsockopt({fd}, "
            "SOL_SOCKET, SO_ERROR): 0 is connected; with anything else close it and report that error with the address."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _after(session: Session, one: int, other: int) -> str:
    return span(int(session.effective_ns[other]) - int(session.effective_ns[one]))


_NAMES = {11: "EAGAIN", 32: "EPIPE", 104: "ECONNRESET", 107: "ENOTCONN", 110: "ETIMEDOUT", 111: "ECONNREFUSED"}
_NAMES |= {101: "ENETUNREACH", 113: "EHOSTUNREACH"}


def _errno(session: Session, event: int) -> str:
    number = -int(session.events.records["ret"][event])
    return _NAMES.get(number, f"errno {number}")


def _evidence(session: Session, case: _Case) -> Iterator[Evidence]:
    if case.used:
        yield from_event(session, case.used[0], "used before it is known how the connect ended")
    yield from_event(session, case.connect, "only begun")
    if len(case.used) > 1:
        yield from_event(session, case.used[1], "and again")
        yield from_event(session, case.used[-1], f"the last of {len(case.used)}")
    if case.closed >= 0:
        yield from_event(session, case.closed, "given up")
    if case.file.connection >= 0:
        known = session.connections[case.file.connection]
        yield from packet_evidence(session, known, from_peer=True, flags=TcpFlag.RST, note="refused")
