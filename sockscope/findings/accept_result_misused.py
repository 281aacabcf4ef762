"""accept returned one descriptor and the program uses another.

What it reports:
    Accepted connections whose descriptor the program never touches (no read, no write, no option, no
    close, in no poll set), while it works with descriptor 0 or 1 as if that were a connection.

Why it matters:
    `if ((fd = accept(s, …) == -1))` stores the result of the comparison: fd is 0 for every connection.
    Clients get no answer and wait for ever, each costs a descriptor, and what was meant for them goes to
    the program's standard input (or closes it, so that the next accept returns 0 and seems to work).

Evidence:
    An accept and its result, that nothing ever used that number, and what was done with 0 or 1 instead.

Example:
    `accept(4, NULL, NULL) = 5`, then `write(0, "tick 1\\n", 7) = 7`, and 5 is never touched.

Mend:
    Put the parenthesis where it belongs: `if ((fd = accept(s, NULL, NULL)) == -1)`.
    `gcc -Wall` warns of it (-Wparentheses).

False positives:
    Connections that are merely held (nothing is done with them, and nothing with 0 or 1 either) are
    not reported; nor those passed to another process, watched by poll, select or epoll, or younger
    than a second. Writing to 1 is logging and does not count; reading 0 alone gives a warning.

References:
    accept(2) RETURN VALUE; gcc(1) -Wparentheses.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.accept_queue import ACCEPTS
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    from_proc,
    kept,
    plural,
    share,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.holding import Holdings
from sockscope.model.calls import READS, USUAL_GROUPS, WRITES, Call, CallGroup
from sockscope.model.descriptors import OpenFile
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.seed import FileKind

RULE = Rule(
    slug="accept-result-misused",
    severity=Severity.ERROR,
    summary="accept returned N, the program uses another number, and N is never touched",
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_SOCKET_ONLY = frozenset(
    {
        Call.sendto,
        Call.sendmsg,
        Call.recvfrom,
        Call.recvmsg,
        Call.shutdown,
        Call.setsockopt,
        Call.getsockopt,
        Call.getsockname,
        Call.getpeername,
    }
)
_SOCKET_ONLY_CALLS = np.array(sorted(_SOCKET_ONLY), np.uint16)
_ACCEPT_CALLS = np.array(sorted(ACCEPTS), np.uint16)
_READ_CALLS = np.array(sorted(READS - _SOCKET_ONLY), np.uint16)
_WRITE_CALLS = np.array(sorted(WRITES - _SOCKET_ONLY), np.uint16)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Untouched:
    """One accepted connection that nothing was done with until `until_ns`."""

    file: OpenFile
    fd: int
    tgid: int
    accept: int
    until_ns: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a process."""
    made = [c for c in session.connections if c.open_file >= 0 and c.opened_event >= 0 and c.witnessed]
    opened = np.array([c.opened_event for c in made], np.int64)
    files = np.array([c.open_file for c in made], np.int64)
    named = session.event_open_file[session.event_open_file >= 0]
    touched = np.bincount(named, minlength=len(session.open_files))
    accepts = np.isin(session.events.records["call"][opened], _ACCEPT_CALLS)
    by_tgid: defaultdict[int, list[_Untouched]] = defaultdict(list)
    for at in np.flatnonzero(accepts & (touched[files] == 0)).tolist():
        one = _untouched(session, session.open_files[made[at].open_file], made[at].opened_event)
        if one is not None:
            by_tgid[one.tgid].append(one)
    if not by_tgid:
        return
    holdings = Holdings(session)
    accepted = Counter(session.events.records["tgid"][opened[accepts]].tolist())
    for tgid, found in by_tgid.items():
        misuse, weak = _misuse(session, tgid, min(int(session.effective_ns[one.accept]) for one in found))
        if len(misuse):
            still = [one for one in found if not holdings.watches(holdings.copies(one.file.id)[0])]
            if still:
                yield _finding(session, still, accepted[tgid], misuse, weak)


def _untouched(session: Session, file: OpenFile, accept: int) -> _Untouched | None:
    if file.in_flight or len(file.descriptors) != 1:
        return None
    descriptor = session.descriptors[file.descriptors[0]]
    until = session.info.ended_ns if descriptor.closed_ns is None else descriptor.closed_ns
    if until - int(session.effective_ns[accept]) < GRACE_NS:
        return None
    return _Untouched(
        file=file,
        fd=descriptor.fd,
        tgid=int(session.events.records["tgid"][accept]),
        accept=accept,
        until_ns=until,
    )


def _misuse(session: Session, tgid: int, since_ns: int) -> tuple[Ids, bool]:
    """(what the process did with 0 or 1 that nobody does with them, whether it only read from 0)."""
    events = session.events_of_tgid(tgid)
    events = events[session.effective_ns[events] >= since_ns]
    rows = session.events.records[events]
    fd = rows["args"][:, 0] & np.uint64(0xFFFF_FFFF)
    calls = rows["call"]
    on_socket = np.isin(calls, _SOCKET_ONLY_CALLS)
    wrong = (fd == 0) & (on_socket | np.isin(calls, _WRITE_CALLS) | (calls == Call.close))
    wrong |= (fd == 1) & (on_socket | np.isin(calls, _READ_CALLS) | (calls == Call.close))
    found = events[wrong]
    # inetd style: 0 and 1 are a connection.
    found = found[[not _is_socket(session, event) for event in found.tolist()]] if len(found) else found
    if len(found):
        return found, False
    read = events[(fd == 0) & np.isin(calls, _READ_CALLS)]
    return read, True


def _is_socket(session: Session, event: int) -> bool:
    file = int(session.event_open_file[event])
    return file >= 0 and session.open_files[file].kind == FileKind.SOCKET


def _finding(session: Session, found: list[_Untouched], accepted: int, misuse: Ids, weak: bool) -> Finding:
    found.sort(key=lambda one: int(session.effective_ns[one.accept]))
    worst = found[0]
    count = len(found)
    records = session.events.records
    used = int(records["args"][misuse[0]][0])
    call = session.events.call(int(misuse[0])).name
    listener = int(records["args"][worst.accept][0])
    waited = span(worst.until_ns - int(session.effective_ns[worst.accept]))
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if weak else Severity.ERROR,
        confidence=Confidence.LIKELY if weak else Confidence.CERTAIN,
        title=f"{plural(count, 'accepted connection')} never touched; the program uses fd {used} instead",
        tgid=worst.tgid,
        comm=session.comm(worst.tgid),
        fd=worst.fd,
        connections=tuple(one.file.connection for one in found),
        count=count,
        worst=worst.file.connection,
        explanation=(
            f"{who(session, worst.tgid)} accepted fd {worst.fd} from fd {listener} at "
            f"{since_start(session, int(session.effective_ns[worst.accept]))} and has not used that number for "
            f"{waited}; so it is with {share(count, accepted)} accepted in this session. Instead it called {call} "
            f"{'once' if len(misuse) == 1 else f'and the like {len(misuse)} times'} on fd {used}, which is what an "
            f"assignment of the comparison gives: `fd = accept(…) == -1`."
        ),
        remedy="Put the assignment in parentheses of its own: if ((fd = accept(…)) == -1). gcc -Wall shows the place.",
        evidence=kept(_evidence(session, found, misuse, used)),
    )


def _evidence(session: Session, found: list[_Untouched], misuse: Ids, used: int) -> Iterator[Evidence]:
    worst = found[0]
    yield from_event(session, worst.accept, f"fd {worst.fd}: nothing was ever done with it")
    yield from_event(session, int(misuse[0]), f"uses fd {used}, which is no connection")
    if len(misuse) > 1:
        yield from_event(session, int(misuse[-1]), f"the last of {len(misuse)}")
    for other in found[1:3]:
        yield from_event(session, other.accept, f"fd {other.fd}: the same")
    yield from_proc(worst.until_ns, f"{who(session, worst.tgid)} fd {worst.fd}: open, and unused to the end")
