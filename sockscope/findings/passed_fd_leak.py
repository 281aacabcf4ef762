"""A connection passed by SCM_RIGHTS is never closed by one of the two.

What it reports:
    Connections that one process passed to another over a unix socket, and whose descriptor the sender
    keeps and never uses again; or that the receiver got and neither uses, waits for, nor closes.

Why it matters:
    Passing a descriptor makes a second reference. While the sender's is open, the receiver's close
    sends no FIN, so clients wait for an end that does not come; and each connection costs the sender a
    descriptor for good.

Evidence:
    The sendmsg with SCM_RIGHTS, the recvmsg that made the copy, what the other process did with
    it (served, closed), and that this one's is open to the end.

Example:
    dispatcher[812] `accept4(3) = 9`, `sendmsg(5, SCM_RIGHTS [9])`; worker[813] got it as fd 6,
    answered and closed it; dispatcher's fd 9 is never closed.

Mend:
    close(fd) in the sender right after a successful sendmsg: the message itself keeps the connection
    open until it is received. In the receiver, close every descriptor that arrived, also those of
    messages it does not want.

False positives:
    A sender that goes on using the connection, or waits for it, shares it on purpose. The copy is given
    1 s. Listeners, pipes and memory handed over are not looked at.

References:
    unix(7) SCM_RIGHTS; sendmsg(2); cmsg(3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    from_proc,
    kept,
    listed,
    plural,
    program,
    share,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.halves import last_sample_evidence
from sockscope.findings.shared.holding import Copy, Holdings, holder_of, tcp_connections
from sockscope.findings.shared.withheld import withheld
from sockscope.model.calls import USUAL_GROUPS, CallGroup
from sockscope.model.connections import Connection
from sockscope.model.descriptors import How
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="passed-fd-leak",
    severity=Severity.ERROR,
    summary="a connection passed by SCM_RIGHTS is never closed by its sender or its receiver",
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leak:
    """`keeper` is the copy that nobody uses or closes; `other` the copy on the other side of the message."""

    connection: Connection
    keeper: Copy
    other: Copy
    by_sender: bool
    kept_ns: int

    @property
    def fin_is_missing(self) -> bool:
        return self.other.given_up


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program and side (sender, receiver)."""
    holdings = Holdings(session)
    groups: defaultdict[tuple[str, bool], list[_Leak]] = defaultdict(list)
    for connection in tcp_connections(session):
        leak = _judge(session, holdings, connection)
        if leak is not None and connection.id not in explained:
            groups[program(session, leak.keeper.tgid), leak.by_sender].append(leak)
    for leaks in groups.values():
        yield _finding(session, leaks)


def _judge(session: Session, holdings: Holdings, connection: Connection) -> _Leak | None:
    descriptors = session.open_files[connection.open_file].descriptors
    if not any(session.descriptors[number].how is How.SCM_RIGHTS for number in descriptors):
        return None
    every = {copy.descriptor.id: copy for copy in holdings.copies(connection.open_file)}
    for copy in every.values():
        sent = every.get(copy.descriptor.source)
        if copy.descriptor.how is not How.SCM_RIGHTS or sent is None or sent.tgid == copy.tgid:
            continue
        received_ns = copy.descriptor.opened_ns
        if len(copy.uses) and _is_forgotten(session, holdings, sent, received_ns):
            return _leak(connection, keeper=sent, other=copy, by_sender=True)
        # Where the sender served it and closed, the missing FIN is the graver news (fin-withheld).
        forgotten = _is_forgotten(session, holdings, copy, received_ns) and _went_on(session, copy)
        if forgotten and withheld(session, holdings, connection) is None:
            return _leak(connection, keeper=copy, other=sent, by_sender=False)
    return None


def _is_forgotten(session: Session, holdings: Holdings, copy: Copy, since_ns: int) -> bool:
    """Neither used since, nor waited for, nor closed within the grace."""
    if copy.given_up or copy.until_ns - since_ns < GRACE_NS:
        return False
    if len(copy.uses) and int(session.effective_ns[copy.uses[-1]]) >= since_ns:
        return False
    return not holdings.watches(copy)


def _went_on(session: Session, copy: Copy) -> bool:
    """The receiver has done something else since: it is not just slow to begin."""
    events = session.events_of_tgid(copy.tgid)
    later = session.effective_ns[events] > copy.descriptor.opened_ns
    return bool((later & (session.event_descriptor[events] != copy.descriptor.id)).sum() > 1)


def _leak(connection: Connection, *, keeper: Copy, other: Copy, by_sender: bool) -> _Leak:
    passed_ns = max(keeper.descriptor.opened_ns, other.descriptor.opened_ns)
    return _Leak(
        connection=connection,
        keeper=keeper,
        other=other,
        by_sender=by_sender,
        kept_ns=keeper.until_ns - passed_ns,
    )


def _finding(session: Session, leaks: list[_Leak]) -> Finding:
    leaks.sort(key=lambda leak: (not leak.fin_is_missing, -leak.kept_ns))
    worst = leaks[0]
    keeper, other = worst.keeper, worst.other
    count = len(leaks)
    name, fd = who(session, keeper.tgid), keeper.descriptor.fd
    missing = sum(leak.fin_is_missing for leak in leaks)
    fds = listed(str(leak.keeper.descriptor.fd) for leak in leaks)
    if worst.by_sender:
        told = (
            f"{name} passed {plural(count, 'connection')} by SCM_RIGHTS and kept its own copies open (fd {fds}), "
            f"without using them again. In the worst case {who(session, other.tgid)} received it as fd "
            f"{other.descriptor.fd} at {since_start(session, other.descriptor.opened_ns)}"
        )
        told += " and closed it when it was done" if worst.fin_is_missing else " and serves it"
        told += f"; fd {fd} of {name} was still open {span(worst.kept_ns)} after it was passed."
        remedy = f"close({fd}) in {name} after sendmsg has succeeded: the message keeps the connection open."
    else:
        told = (
            f"{name} received {plural(count, 'connection')} by SCM_RIGHTS (fd {fds}) and has neither used, "
            f"waited for, nor closed them; fd {fd} for {span(worst.kept_ns)}."
        )
        remedy = f"Close in {name} every descriptor that arrives and is not wanted (here fd {fd})."
    if missing:
        told += f" For {share(missing, count)} the other side is done: only this copy keeps the FIN from going out."
    return Finding(
        rule=RULE.slug,
        severity=Severity.ERROR if missing and worst.by_sender else Severity.WARNING,
        confidence=Confidence.CERTAIN if worst.by_sender else Confidence.LIKELY,
        title=f"{plural(count, 'connection')} passed by SCM_RIGHTS and never closed by {name}",
        tgid=keeper.tgid,
        comm=session.comm(keeper.tgid),
        fd=fd,
        holder=holder_of(session, keeper),
        connections=tuple(leak.connection.id for leak in leaks),
        count=count,
        worst=worst.connection.id,
        explanation=told,
        remedy=remedy,
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, leak: _Leak) -> Iterator[Evidence]:
    received = leak.other if leak.by_sender else leak.keeper
    name, fd = who(session, received.tgid), received.descriptor.fd
    if received.descriptor.opened_event >= 0:
        yield from_event(session, received.descriptor.opened_event, f"{name} gets it as fd {fd}")
    sender = leak.keeper if leak.by_sender else leak.other
    if sender.descriptor.opened_event >= 0:
        yield from_event(session, sender.descriptor.opened_event, f"the sender's copy, fd {sender.descriptor.fd}")
    if leak.other.descriptor.closed_event >= 0:
        yield from_event(session, leak.other.descriptor.closed_event, "closed here, but not there")
    keeper = leak.keeper
    text = f"{who(session, keeper.tgid)} fd {keeper.descriptor.fd}: still open"
    yield from_proc(keeper.until_ns, text)
    yield from last_sample_evidence(session, leak.connection, before_ns=keeper.until_ns)
