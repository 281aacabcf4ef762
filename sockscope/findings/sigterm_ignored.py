"""SIGTERM comes, and the server goes on as if it had not.

What it reports:
    A SIGTERM that does not end the server it was meant for: it went to PID 1 of a pid namespace, which has no handler
    for it (the kernel then drops it); to a shell that does not pass it on to the server below it; or the process
    ignores it (SIG_IGN). Also, as info, the same before it happens: a container whose PID 1 would not hear SIGTERM.

Why it matters:
    `docker stop` and Kubernetes wait ten and thirty seconds, then send SIGKILL: every restart takes so long, and
    cuts each connection at the end, however well the server would have closed them. That is an error once it has
    been seen. It is only a warning where SIG_IGN was set by the program itself and nothing was cut.

Evidence:
    The delivery of SIGTERM, the process's signal sets in /proc before and after it (SigCgt, SigIgn, SigBlk), its number
    in its pid namespace (NSpid), that no signal came to the server, and how both went on. Certain for PID 1 without a
    handler, where kernel and /proc leave nothing open; likely for a shell with a trap (it may still pass it
    on) and for SIG_IGN (it may be meant so).

Example:
    SIGTERM came to sh[811, 1 in its pid namespace], which has no handler for it; python3[812] below it never
    heard of it, and was killed by SIGKILL 10.0 s later with 3 connections open.

Mend:
    Let the server be PID 1: `exec server` in the shell, the exec form `CMD ["server"]` in the Dockerfile. A server
    that is PID 1 needs a handler for SIGTERM, or an init in front of it (docker run --init). Where the
    shell has to stay: start the server in the background, trap 'kill -TERM $pid' TERM, wait for it twice.

False positives:
    A server that handles SIGTERM and takes its time is not ignoring it, whatever it takes. One that blocks the signal
    fetches it by signalfd or sigwait. A worker that ignores SIGTERM while its parent gets it too and handles it is
    stopped by that. Processes that end by themselves within a second, or later without SIGKILL, have heard it
    somehow. What neither serves nor stands above a server is not looked at.

References:
    signal(7); pid_namespaces(7) "The namespace init process"; kernel/signal.c sig_task_ignored(); docker stop;
    bash(1) SIGNALS (a trap waits until the command in the foreground has ended).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from sockscope.analysis.session import Session
from sockscope.analysis.stops.proc_facts import (
    ENDING,
    SIGKILL,
    SIGTERM,
    comm_of,
    handles,
    has_signal,
    is_init,
    named,
    rows_of,
    signals_to,
)
from sockscope.analysis.stops.serving import Serving, below
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    from_event,
    from_proc,
    kept,
    listed,
    plural,
    since_start,
    span,
)
from sockscope.model.calls import Call, CallGroup
from sockscope.model.facts import Relation
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip

RULE = Rule(
    slug="sigterm-ignored",
    severity=Severity.ERROR,
    summary="SIGTERM does not end the server: PID 1 without a handler, a shell that keeps it, or SIG_IGN",
    groups=frozenset({CallGroup.TASKS}),
    bears_loss=True,
)

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "busybox", "ksh", "mksh", "zsh"})


class _Why(Enum):
    NO_HANDLER = auto()
    SHELL = auto()
    IGNORED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    """A SIGTERM that led to nothing.

    Attributes:
        tgid: who got it.
        servers: who should have ended by it; the first is named.
        row: what /proc said of `tgid` after it.
    """

    why: _Why
    event: int
    tgid: int
    time_ns: int
    servers: tuple[int, ...]
    row: np.void


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a signal that was lost, or a container that would lose it."""
    serving = Serving(session)
    signals: dict[int, tuple[int, int]] = {}
    told_ns: dict[int, int] = {}
    for event, tgid, time_ns in signals_to(session, ENDING):
        told_ns[tgid] = time_ns
        if int(session.events.records["args"][event, 0]) == SIGTERM:
            signals.setdefault(tgid, (event, time_ns))
    if signals and not len(session.facts.processes):
        if any(_lived_on(session, tgid, time_ns) for tgid, (_, time_ns) in signals.items()):
            yield Skip(rule=RULE.slug, reason="what each process does at SIGTERM was not read from /proc")
        return
    told: set[int] = set()
    for tgid, (event, time_ns) in signals.items():
        lost = _lost(session, serving, signals, told_ns, tgid, event, time_ns)
        if lost is not None and not told.intersection(lost.servers):
            told.update(lost.servers)
            yield _finding(session, serving, lost)
    yield from _before_it_happens(session, serving, told | signals.keys())


def _lived_on(session: Session, tgid: int, since_ns: int) -> bool:
    """It did not end within the grace, nor later but by SIGKILL."""
    process = session.processes.get(tgid)
    if process is None or process.exited_ns is None:
        return session.info.ended_ns - since_ns >= GRACE_NS
    return process.exited_ns - since_ns >= GRACE_NS and _killed(session, tgid)


def _killed(session: Session, tgid: int) -> bool:
    process = session.processes.get(tgid)
    return process is not None and process.exit_status is not None and process.exit_status & 0x7F == SIGKILL


def _lost(
    session: Session,
    serving: Serving,
    signals: dict[int, tuple[int, int]],
    told_ns: dict[int, int],
    tgid: int,
    event: int,
    time_ns: int,
) -> _Lost | None:
    if not _lived_on(session, tgid, time_ns):
        return None
    rows = rows_of(session, tgid)
    around = (rows[rows["time_ns"] <= time_ns][-1:], rows[rows["time_ns"] > time_ns][:1])
    if not all(len(row) for row in around):
        # A handler may have been set, or SIG_IGN by the handler itself: one look alone does not tell.
        return None
    why = _why(session, tgid, [row[0] for row in around], signals)
    if why is None:
        return None
    family = [tgid, *below(session, tgid)]
    servers = [one for one in family if serving.at(one, time_ns) and _lived_on(session, one, time_ns)]
    if why is _Why.SHELL and tgid in servers:
        return None
    # One that was told by another way was told.
    servers = [one for one in servers if one == tgid or told_ns.get(one, -1) < time_ns]
    if not servers:
        return None
    return _Lost(why=why, event=event, tgid=tgid, time_ns=time_ns, servers=tuple(servers), row=around[1][0])


def _why(session: Session, tgid: int, around: list[np.void], signals: dict[int, tuple[int, int]]) -> _Why | None:
    if all(has_signal(row["sig_ignored"], SIGTERM) and not has_signal(row["sig_blocked"], SIGTERM) for row in around):
        return None if _parent_stops_it(session, tgid, signals) else _Why.IGNORED
    if all(is_init(row) and not handles(row, SIGTERM) for row in around):
        return _Why.NO_HANDLER
    return _Why.SHELL if comm_of(session, tgid) in _SHELLS else None


def _parent_stops_it(session: Session, tgid: int, signals: dict[int, tuple[int, int]]) -> bool:
    process = session.processes.get(tgid)
    parent = process.parent if process is not None else 0
    rows = rows_of(session, parent)
    return parent in signals and bool(len(rows)) and handles(rows[-1], SIGTERM)


def _finding(session: Session, serving: Serving, lost: _Lost) -> Finding:
    server = lost.servers[0]
    end_ns = _end_ns(session, server)
    connections = sorted({one for tgid in lost.servers for one in serving.connections(tgid, end_ns)})
    cut = _killed(session, server)
    severity, confidence = Severity.ERROR, Confidence.CERTAIN
    if lost.why is _Why.IGNORED:
        severity = Severity.ERROR if cut and connections else Severity.WARNING
    if lost.why is not _Why.NO_HANDLER:
        confidence = Confidence.LIKELY
    told = f"SIGTERM came to {named(session, lost.tgid)} at {since_start(session, lost.time_ns)}{_what_it_did(lost)}"
    if server != lost.tgid:
        servers = listed(named(session, tgid) for tgid in lost.servers)
        told += f"; {servers} below it, which {'serves' if len(lost.servers) == 1 else 'serve'}, got no signal"
    after = span(end_ns - lost.time_ns)
    held = f" with {plural(len(connections), 'connection')} open" if connections else ""
    subject = session.comm(server) if len(lost.servers) == 1 else named(session, server)
    told += (
        f". {subject} was killed by SIGKILL {after} later{held}." if cut else f". {subject} still ran {after} later."
    )
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=confidence,
        title=_title(session, lost),
        tgid=server,
        comm=session.comm(server),
        connections=tuple(connections),
        count=len(lost.servers),
        explanation=told,
        remedy=_remedy(session, lost.why, lost.tgid, server),
        evidence=kept(_evidence(session, lost, server)),
    )


def _end_ns(session: Session, tgid: int) -> int:
    process = session.processes.get(tgid)
    return process.exited_ns if process is not None and process.exited_ns is not None else session.info.ended_ns


def _title(session: Session, lost: _Lost) -> str:
    if lost.why is _Why.IGNORED:
        return "SIGTERM is ignored"
    if lost.why is _Why.NO_HANDLER and lost.tgid == lost.servers[0]:
        return "SIGTERM is lost: PID 1 has no handler for it"
    return f"SIGTERM never reaches the server: {comm_of(session, lost.tgid)} above it keeps it"


def _what_it_did(lost: _Lost) -> str:
    if lost.why is _Why.IGNORED:
        return ", which ignores it (SIG_IGN)"
    if lost.why is _Why.NO_HANDLER:
        return ", which has no handler for it: to PID 1 of a pid namespace the kernel gives no such signal"
    return ", a shell that did not pass it on" + (
        " (a trap runs only when the command in the foreground has ended)" if handles(lost.row, SIGTERM) else ""
    )


def _remedy(session: Session, why: _Why, tgid: int, server: int) -> str:
    if why is _Why.IGNORED:
        return (
            f"Give {session.comm(server)} a handler for SIGTERM that closes the listener, answers what was read, and "
            "exits; do not start it under nohup or with SIGTERM ignored (SIG_IGN survives exec)."
        )
    if tgid == server:
        return (
            "Install a handler for SIGTERM before listening, or put an init in front of it: docker run --init, or tini "
            "as ENTRYPOINT."
        )
    name = comm_of(session, server)
    return (
        f'Let the server replace the shell: sh -c "exec {name} …", or CMD ["{name}", …] (the exec form) in the '
        f"Dockerfile. Where the shell must stay: {name} … & pid=$!; trap 'kill -TERM $pid' TERM; wait $pid; wait $pid."
    )


def _evidence(session: Session, lost: _Lost, server: int) -> Iterator[Evidence]:
    yield from_event(session, lost.event, "asked to end")
    yield _signal_sets(session, lost.tgid, lost.row)
    if server != lost.tgid:
        rows = rows_of(session, server)
        if len(rows):
            yield _signal_sets(session, server, rows[-1])
    for tgid in dict.fromkeys((server, lost.tgid)):
        events = session.events_of_tgid(tgid)
        exits = events[session.events.records["call"][events] == Call.task_exit]
        if len(exits):
            yield from_event(session, int(exits[-1]), f"{span(_end_ns(session, tgid) - lost.time_ns)} later")
    if session.processes[server].exited_ns is None:
        yield from_proc(session.info.ended_ns, f"{named(session, server)} still runs")


def _signal_sets(session: Session, tgid: int, row: np.void) -> Evidence:
    sets = (("caught", "sig_caught"), ("ignored", "sig_ignored"), ("blocked", "sig_blocked"))
    how = listed(word for word, field in sets if has_signal(row[field], SIGTERM)) or "not caught, not ignored"
    return from_proc(int(row["time_ns"]), f"{named(session, tgid)}: SIGTERM is {how}")


def _before_it_happens(session: Session, serving: Serving, told: set[int]) -> Iterator[Finding]:
    """Containers whose PID 1 would not end at SIGTERM: one line each."""
    facts = session.facts.processes
    for init in sorted(set(facts["init_tgid"].tolist()) - {0} - told):
        rows = rows_of(session, init)
        # A program that has just begun sets its handlers yet.
        if not len(rows) or int(rows["time_ns"][-1] - rows["time_ns"][0]) < GRACE_NS:
            continue
        if any(handles(row, SIGTERM) or has_signal(row["sig_ignored"], SIGTERM) for row in (rows[0], rows[-1])):
            continue
        end_ns = int(rows["time_ns"][-1])
        inside = facts[(facts["init_tgid"] == init) & (facts["relation"] == Relation.TARGET)]
        servers = sorted({tgid for tgid in inside["tgid"].tolist() if serving.at(tgid, end_ns)} - told)
        if init not in servers and comm_of(session, init) not in _SHELLS:
            continue
        if servers:
            yield _waiting_to_happen(session, init, init if init in servers else servers[0], rows[-1])


def _waiting_to_happen(session: Session, init: int, server: int, row: np.void) -> Finding:
    killed = init != server and _killed(session, server)
    told = f"{named(session, init)} is PID 1 of its pid namespace and has no handler for SIGTERM, which it will not get"
    told += "." if init == server else f"; {named(session, server)} serves below it, and nobody passes the signal on."
    ended_ns = _end_ns(session, server)
    if killed:
        told += f" {session.comm(server)} was killed by SIGKILL at {since_start(session, ended_ns)} and got no SIGTERM."
    else:
        told += " docker stop will wait ten seconds, then kill it in the middle of what it does."
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING if killed else Severity.INFO,
        confidence=Confidence.LIKELY if killed else Confidence.POSSIBLE,
        title="SIGTERM would not end the server",
        tgid=server,
        comm=session.comm(server),
        explanation=told,
        remedy=_remedy(session, _Why.NO_HANDLER, init, server),
        evidence=kept(_facts_of_both(session, init, server, row)),
    )


def _facts_of_both(session: Session, init: int, server: int, row: np.void) -> Iterator[Evidence]:
    yield _signal_sets(session, init, row)
    if server != init:
        yield _signal_sets(session, server, rows_of(session, server)[-1])
