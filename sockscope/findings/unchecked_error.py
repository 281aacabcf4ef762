"""A call failed and the program went on as if it had not.

What it reports:
    Certain cases only. `listen` (or `accept`) on a socket whose `bind` (`listen`) failed; reading or
    writing a socket whose `connect` failed; using -1 as a descriptor after the call that should have
    made one failed.

Why it matters:
    After a failed bind, listen takes a port of the kernel's choice: the server runs, and nobody finds
    it. Data written to a socket that was never connected is lost, and the second write can kill the
    process by SIGPIPE. The real error is named nowhere; what is logged, if anything, is its consequence.

Evidence:
    The call that failed, and the next use of what it should have made.

Example:
    `connect(5, 127.0.0.1:4242) = -1 ECONNREFUSED`, then `sendto(5, "requests:1|c", …) = -1 EPIPE`.

Mend:
    Look at the result where the call is made, and leave by another path: close the socket, report
    errno with the address, try again later.

False positives:
    EAGAIN, EINPROGRESS, EALREADY, EISCONN and EINTR are not failures here, datagram sockets are left out,
    and so is closing -1, which clean-up code does and which harms nobody. A use counts only if it failed
    itself, and a call that worked on the same socket in between clears it.

References:
    bind(2), listen(2), connect(2), send(2) EPIPE and ENOTCONN; ip(7) (automatic bind in listen).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sockscope.analysis.replay.control import CREATES, by_call
from sockscope.analysis.replay.decode import socket_address
from sockscope.analysis.session import Session
from sockscope.findings.shared.accept_queue import ACCEPTS
from sockscope.findings.shared.binding import INET, SOCK_STREAM
from sockscope.findings.shared.evidence import from_event, kept, plural, program, since_start, who
from sockscope.findings.shared.holding import USES
from sockscope.model.calls import FD_IN_ARG0, READS, USUAL_GROUPS, WRITES, Call, CallGroup
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="unchecked-error",
    severity=Severity.ERROR,
    summary="a call failed and the program went on as if it had not",
    groups=USUAL_GROUPS | {CallGroup.TASKS},
    times=False,
)

_EBADF = 9
_NOT_FAILURES = np.array([-4, -11, -106, -114, -115])  # EINTR, EAGAIN, EISCONN, EALREADY, EINPROGRESS
_SETS_UP = by_call([Call.bind, Call.listen, Call.connect])
_MOVES = READS | WRITES
_ON_MINUS_ONE = np.array(sorted((USES | FD_IN_ARG0) - {Call.close, Call.fcntl, Call.epoll_ctl}), np.uint16)
_MAKES = np.array(sorted(CREATES), np.uint16)


class _Manner(StrEnum):
    RANDOM_PORT = "listen after a failed bind"
    NOT_LISTENING = "accept after a failed listen"
    NOT_CONNECTED = "used after a failed connect"
    MINUS_ONE = "-1 used as a descriptor"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One failure that nobody looked at, and the call that shows it."""

    manner: _Manner
    failed: int
    used: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program, manner and cause (the call that failed, and its address)."""
    groups: defaultdict[tuple[str, _Manner, str], list[_Case]] = defaultdict(list)
    records = session.events.records
    for case in (*_on_sockets(session), *_on_minus_one(session)):
        address = socket_address(session.events.blob_of(case.failed))
        cause = f"{session.events.call(case.failed).name} {address or ''}"
        groups[program(session, int(records["tgid"][case.failed])), case.manner, cause].append(case)
    for (_, manner, _), cases in groups.items():
        yield _finding(session, manner, cases)


def _on_sockets(session: Session) -> Iterator[_Case]:
    records = session.events.records
    calls = np.flatnonzero(_SETS_UP[session.event_call] & (session.event_open_file >= 0))
    returned = records["ret"][calls]
    failed = calls[(returned < 0) & ~np.isin(returned, _NOT_FAILURES)]
    for number in np.unique(session.event_open_file[failed]).tolist():
        file = session.open_files[number]
        if file.family in INET and file.socket_type == SOCK_STREAM and file.witnessed:
            yield from _on_socket(session, number)


def _on_socket(session: Session, number: int) -> Iterator[_Case]:
    records = session.events.records
    pending: dict[Call, int] = {}
    for event in session.events_of_open_file(number).tolist():
        call, ret = session.events.call(event), int(records["ret"][event])
        if call in (Call.bind, Call.listen, Call.connect):
            if call is Call.listen and ret == 0 and Call.bind in pending:
                yield _Case(manner=_Manner.RANDOM_PORT, failed=pending.pop(Call.bind), used=event)
            if ret >= 0:
                pending.pop(call, None)
            elif ret not in _NOT_FAILURES:
                pending[call] = event
            elif call is Call.connect:
                pending.pop(call, None)
        elif call in ACCEPTS and ret < 0 and Call.listen in pending:
            yield _Case(manner=_Manner.NOT_LISTENING, failed=pending.pop(Call.listen), used=event)
        elif call in _MOVES and Call.connect in pending:
            failed = pending.pop(Call.connect)
            if ret < 0 and ret not in _NOT_FAILURES:
                yield _Case(manner=_Manner.NOT_CONNECTED, failed=failed, used=event)


def _on_minus_one(session: Session) -> Iterator[_Case]:
    records = session.events.records
    bad = np.flatnonzero(records["ret"] == -_EBADF)
    used = bad[np.isin(session.event_call[bad], _ON_MINUS_ONE)]
    used = used[(records["args"][used, 0] & np.uint64(0xFFFF_FFFF)) == 0xFFFF_FFFF]
    for tid in np.unique(records["tid"][used]).tolist():
        mine = session.events_of_tid(tid)
        made = mine[np.isin(records["call"][mine], _MAKES)]
        before = np.searchsorted(session.effective_ns[made], session.effective_ns[used], "left") - 1
        for event, at in zip(used.tolist(), before.tolist(), strict=True):
            if int(records["tid"][event]) != tid or at < 0:
                continue
            ret = int(records["ret"][made[at]])
            if ret < 0 and ret not in _NOT_FAILURES:
                yield _Case(manner=_Manner.MINUS_ONE, failed=int(made[at]), used=event)


_MENDS = {
    _Manner.RANDOM_PORT: "Stop where bind fails: report errno and the address, close {fd}, and do not call listen.",
    _Manner.NOT_LISTENING: "Stop where listen fails: report errno, close {fd}, and do not call accept.",
    _Manner.NOT_CONNECTED: "Look at the result of connect: where it fails, report it, close {fd}, and do not use it.",
    _Manner.MINUS_ONE: "Look at the result of {call} before using it as a descriptor.",
}


def _finding(session: Session, manner: _Manner, cases: list[_Case]) -> Finding:
    records = session.events.records
    first = cases[0]
    failed = session.events.call(first.failed).name
    used = session.events.call(first.used).name
    tgid = int(records["tgid"][first.failed])
    fd = int(records["args"][first.failed][0]) if manner is not _Manner.MINUS_ONE else None
    address = socket_address(session.events.blob_of(first.failed))
    target = f" to {address}" if address else ""
    count = len(cases)
    consequence = ""
    if manner is _Manner.RANDOM_PORT and int(session.event_open_file[first.used]) >= 0:
        local = session.open_files[int(session.event_open_file[first.used])].local
        got = f" ({local})" if local is not None and local != address else ""
        consequence = f" It now listens on a port that the kernel chose{got}, where no client looks for it."
    harmful = manner in (_Manner.RANDOM_PORT, _Manner.NOT_LISTENING)
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR if harmful else Severity.WARNING,
        confidence=Confidence.CERTAIN,
        title=f"{manner.value}: {failed}{target} failed {'once' if count == 1 else f'{count} times'}, unnoticed",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        count=count,
        explanation=(
            f"In {who(session, tgid)} {failed}{target} failed {plural(count, 'time')}, first at "
            f"{since_start(session, int(session.effective_ns[first.failed]))}, and the program called {used} on it "
            f"all the same.{consequence}"
        ),
        remedy=_MENDS[manner].format(fd=f"fd {fd}", call=failed),
        evidence=kept(_evidence(session, cases)),
    )


def _evidence(session: Session, cases: list[_Case]) -> Iterator[Evidence]:
    yield from_event(session, cases[0].used, "goes on as if it had worked")
    yield from_event(session, cases[0].failed, "failed")
    if len(cases) > 1:
        yield from_event(session, cases[-1].used, f"the last of {len(cases)}")
