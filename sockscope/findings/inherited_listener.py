"""A child that has no use for it holds the listening socket.

What it reports:
    Listening TCP sockets of which a child process has a copy that it neither accepts from nor waits for:
    a program started by fork and exec that the descriptor survived (no close-on-exec), or a forked child
    that still has it after the server itself has closed it.

Why it matters:
    A port is free when the last descriptor of its listener is closed. When the server ends and the child
    lives on, the port stays taken: the restart fails with EADDRINUSE (SO_REUSEADDR does not help against a
    listener), and the kernel goes on completing handshakes, so clients connect and wait for ever instead of
    being refused. That is an error, and certain. While the server still has the listener itself nothing is
    wrong yet: a warning, of what the next restart will bring.

Evidence:
    The fork (and the exec) by which the child got it, that it never accepted from it or waited for it, when the
    server's own descriptor went, and the binds that were refused since. For what was there before watching
    began: that the two share the open file, and that they run different programs (likely then).

Example:
    `fork` and `execve("/usr/bin/sleep")`: sleep[840] has the listener as fd 3. The server closes its own at
    +0.9 s; `bind(3, 127.0.0.1:8080) = -1 EADDRINUSE` at +0.9 s.

Mend:
    Open the listener with SOCK_CLOEXEC (socket(…, SOCK_STREAM | SOCK_CLOEXEC, 0); in Python do not call
    set_inheritable, and leave close_fds=True), or close it in the child right after fork.

False positives:
    Sharing a listener is how prefork servers, socket activation (LISTEN_FDS) and graceful upgrades work. A
    process that accepts from it or waits for it uses it, and so do its ancestors. Given on purpose is
    also what the child made inheritable itself or duplicated before exec, what it has as stdin, stdout or stderr,
    and what a process that runs the same program inherited while the server has it too. One second of holding
    is allowed; a child that exits, execs or closes by then inherits harmlessly.

References:
    fork(2); execve(2); socket(2) SOCK_CLOEXEC; bind(2) EADDRINUSE; sd_listen_fds(3); PEP 446.
"""

from __future__ import annotations

from collections.abc import Iterator

from sockscope.analysis.session import Session
from sockscope.findings.shared.accept_queue import Queue, queues
from sockscope.findings.shared.evidence import (
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
from sockscope.findings.shared.holding import Copy, came_by, holder_of, holding_evidence
from sockscope.findings.shared.listener_holders import Held, held_listeners
from sockscope.model.calls import USUAL_GROUPS, CallGroup
from sockscope.model.descriptors import How
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="inherited-listener",
    severity=Severity.ERROR,
    summary="a child process holds the listening socket: the port stays taken when the server ends",
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a listener."""
    held = held_listeners(session)
    waiting = queues(session) if any(one.gone_ns is not None for one in held) else []
    for one in held:
        queue = next((q for q in waiting if any(file.id == one.file.id for file in q.listeners)), None)
        yield _finding(session, one, queue if one.gone_ns is not None else None)


def _finding(session: Session, held: Held, queue: Queue | None) -> Finding:
    child, owner = held.holders[0], held.owner
    name, server, fd = who(session, child.tgid), who(session, owner.tgid), child.descriptor.fd
    address = held.file.local or "its address"
    count = len(held.holders)
    told = f"{name} holds the listener of {server} on {address} as fd {fd}: it got it {came_by(session, child)}"
    if child.descriptor.how is How.SNAPSHOT:
        told = f"{name}, a child of {server}, had its listener on {address} as fd {fd} {came_by(session, child)}"
    if count > 1:
        others = listed(who(session, copy.tgid) for copy in held.holders[1:])
        told += f"; {others} likewise"
    told += ". It has neither accepted from it nor waited for it."
    connections: tuple[int, ...] = ()
    if held.gone_ns is None:
        title = f"{name} inherited the listener on {address}"
        told += f" When {session.comm(owner.tgid)} ends, the port stays taken, and a restart fails with EADDRINUSE."
    else:
        title = f"{name} keeps {address} taken: it inherited the listener"
        lasted = span(max(copy.until_ns for copy in held.holders) - held.gone_ns)
        told += (
            f" {server} gave its own up at {since_start(session, held.gone_ns)}, and for {lasted} since the port has "
            "been taken by a listener that nobody accepts from."
        )
        if len(held.refused):
            told += f" {plural(len(held.refused), 'attempt')} to bind it anew failed with EADDRINUSE."
        if queue is not None:
            connections = tuple(one.connection.id for one in queue.waiting)
            told += f" {plural(len(connections), 'client')} connected since then, and nobody serves them."
    certain = held.gone_ns is not None or child.descriptor.how is How.FORK
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if held.gone_ns is None else Severity.ERROR,
        confidence=Confidence.CERTAIN if certain else Confidence.LIKELY,
        title=title,
        tgid=owner.tgid,
        comm=session.comm(owner.tgid),
        fd=owner.descriptor.fd,
        holder=holder_of(session, child),
        connections=connections,
        count=count,
        worst=connections[0] if connections else None,
        explanation=told,
        remedy=_remedy(session, held, child),
        evidence=kept(_evidence(session, held, child, queue)),
    )


def _remedy(session: Session, held: Held, child: Copy) -> str:
    fd = held.owner.descriptor.fd
    remedy = (
        f"Open fd {fd} with close-on-exec (SOCK_CLOEXEC; in Python leave it non-inheritable and close_fds=True), so "
        f"that {session.comm(child.tgid)} does not get it; in a child that does not exec, close({fd}) after fork."
    )
    if held.gone_ns is not None:
        remedy += f" To free the port now: end {who(session, child.tgid)}."
    return remedy


def _evidence(session: Session, held: Held, child: Copy, queue: Queue | None) -> Iterator[Evidence]:
    yield from holding_evidence(session, child)[:2]
    one, owner = held.owner.descriptor, who(session, held.owner.tgid)
    if held.gone_ns is not None:
        if one.closed_event >= 0:
            yield from_event(session, one.closed_event, f"{owner} gives up its own")
        else:
            yield from_proc(held.gone_ns, f"{owner} fd {one.fd}: gone")
        for event in held.refused[:1].tolist():
            yield from_event(session, event, "the port is still taken")
        if queue is not None:
            yield from_socket(session, queue.row, "the listener's queue")
    yield holding_evidence(session, child)[-1]
