"""The server speaks through an io_uring, and what goes through it was not seen.

What it reports:
    A process of the target that uses io_uring, where the engine cannot show what passes through it (ptrace,
    strace: none of it), or left part of it out (bpf: requests about registered files, which have no
    descriptor). Where all of it is seen there is nothing to say.

Why it matters:
    It is no fault of the server. But an accept, a read or a close through a ring is no system call: rules that ask
    what a program did with a connection find nothing, and "no findings" of such a process says less than it seems to.

Evidence:
    The calls of io_uring_setup and io_uring_enter and how many requests they handed in; rings found at the attach; what
    the engine counted as left out; connections on the wire on which no call was seen.

Example:
    `io_uring_enter(4, 1, 1, IORING_ENTER_GETEVENTS) = 1`, and a connection with an answer on the wire but no write.

Mend:
    Watch it with the bpf engine (`--engine bpf`), which tells requests as the calls that they stand for. What is left
    out even there (registered files) shows in packets and socket states alone.

False positives:
    None in the sense of an alarm: it is information about the watching. A process that holds a ring and has not
    used it in the session is told as possible, since a kernel thread may take its requests without any call
    (IORING_SETUP_SQPOLL). With bpf nothing is said, but where the engine counted what it left out.

References:
    io_uring(7), io_uring_enter(2), io_uring_register(2) IORING_REGISTER_FILES.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Ids, Session
from sockscope.findings.shared.evidence import from_event, from_proc, kept, listed, plural, program, share, who
from sockscope.model.calls import Call, CallGroup
from sockscope.model.connections import Protocol, Role
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.seed import FileKind

RULE = Rule(
    slug="io-uring-blind-spot",
    severity=Severity.INFO,
    summary="the server uses io_uring: what cannot be seen is said",
    groups=frozenset({CallGroup.DESCRIPTORS}),
    times=False,
    bears_loss=True,
)

_LEFT_OUT = "io_uring"
"""How the engine's causes of loss begin that are about rings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _User:
    """One process that uses io_uring.

    Attributes:
        calls: its io_uring_setup and io_uring_enter.
        submitted: requests that these handed in.
        seen: events that went through a ring.
        rings: its descriptors of rings.
    """

    tgid: int
    calls: Ids
    submitted: int
    seen: int
    rings: tuple[int, ...]


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program: the workers of one server are alike."""
    users = _users(session)
    if not users:
        return
    left_out = {cause: n for cause, n in session.info.syscalls.lost.items() if cause.startswith(_LEFT_OUT) and n}
    tells = session.info.syscalls.engine == "bpf" or any(user.seen for user in users)
    if tells and not left_out:
        return
    groups: defaultdict[str, list[_User]] = defaultdict(list)
    for user in users:
        groups[program(session, user.tgid)].append(user)
    for name, own in groups.items():
        yield _finding(session, own, left_out if tells else {}, alone=len(groups) == 1 or not name)


def _users(session: Session) -> list[_User]:
    records = session.events.records
    calls = session.event_call
    ring_calls = np.flatnonzero((calls == Call.io_uring_setup) | (calls == Call.io_uring_enter))
    through = records["tgid"][(records["flags"] & EventFlag.URING) != 0]
    rings: defaultdict[int, set[int]] = defaultdict(set)
    for file in session.open_files:
        if file.kind == FileKind.IO_URING:
            for one in (session.descriptors[number] for number in file.descriptors):
                rings[session.tgid_of_table(one.table)].add(one.fd)
    tgids = {*np.unique(records["tgid"][ring_calls]).tolist(), *np.unique(through).tolist(), *rings}
    found = []
    for tgid in sorted(tgids):
        own = ring_calls[records["tgid"][ring_calls] == tgid]
        entered = own[(records["call"][own] == Call.io_uring_enter) & (records["ret"][own] > 0)]
        failed = (records["call"][own] == Call.io_uring_setup) & (records["ret"][own] < 0)
        seen = int((through == tgid).sum())
        if failed.all() and not seen and tgid not in rings:
            # It asked whether it may, and may not.
            continue
        found.append(
            _User(
                tgid=tgid,
                calls=own[np.argsort(session.effective_ns[own], kind="stable")],
                submitted=int(records["ret"][entered].sum()),
                seen=seen,
                rings=tuple(sorted(rings[tgid])),
            )
        )
    return found


def _silent(session: Session, tgids: frozenset[int]) -> tuple[list[int], int]:
    """(connections to a port of these processes on which no call was seen, how many there are in all)."""
    ports = set()
    for file in session.open_files:
        held = (session.descriptors[number] for number in file.descriptors) if file.listening else ()
        if file.local is not None and any(tgids & set(session.tables[one.table].tgids) for one in held):
            ports.add(file.local.port)
    touched = np.zeros(len(session.connections) + 1, np.bool_)
    touched[session.event_connection[session.event_connection >= 0]] = True
    every = [
        one.id
        for one in session.connections
        if one.protocol is Protocol.TCP and one.role is Role.SERVER and one.local and one.local.port in ports
    ]
    return [number for number in every if not touched[number]], len(every)


def _finding(session: Session, users: list[_User], left_out: dict[str, int], *, alone: bool) -> Finding:
    first = max(users, key=lambda user: user.submitted)
    submitted = sum(user.submitted for user in users)
    names = listed(who(session, user.tgid) for user in users)
    verb = "uses" if len(users) == 1 else "use"
    rings = f" (fd {listed(map(str, first.rings))})" if len(users) == 1 and first.rings else ""
    handed = (
        f"{plural(submitted, 'request')} {'was' if submitted == 1 else 'were'} handed in while watched"
        if submitted
        else "No request was handed in by a call while watched: it is idle, or a kernel thread takes them (SQPOLL)"
    )
    silent, total = _silent(session, frozenset(user.tgid for user in users))
    if left_out:
        seen = sum(user.seen for user in users)
        causes = listed(f"{count} × {cause.removeprefix('io_uring ')}" for cause, count in left_out.items())
        whose = "" if alone else ", those of other programs among them"
        what = f"{plural(seen, 'call')} came out of them; not seen were {causes}{whose}"
        title = f"part of what goes through io_uring is not seen: {plural(sum(left_out.values()), 'request')}"
        remedy = (
            "Nothing is to be mended in the server. What requests of registered files did shows in packets and socket "
            "states alone; without IORING_REGISTER_FILES for its sockets the server would be seen whole."
        )
    else:
        engine = session.info.syscalls.engine
        what = f"the {engine} engine sees system calls, and none of these is one"
        title = (
            f"what goes through io_uring is not seen: {plural(submitted, 'request')}"
            if submitted
            else "an io_uring is there, and what goes through it would not be seen"
        )
        remedy = "Watch it with `--engine bpf`, which tells each request as the call that it stands for."
    quiet = (
        f" On {share(len(silent), total)} to it no call was seen at all: what is said of them comes "
        "from packets and socket states."
        if silent
        else ""
    )
    return Finding(
        rule=RULE.slug,
        severity=Severity.INFO,
        confidence=Confidence.CERTAIN if submitted or left_out else Confidence.POSSIBLE,
        title=title,
        tgid=first.tgid,
        comm=session.comm(first.tgid),
        fd=first.rings[0] if len(users) == 1 and len(first.rings) == 1 else None,
        connections=tuple(silent),
        count=len(users),
        worst=silent[0] if silent else None,
        explanation=f"{names} {verb} io_uring{rings}. {handed}; {what}.{quiet}",
        remedy=remedy,
        evidence=kept(_evidence(session, first)),
    )


def _evidence(session: Session, user: _User) -> Iterator[Evidence]:
    entered = user.calls[session.events.records["ret"][user.calls] > 0]
    if len(entered):
        yield from_event(session, int(entered[-1]), "hands requests in; no calls of their own follow")
    for fd in user.rings[:1]:
        yield from_proc(session.info.started_ns, f"{who(session, user.tgid)} fd {fd}: anon_inode:[io_uring]")
    if len(user.calls):
        yield from_event(session, int(user.calls[0]))
