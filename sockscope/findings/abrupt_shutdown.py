"""SIGTERM cuts the connections.

What it reports:
    Processes that ended by SIGTERM, or because of it, while clients were still waiting: requests were
    read and not answered, or had arrived and were not even read; and children that outlive the stop.

Why it matters:
    Every restart, deployment and `docker stop` costs these clients their answer: they see a reset or an
    end of file in the middle. Children left behind keep the port, so the new server cannot bind.

Evidence:
    The delivery of SIGTERM, the exit and how it came (default action, or exit by the program), the
    requests read last, and the FIN or RST that the exit sent instead of an answer.

Example:
    SIGTERM at +4.1 s, killed by it 0.3 ms later; four requests read at +3.6 s, none of them answered.

Mend:
    Handle SIGTERM: stop accepting (close the listener), answer what has been read, with a limit in
    time, then close and exit. A parent passes the signal on and waits for its children.

False positives:
    Idle keep-alive connections may be closed at any time and are not counted; nor are requests that
    arrive as the server ends, which no server can avoid, or that it reads away after it ended its own half.
    A SIGTERM that a process sends itself wakes its threads and stops nothing. A program that never answers (a log
    collector) has no request to leave open. Where it is not HTTP and the program exits by itself, it is
    info only: a client in a blocking pop waits without being wronged. Where the signal never reached the server,
    which was then killed, that is sigterm-ignored.

References:
    signal(7); docker stop (SIGTERM, then SIGKILL after 10 s); RFC 9112 section 9.5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import (
    NS_PER_MS,
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
from sockscope.findings.shared.halves import arrived_bytes, flow_of, packet_evidence, shutdown_event
from sockscope.findings.shared.holding import Copy, Holdings, payload_moves, tcp_connections
from sockscope.model.calls import USUAL_GROUPS, Call, CallGroup
from sockscope.model.columns import rows_of
from sockscope.model.connections import Connection, Role
from sockscope.model.descriptors import Process
from sockscope.model.events import Section
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.tcp import TcpFlag

RULE = Rule(
    slug="abrupt-shutdown",
    severity=Severity.ERROR,
    summary="SIGTERM ends the server while clients wait for their answers",
    yields_to=frozenset({"edge-triggered-read-not-drained", "select-fd-overflow", "sigterm-ignored"}),
    groups=USUAL_GROUPS | {CallGroup.TASKS},
)

_SIGTERM = 15
_SLACK_NS = 100 * NS_PER_MS
"""What arrives later before the signal than this could not be answered by anybody."""
_OUTLIVES_NS = 200 * NS_PER_MS
_HTTP_METHODS = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"PATCH ", b"OPTIONS ")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A client that was waiting. `request` is the read that was never answered; -1: it was not even read."""

    connection: Connection
    copy: Copy
    request: int
    signal: int
    is_http: bool


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    signals = _terminations(session)
    ended = [p for p in session.processes.values() if p.exited_ns is not None and _signal_for(session, p, signals) >= 0]
    if not ended:
        return
    groups: defaultdict[str, list[_Cut]] = defaultdict(list)
    for cut in _cuts(session, {p.tgid: _signal_for(session, p, signals) for p in ended}):
        if cut.connection.id not in explained:
            groups[program(session, cut.copy.tgid)].append(cut)
    for cuts in groups.values():
        yield _finding(session, cuts, _left_behind(session, ended))
    if not groups:
        for process in ended:
            left = _left_behind(session, [process])
            if left and process.tgid in signals:
                yield _children_finding(session, process, left, signals[process.tgid])


def _terminations(session: Session) -> dict[int, int]:
    """tgid → its first SIGTERM (event id)."""
    records = session.events.records
    order = session.order
    told = order[rows_of(order, lambda rows: session.event_call[rows] == Call.task_signal)]
    told = told[records["args"][told, 0] == _SIGTERM]
    # A thread may wake its own process with it (Apache's event MPM does): nobody asked it to end.
    rows = told[records["args"][told, 2] != records["tgid"][told].astype(np.uint64)]
    found: dict[int, int] = {}
    for event in map(int, rows):
        found.setdefault(int(records["tgid"][event]), event)
    return found


def _signal_for(session: Session, process: Process, signals: dict[int, int]) -> int:
    """The SIGTERM that ended the process: its own, or that of the parent that stopped it; -1 for none."""
    event = signals.get(process.tgid, signals.get(process.parent, -1))
    if event < 0 or process.exited_ns is None or session.effective_ns[event] > process.exited_ns:
        return -1
    return event


def _cuts(session: Session, signal_of: dict[int, int]) -> Iterator[_Cut]:
    answering = _answering(session)
    holdings = Holdings(session)
    for connection in tcp_connections(session):
        if connection.role is Role.CLIENT or not holdings.keeps(connection):
            continue
        held = holdings.copies(connection.open_file)
        if session.open_files[connection.open_file].released_ns is None:
            continue
        last = max(held, key=lambda copy: copy.descriptor.closed_ns or 0)
        if last.given_up or last.tgid not in signal_of:
            continue
        signal = signal_of[last.tgid]
        if (last.descriptor.closed_ns or 0) < int(session.effective_ns[signal]):
            continue
        reads, writes = payload_moves(session, session.events_of(connection.id))
        since_ns = int(session.effective_ns[writes[-1]]) if len(writes) else -1
        asked = reads[session.effective_ns[reads] > since_ns]
        if len(asked) and _had_ended(session, connection, int(asked[0])):
            continue
        signal_ns = int(session.effective_ns[signal])
        is_http = bool(len(asked)) and _looks_like_http(session, int(asked[0]))
        before = bool(len(asked)) and session.effective_ns[asked[0]] <= signal_ns
        if before and (is_http or program(session, last.tgid) in answering):
            yield _Cut(connection=connection, copy=last, request=int(asked[0]), signal=signal, is_http=is_http)
        elif not len(asked) and _unread(session, connection, signal_ns):
            yield _Cut(connection=connection, copy=last, request=-1, signal=signal, is_http=False)


def _answering(session: Session) -> set[str]:
    """Programs that write to their clients at all."""
    held = (session.open_files[c.open_file].descriptors[:1] for c in tcp_connections(session) if c.written_bytes)
    return {program(session, session.tgid_of_table(session.descriptors[d].table)) for first in held for d in first}


def _looks_like_http(session: Session, read: int) -> bool:
    return (session.events.section(read, Section.PAYLOAD) or b"").startswith(_HTTP_METHODS)


def _had_ended(session: Session, connection: Connection, read: int) -> bool:
    """The program had ended its own half: what it read then, it read away (a lingering close)."""
    ended = shutdown_event(session, connection, writing=True)
    return ended >= 0 and bool(session.effective_ns[ended] <= session.effective_ns[read])


def _unread(session: Session, connection: Connection, signal_ns: int) -> bool:
    """Bytes had arrived well before the signal and were never read."""
    flow = flow_of(session, connection)
    if flow is None or flow.syn_ns is None or not connection.witnessed or not session.info.packets.whole:
        return False
    return arrived_bytes(session, connection, signal_ns - _SLACK_NS) > connection.read_bytes


def _left_behind(session: Session, ended: list[Process]) -> list[int]:
    """Children of the ended processes that are still there a while later."""
    parents = {p.tgid: p.exited_ns or 0 for p in ended}
    end = session.info.ended_ns
    return sorted(
        p.tgid
        for p in session.processes.values()
        if p.parent in parents and p.exited_ns is None and end - parents[p.parent] >= _OUTLIVES_NS
    )


def _ending(session: Session, tgid: int) -> str:
    status = session.processes[tgid].exit_status
    if status is None:
        return "ended"
    if status & 0x7F:
        return "was killed by it" if status & 0x7F == _SIGTERM else f"was killed by signal {status & 0x7F}"
    return f"exited with status {status >> 8 & 0xFF}"


def _grade(session: Session, cuts: list[_Cut]) -> tuple[Severity, Confidence]:
    """An HTTP request always wants an answer; of other protocols it is not known (a blocking pop may wait for ever)."""
    if any(cut.is_http for cut in cuts):
        return Severity.ERROR, Confidence.CERTAIN
    statuses = (session.processes[cut.copy.tgid].exit_status for cut in cuts)
    if any(cut.request < 0 for cut in cuts) or any(status is None or status & 0x7F for status in statuses):
        return Severity.WARNING, Confidence.LIKELY
    return Severity.INFO, Confidence.POSSIBLE


def _finding(session: Session, cuts: list[_Cut], left: list[int]) -> Finding:
    cuts.sort(key=lambda cut: (cut.request < 0, int(session.effective_ns[cut.request])))
    worst = cuts[0]
    tgid, count = worst.copy.tgid, len(cuts)
    signal_ns = int(session.effective_ns[worst.signal])
    exited_ns = session.processes[tgid].exited_ns or signal_ns
    unanswered = sum(cut.request >= 0 for cut in cuts)
    told = (
        f"{who(session, tgid)} got SIGTERM at {since_start(session, signal_ns)} and {_ending(session, tgid)} "
        f"{span(exited_ns - signal_ns)} later, in the middle of {plural(count, 'connection')}: "
        f"{plural(unanswered, 'request')} had been read and not answered"
    )
    if count - unanswered:
        told += f", on {plural(count - unanswered, 'connection')} data had arrived that was never read"
    if worst.request >= 0:
        told += f". The oldest was read {span(signal_ns - int(session.effective_ns[worst.request]))} before the signal"
    told += "."
    if left:
        told += f" {plural(len(left), 'child', 'children')} outlived it: {listed(who(session, pid) for pid in left)}."
    severity, confidence = _grade(session, cuts)
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=confidence,
        title=f"SIGTERM cut {plural(count, 'connection')} in the middle of a request",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=worst.copy.descriptor.fd,
        connections=tuple(cut.connection.id for cut in cuts),
        count=count,
        worst=worst.connection.id,
        explanation=told,
        remedy=(
            "Handle SIGTERM: close the listener, answer what has been read (within a limit shorter than the "
            f"supervisor's, 10 s for docker), then close and exit. Here fd {worst.copy.descriptor.fd} was just dropped."
        ),
        evidence=kept(_evidence(session, worst)),
    )


def _evidence(session: Session, cut: _Cut) -> Iterator[Evidence]:
    yield from_event(session, cut.signal, "asked to end")
    if cut.request >= 0:
        yield from_event(session, cut.request, "read, and never answered")
    yield from _exit_evidence(session, cut.copy.tgid)
    for flag in (TcpFlag.RST, TcpFlag.FIN):
        note = "all that the client gets"
        yield from packet_evidence(session, cut.connection, from_peer=False, flags=flag, note=note)


def _exit_evidence(session: Session, tgid: int) -> Iterator[Evidence]:
    events = session.events_of_tgid(tgid)
    exits = events[np.asarray(session.events.records["call"][events] == Call.task_exit)]
    if len(exits):
        yield from_event(session, int(exits[-1]), _ending(session, tgid))


def _children_finding(session: Session, process: Process, left: list[int], signal: int) -> Finding:
    """Info only: it may be how a graceful upgrade works."""
    exited_ns = process.exited_ns or 0
    names = listed(who(session, pid) for pid in left)
    facts = [from_event(session, signal, "asked to end"), *_exit_evidence(session, process.tgid)]
    facts.append(from_proc(session.info.ended_ns, f"still there: {names}"))
    return Finding(
        rule=RULE.slug,
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        title=f"{plural(len(left), 'child', 'children')} outlived {who(session, process.tgid)}",
        tgid=process.tgid,
        comm=process.comm,
        explanation=(
            f"{who(session, process.tgid)} got SIGTERM at {since_start(session, facts[0].time_ns)} and "
            f"{_ending(session, process.tgid)}; {span(session.info.ended_ns - exited_ns)} later {names} "
            "went on without it."
        ),
        remedy="Pass the signal on to the children and wait for them, unless they are meant to stay.",
        evidence=kept(facts),
    )
