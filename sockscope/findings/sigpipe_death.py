"""The process wrote to a peer that had gone, and SIGPIPE killed it.

What it reports:
    Processes that were killed by SIGPIPE after a write to a socket failed with EPIPE.

Why it matters:
    One client that leaves early ends the server, with every other connection, without a word in its log: SIGPIPE
    leaves no core and no message. Under a supervisor or a prefork master it is started again and killed again. An
    error, and certain, where the process served more than the connection it died of; a child that serves that one
    alone loses little (info).

Evidence:
    The write that failed with EPIPE, the signal, the end with its status, the peer's FIN or RST, and the
    connections that were open then.

Example:
    `sendto(7, "tick", 4, 0) = -1 EPIPE`, SIGPIPE, "killed by signal 13": 2 other clients were cut off.

Mend:
    Ignore SIGPIPE at the start (signal(SIGPIPE, SIG_IGN); in Python leave it as it is), or pass MSG_NOSIGNAL
    with each send; then treat EPIPE as the end of that client: close its descriptor.

False positives:
    Writing to a pipe whose reader has gone is how filters end (`server | head`): only sockets count, and not those
    that are stdin, stdout or stderr (CGI, inetd). A SIGPIPE that was sent by hand (kill) without a failed write
    is not reported.

References:
    send(2) EPIPE, MSG_NOSIGNAL; signal(7) SIGPIPE; tcp(7).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import (
    NS_PER_S,
    from_event,
    kept,
    listed,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.findings.shared.halves import packet_evidence
from sockscope.model.calls import WRITES, Call, CallGroup
from sockscope.model.descriptors import Process
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag

RULE = Rule(
    slug="sigpipe-death",
    severity=Severity.ERROR,
    summary="killed by SIGPIPE: a write to a peer that had gone ended the process",
    groups=frozenset({CallGroup.NETWORK, CallGroup.TRANSFERS}),
    bears_loss=True,
)

_SIGPIPE = 13
_EPIPE = -32
_STANDARD_STREAMS = 3
_WRITES = by_call(WRITES)
_SHORTLY_NS = NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Death:
    """A process that was killed.

    Attributes:
        write: the write that failed. signal: task_signal; -1 where it was not told. end: task_exit.
        others: its other connections, open until then.
        listened: it had a listener of its own to serve.
    """

    process: Process
    write: int
    signal: int
    end: int
    others: tuple[int, ...]
    listened: bool

    @property
    def severity(self) -> Severity:
        return Severity.ERROR if self.others or self.listened else Severity.INFO


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    groups: defaultdict[tuple[str, Severity], list[_Death]] = defaultdict(list)
    for process in session.processes.values():
        if process.exit_status is not None and process.exit_status & 0x7F == _SIGPIPE:
            death = _death(session, process)
            if death is not None:
                groups[program(session, process.tgid), death.severity].append(death)
    for (_, severity), deaths in groups.items():
        yield _finding(session, deaths, severity)


def _death(session: Session, process: Process) -> _Death | None:
    events = session.events_of_tgid(process.tgid)
    records = session.events.records
    calls = records["call"][events]
    failed = events[_WRITES[calls] & (records["ret"][events] == _EPIPE)]
    ended_ns = process.exited_ns or session.info.ended_ns
    if not len(failed) or ended_ns - int(session.effective_ns[failed[-1]]) > _SHORTLY_NS:
        return None
    write = int(failed[-1])
    file = int(session.event_open_file[write])
    if file < 0 or session.open_files[file].kind is not FileKind.SOCKET:
        return None
    if int(records["args"][write][0]) < _STANDARD_STREAMS:
        return None
    signals = events[(calls == Call.task_signal) & (records["args"][events, 0] == _SIGPIPE)]
    ends = events[calls == Call.task_exit]
    others, listened = _held(session, process, file, events)
    return _Death(
        process=process,
        write=write,
        signal=int(signals[-1]) if len(signals) else NO_ID,
        end=int(ends[-1]) if len(ends) else NO_ID,
        others=others,
        listened=listened,
    )


def _held(
    session: Session, process: Process, file: int, events: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> tuple[tuple[int, ...], bool]:
    """(its other connections that were open at the end, whether it accepted from a listener or waited for one)."""
    files = {
        one.open_file
        for one in session.descriptors
        if process.tgid in session.tables[one.table].tgids
        and one.open_file not in (file, NO_ID)
        and (one.closed_ns is None or one.closed_ns >= (process.exited_ns or 0))
    }
    used = set(np.unique(session.event_open_file[events]).tolist())
    watched = {interest.open_file for interest in session.interests if interest.epoll in used}
    served = {number for number in files if session.open_files[number].listening and number in used | watched}
    connections = {session.open_files[number].connection for number in files & (used | watched)} - {NO_ID}
    return tuple(sorted(connections)), bool(served)


def _finding(session: Session, deaths: list[_Death], severity: Severity) -> Finding:
    deaths.sort(key=lambda death: int(session.effective_ns[death.write]))
    first = deaths[0]
    tgid, count = first.process.tgid, len(deaths)
    row = session.events.records[first.write]
    fd, call = int(row["args"][0]), session.events.call(first.write).name
    connection = int(session.event_connection[first.write])
    others = sum(len(death.others) for death in deaths)
    name = who(session, tgid, int(row["tid"]))
    told = (
        f"{name} wrote to fd {fd} at {since_start(session, int(session.effective_ns[first.write]))}, whose peer had "
        f"gone: {call} failed with EPIPE, and SIGPIPE, which it does not ignore, killed the process."
    )
    if count > 1:
        last_ns = int(session.effective_ns[deaths[-1].write])
        told += (
            f" So it went with {count} processes of this program within "
            f"{span(last_ns - int(session.effective_ns[first.write]))}"
            f"{': they are started again, and killed again.' if _started_anew(session, deaths) else '.'}"
        )
    if severity > Severity.INFO:
        told += f" {plural(others, 'other connection')} of {'theirs' if count > 1 else 'its own'} went with it"
        told += ", and its listener: nobody answers." if _listener_is_gone(session, first) else "."
    else:
        told += " It served no other connection."
    every = [int(session.event_connection[death.write]) for death in deaths]
    connections = tuple(dict.fromkeys(number for number in every if number >= 0))
    return Finding(
        rule=RULE.slug,
        severity=severity,
        confidence=Confidence.CERTAIN,
        title=f"{who(session, tgid)} killed by SIGPIPE"
        if count == 1
        else f"{count} processes of {session.comm(tgid)} killed by SIGPIPE",
        tgid=tgid,
        comm=session.comm(tgid),
        fd=fd,
        connections=connections,
        count=count,
        worst=connection if connection >= 0 else None,
        explanation=told,
        remedy=(
            f"Ignore SIGPIPE at the start (signal(SIGPIPE, SIG_IGN)), or pass MSG_NOSIGNAL to {_sender(call)}; and "
            f"where it returns EPIPE, close({fd}) and go on with the others."
        ),
        evidence=kept(_evidence(session, first, deaths)),
    )


def _sender(call: str) -> str:
    return call if call.startswith("send") and call != "sendfile" else f"send in place of {call}"


def _started_anew(session: Session, deaths: list[_Death]) -> bool:
    """Whether one of them was begun, by the same parent, after another one had been killed."""
    return any(
        later.process.parent == one.process.parent
        and later.process.started_ns is not None
        and later.process.started_ns >= (one.process.exited_ns or 0)
        for one in deaths
        for later in deaths
    )


def _listener_is_gone(session: Session, death: _Death) -> bool:
    return death.listened and not any(
        file.listening and session.holders_of(file.id) for file in session.open_files if file.listening
    )


def _evidence(session: Session, first: _Death, deaths: list[_Death]) -> Iterator[Evidence]:
    yield from_event(session, first.write, "the peer has gone")
    if first.signal >= 0:
        yield from_event(session, first.signal, "not ignored: it kills")
    if first.end >= 0:
        others = listed(f"#{number}" for number in first.others)
        yield from_event(session, first.end, f"with connections {others}" if others else "")
    connection = int(session.event_connection[first.write])
    if connection >= 0:
        known = session.connections[connection]
        for flag in (TcpFlag.FIN, TcpFlag.RST):
            yield from packet_evidence(session, known, from_peer=True, flags=flag, note="the peer leaves")
    for death in deaths[1:3]:
        yield from_event(session, death.write, f"{who(session, death.process.tgid)}: the same")
