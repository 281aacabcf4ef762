"""A connection leaked into a child that has no use for it.

What it reports:
    Connections of which a child process holds a copy it never uses: a program started by fork and
    exec that the descriptor survived (no close-on-exec), or a forked child that did not close
    what it inherited. The connection is not withheld from its end yet; that is `fin-withheld`.

Why it matters:
    When the server closes the connection, no FIN will go out while the child lives. The child can also
    read and write it: a helper with a customer's connection is a hole.

Evidence:
    The fork (and the exec) by which the child got it, that it has not used it since, and that it still
    has it at the end of the session.

Example:
    `task_new` at +0.2 s, `execve("/usr/bin/sleep")` at +0.2 s: sleep[840] holds fd 7, 8 and 9, three
    clients' connections.

Mend:
    accept4 with SOCK_CLOEXEC (Python: do not call set_inheritable, leave close_fds=True); in a
    forked child close what it does not need.

False positives:
    A child that exits, execs or closes within 1 s inherits harmlessly. Copies that are used, waited
    for, duplicated or made inheritable by the child itself (Python's pass_fds), or placed on stdin, stdout or stderr
    are meant. Where it got the listener as well, inherited-listener tells of both. A fork without exec is reported
    as info: the server may end its connections by shutdown(2) (redis does, while it saves).

References:
    fork(2); execve(2); open(2) O_CLOEXEC; accept4(2) SOCK_CLOEXEC; PEP 446.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    kept,
    listed,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.holding import (
    Copy,
    Holdings,
    came_by,
    exec_after,
    handed_on,
    holder_of,
    holding_evidence,
    is_standard_stream,
    tcp_connections,
)
from sockscope.model.calls import USUAL_GROUPS, CallGroup
from sockscope.model.connections import Connection
from sockscope.model.descriptors import How
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="inherited-connection-fd",
    severity=Severity.WARNING,
    summary="a child process inherited a connection that it has no use for",
    yields_to=frozenset({"fin-withheld", "passed-fd-leak"}),
    follows=frozenset({"inherited-listener"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leak:
    connection: Connection
    child: Copy
    parent: Copy
    held_ns: int


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a child (or a group of children that run the same command, with the same parent)."""
    holdings = Holdings(session)
    groups: defaultdict[tuple[int, bool, str], list[_Leak]] = defaultdict(list)
    for connection in tcp_connections(session):
        if connection.id in explained:
            continue
        for leak in _judge(session, holdings, connection):
            executed = _is_other_program(session, leak.child)
            groups[leak.parent.tgid, executed, session.comm(leak.child.tgid)].append(leak)
    for leaks in groups.values():
        yield _finding(session, leaks)


def _judge(session: Session, holdings: Holdings, connection: Connection) -> Iterator[_Leak]:
    if len(session.open_files[connection.open_file].descriptors) < 2:
        return
    every = {copy.descriptor.id: copy for copy in holdings.copies(connection.open_file)}
    for child in every.values():
        parent = _parent_of(session, child, every)
        if parent is None or child.given_up:
            continue
        held_ns = child.until_ns - child.descriptor.opened_ns
        if (
            held_ns < GRACE_NS
            or len(child.uses)
            or is_standard_stream(child)
            or _is_meant(session, holdings, child, parent)
        ):
            continue
        yield _Leak(connection=connection, child=child, parent=parent, held_ns=held_ns)


def _parent_of(session: Session, child: Copy, every: dict[int, Copy]) -> Copy | None:
    """The copy it was forked from; of what was there at attach, that of its parent, if it runs another program."""
    if child.descriptor.how is How.FORK:
        return every.get(child.descriptor.source)
    process = session.processes.get(child.tgid)
    if child.descriptor.how is not How.SNAPSHOT or process is None or not process.exe:
        return None
    parents = (copy for copy in every.values() if copy.tgid == process.parent)
    return next((copy for copy in parents if program(session, copy.tgid) != process.exe), None)


def _is_other_program(session: Session, child: Copy) -> bool:
    return exec_after(session, child) >= 0 or child.descriptor.how is How.SNAPSHOT


def _is_meant(session: Session, holdings: Holdings, child: Copy, parent: Copy) -> bool:
    """The parent gave it away (no use of it since the fork), or the child waits for it, or made it inheritable."""
    last_use = int(session.effective_ns[parent.uses[-1]]) if len(parent.uses) else None
    given = last_use is None or (parent.given_up and last_use < child.descriptor.opened_ns)
    return given or handed_on(session, child) or holdings.watches(child)


def _finding(session: Session, leaks: list[_Leak]) -> Finding:
    leaks.sort(key=lambda leak: -leak.held_ns)
    worst = leaks[0]
    child, parent = worst.child, worst.parent
    executed = _is_other_program(session, child)
    witnessed = child.descriptor.how is How.FORK
    name, fd = who(session, child.tgid), child.descriptor.fd
    connections = tuple(dict.fromkeys(leak.connection.id for leak in leaks))
    count = len(connections)
    children = sorted({leak.child.tgid for leak in leaks})
    fds = listed(str(leak.child.descriptor.fd) for leak in leaks if leak.child.tgid == child.tgid)
    them = "it" if count == 1 else "them"
    explanation = (
        f"{name} holds {plural(count, 'connection')} of {who(session, parent.tgid)} (fd {fds}): it got {them} "
        f"{came_by(session, child, noun=them)}, and has not used {them} in {span(worst.held_ns)}."
    )
    if len(children) > 1:
        explanation += f" {plural(len(children) - 1, 'other child', 'other children')} of the same kind likewise."
    if executed:
        remedy = (
            f"Open connections with close-on-exec (accept4 with SOCK_CLOEXEC; in Python leave sockets "
            f"non-inheritable and close_fds=True), so that {session.comm(child.tgid)} does not get fd {fd}."
        )
    else:
        remedy = f"Close the connections in the child right after fork (here fd {fd} in {name})."
    confidence = Confidence.POSSIBLE if not executed else Confidence.CERTAIN if witnessed else Confidence.LIKELY
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if executed else Severity.INFO,
        confidence=confidence,
        title=f"{plural(count, 'connection')} inherited by {name}, which has no use for them",
        tgid=parent.tgid,
        comm=session.comm(parent.tgid),
        fd=parent.descriptor.fd,
        holder=holder_of(session, child),
        connections=connections,
        count=count,
        worst=worst.connection.id,
        explanation=explanation + f" When {session.comm(parent.tgid)} closes them, no FIN will go out.",
        remedy=remedy,
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, leak: _Leak) -> Iterator[Evidence]:
    yield from holding_evidence(session, leak.child)
    if len(leak.parent.uses):
        last = int(leak.parent.uses[-1])
        used_ns = int(session.effective_ns[last])
        note = f"its owner uses it as fd {leak.parent.descriptor.fd}, last at {since_start(session, used_ns)}"
        yield from_event(session, last, note)
