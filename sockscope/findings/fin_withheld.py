"""The program closed, but the connection goes on: somebody else holds the open file.

What it reports:
    Connections whose program was done with them and closed its descriptor, while another descriptor of
    the same open file is still there: in a child that inherited it by fork (and kept it across exec), in a
    process that received it by SCM_RIGHTS, or as a duplicate in the same process. No FIN goes out.

Why it matters:
    TCP ends when the last reference to the open file goes, not when someone calls close(). The client
    waits for an end of file that does not come: a download that hangs at 100 %, a pool that runs
    dry. And the server's own count of connections says nothing is wrong.

Evidence:
    The close that was meant to end the connection; how the holder came by its copy (fork, exec,
    SCM_RIGHTS, or there before watching began); that it never used it; no FIN on the wire (and, where the
    kernel tells its state changes, neither FIN_WAIT1 nor LAST_ACK); the socket still ESTABLISHED or
    CLOSE_WAIT in the last snapshot.

Example:
    `close(7) = 0` in server[812] at +0.41 s; logger[840], forked at +0.12 s, has the same
    connection as fd 7, has never used it, and lives on.

Mend:
    Close in the child what it does not need, right after fork; open with SOCK_CLOEXEC / accept4
    so that exec drops it; or call shutdown(fd, SHUT_RDWR) before close: that ends the connection
    whoever holds it.

False positives:
    A child that serves the connection while the parent closes its copy is the usual forking
    server: holders that use the connection, wait for it, or have it as stdin, stdout or stderr (CGI,
    inetd) are not reported, nor is a program that closes before it has answered: the child may.

References:
    close(2) "open file description"; fork(2); unix(7) SCM_RIGHTS; shutdown(2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import (
    from_event,
    from_proc,
    kept,
    listed,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.halves import last_sample_evidence
from sockscope.findings.shared.holding import Copy, Holdings, came_by, holder_of, holding_evidence, tcp_connections
from sockscope.findings.shared.told import last_change, told_by_kernel
from sockscope.findings.shared.withheld import Withheld, withheld
from sockscope.model.calls import USUAL_GROUPS, CallGroup
from sockscope.model.descriptors import How
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="fin-withheld",
    severity=Severity.ERROR,
    summary="the program closed its descriptor, but another process holds the connection: no FIN goes out",
    yields_to=frozenset({"passed-fd-leak"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a pair of programs (closer, holder)."""
    holdings = Holdings(session)
    groups: defaultdict[tuple[str, str, How], list[Withheld]] = defaultdict(list)
    for connection in tcp_connections(session):
        if connection.id in explained:
            continue
        case = withheld(session, holdings, connection)
        if case is not None:
            first = case.holders[0]
            groups[program(session, case.closer.tgid), session.comm(first.tgid), first.descriptor.how].append(case)
    for cases in groups.values():
        yield _finding(session, cases)


def _finding(session: Session, cases: list[Withheld]) -> Finding:
    cases.sort(key=lambda case: -case.withheld_ns)
    worst = cases[0]
    holder = worst.holders[0]
    closer = worst.closer
    same_process = holder.tgid == closer.tgid
    witnessed = holder.descriptor.how is not How.SNAPSHOT and not same_process
    name = who(session, holder.tgid)
    count = len(cases)
    others = sorted({who(session, copy.tgid) for case in cases for copy in case.holders} - {name})
    fds = [str(case.holders[0].descriptor.fd) for case in cases if case.holders[0].tgid == holder.tgid]
    explanation = (
        f"{who(session, closer.tgid)} closed fd {closer.descriptor.fd} at {since_start(session, worst.closed_ns)}, "
        f"but {name} holds the same open file as fd {holder.descriptor.fd}: it got it {came_by(session, holder)} "
        f"and has {'not used it since' if len(holder.uses) else 'never used it'}. No FIN has gone out in the "
        f"{span(worst.withheld_ns)} since, so the peer still waits. "
        f"This holds for {plural(count, 'connection')}"
        f" (fd {listed(fds)} of {name})."
    )
    if others:
        explanation += f" Also held by {listed(others)}."
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if same_process else Severity.ERROR,
        confidence=Confidence.CERTAIN if witnessed else Confidence.LIKELY,
        title=f"{plural(count, 'connection')} closed by {session.comm(closer.tgid)}, kept open by {name}",
        tgid=closer.tgid,
        comm=session.comm(closer.tgid),
        fd=closer.descriptor.fd,
        holder=holder_of(session, holder),
        connections=tuple(case.connection.id for case in cases),
        count=count,
        worst=worst.connection.id,
        explanation=explanation,
        remedy=_remedy(session, holder, closer),
        evidence=kept(_evidence(session, worst)),
    )


def _remedy(session: Session, holder: Copy, closer: Copy) -> str:
    fd, name = holder.descriptor.fd, who(session, holder.tgid)
    also = f"shutdown({closer.descriptor.fd}, SHUT_RDWR) before close() ends the connection whoever holds it."
    process = session.processes.get(holder.tgid)
    if holder.tgid == closer.tgid:
        return f"Close fd {fd} too: it is a duplicate of fd {closer.descriptor.fd}. {also}"
    if process is not None and process.execs:
        return (
            f"Set close-on-exec on connections (accept4 with SOCK_CLOEXEC; close_fds=True in Python's subprocess), "
            f"so that {name} does not get fd {fd}. {also}"
        )
    if holder.descriptor.how is How.SCM_RIGHTS:
        return f"Close fd {fd} in {name} when it is done with it, or do not pass it. {also}"
    return f"Close the connections in the child right after fork (here fd {fd} in {name}). {also}"


def _evidence(session: Session, case: Withheld) -> Iterator[Evidence]:
    closer = case.closer
    if closer.descriptor.closed_event >= 0:
        yield from_event(session, closer.descriptor.closed_event, "meant to end the connection")
    else:
        yield from_proc(case.closed_ns, f"{who(session, closer.tgid)} fd {closer.descriptor.fd}: closed")
    yield from holding_evidence(session, case.holders[0])
    if len(closer.uses):
        yield from_event(session, int(closer.uses[-1]), "its last use")
    yield from last_sample_evidence(session, case.connection, "no FIN has gone out", before_ns=case.holders[0].until_ns)
    last = last_change(session, case.connection, before_ns=case.holders[0].until_ns)
    yield from told_by_kernel(session, last, "the last change: neither FIN_WAIT1 nor LAST_ACK, so no FIN went out")
