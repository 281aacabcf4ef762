"""Stops: each SIGTERM, SIGINT or SIGQUIT to a server, and what its processes made of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sockscope.analysis.session import Session
from sockscope.analysis.stops.clients import clients_of
from sockscope.analysis.stops.proc_facts import (
    ENDING,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    has_signal,
    is_init,
    rows_of,
    signals_to,
)
from sockscope.analysis.stops.serving import Serving, below
from sockscope.analysis.stops.steps import Members, listeners_first, steps_of
from sockscope.model.calls import Call
from sockscope.model.ids import NO_ID
from sockscope.model.stops import Disposition, StopAudit, StopProcess

STOPPING = (SIGTERM, SIGINT, SIGQUIT)
STOP_COUNT = 20
"""A server that is told so often to end does not: the first are enough."""
STEP_COUNT = 200
_TOGETHER_NS = 100_000_000
"""A signal to a group, or passed on: that of the process above counts, if it did not come later than this."""


def stops(session: Session) -> tuple[StopAudit, ...]:
    """Every stop of a process that serves, or stands above one that does; in order of time."""
    first: dict[int, tuple[int, int]] = {}
    signals = list(signals_to(session, ENDING))
    numbers = session.events.records["args"][[event for event, _, _ in signals], 0]
    for (event, tgid, time_ns), number in zip(signals, numbers.tolist(), strict=True):
        if number in STOPPING:
            first.setdefault(tgid, (event, time_ns))
    if not first:
        return ()
    serving = Serving(session)
    audits = []
    for tgid, (event, time_ns) in first.items():
        if _above(session, tgid, first) != tgid:
            continue
        members = _members(session, tgid, time_ns)
        if any(serving.at(one, time_ns) for one in members):
            audits.append(_audit(session, event, Members(session, members, time_ns, signals, serving)))
            if len(audits) == STOP_COUNT:
                break
    return tuple(audits)


def _above(session: Session, tgid: int, first: dict[int, tuple[int, int]]) -> int:
    """Up from it, the last that was asked to end, too, before or with the one below."""
    top, at, seen = tgid, tgid, {tgid}
    while (process := session.processes.get(at)) is not None and process.parent not in seen:
        at = process.parent
        seen.add(at)
        if at in first and first[at][1] <= first[top][1] + _TOGETHER_NS:
            top = at
    return top


def _members(session: Session, tgid: int, time_ns: int) -> list[int]:
    """It, and those below it that were there then or came later."""
    family = [tgid, *below(session, tgid)]
    processes = session.processes
    return [
        one
        for one in family
        if one in processes and (processes[one].exited_ns is None or (processes[one].exited_ns or 0) >= time_ns)
    ]


def _audit(session: Session, event: int, members: Members) -> StopAudit:
    steps = list(steps_of(session, members))
    root = session.processes[members.tgids[0]]
    return StopAudit(
        signal=int(session.events.records["args"][event, 0]),
        time_ns=members.since_ns,
        sender=int(session.events.records["args"][event, 2]),
        tgid=root.tgid,
        processes=tuple(_processes(session, members)),
        steps=tuple(steps[:STEP_COUNT]),
        clients=clients_of(session, members),
        left_out_count=max(0, len(steps) - STEP_COUNT),
        listeners_first=listeners_first(session, members),
        ended_ns=root.exited_ns,
    )


def _processes(session: Session, members: Members) -> Iterator[StopProcess]:
    signalled: dict[int, int] = {}
    for event, tgid, time_ns in members.signals:
        if int(session.events.records["args"][event, 0]) in STOPPING:
            signalled.setdefault(tgid, time_ns)
    waited = {members.fetched_by(event): event for event in members.events(Call.wait4, Call.waitid)}
    for tgid in members.tgids:
        process = session.processes[tgid]
        fetched = waited.get(tgid, NO_ID)
        yield StopProcess(
            tgid=tgid,
            ns_tgid=members.inner(tgid),
            comm=process.comm,
            parent=process.parent if process.parent in members.tgids else NO_ID,
            disposition=_disposition(session, tgid, members.since_ns),
            signalled_ns=signalled.get(tgid),
            ended_ns=process.exited_ns,
            status=process.exit_status if process.exited_ns is not None else None,
            waited_by=int(session.events.records["tgid"][fetched]) if fetched != NO_ID else NO_ID,
            waited_ns=int(session.effective_ns[fetched]) if fetched != NO_ID else None,
        )


def _disposition(session: Session, tgid: int, time_ns: int) -> Disposition:
    """As of the last look before the signal, or where there is none the first after it."""
    rows = rows_of(session, tgid)
    rows = rows[rows["state"] != b"Z"]
    if not len(rows):
        return Disposition.UNKNOWN
    row = rows[max(0, int(np.searchsorted(rows["time_ns"], time_ns, side="right")) - 1)]
    if has_signal(row["sig_blocked"], SIGTERM):
        return Disposition.BLOCKED
    if has_signal(row["sig_caught"], SIGTERM):
        return Disposition.HANDLER
    if has_signal(row["sig_ignored"], SIGTERM):
        return Disposition.IGNORED
    return Disposition.UNHEARD if is_init(row) else Disposition.DEFAULT
