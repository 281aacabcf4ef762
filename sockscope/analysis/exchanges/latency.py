"""The anatomy of latency: exchanges cut into phases, and percentiles of each phase for each server."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sockscope.analysis.narration.http1 import start_line
from sockscope.analysis.session import Ids, Session
from sockscope.model.events import Section
from sockscope.model.ids import NO_ID
from sockscope.model.latency import (
    FEWEST_FOR_PERCENTILES,
    Phase,
    PhaseLatency,
    PhaseSpan,
    ServerLatency,
    SlowestExchange,
)

_SHOWN_SERVERS = 50


class Phases:
    """Exchanges cut into phases. A phase begins where the one before ended, or where its own cause came, if later.

    What lies between is nobody's delay: the client had not asked yet, or the server was at the answer before.

    Attributes:
        rows: shape (n,), EXCHANGE_DTYPE.
        start_ns, duration_ns: by phase; shape (n,), int64. A duration is -1 where one of its ends was not seen.
        whole_ns: shape (n,), the sum of an exchange's phases.
    """

    def __init__(self, rows: npt.NDArray[np.void]) -> None:
        self.rows = rows
        self.start_ns: dict[Phase, Ids] = {}
        self.duration_ns: dict[Phase, Ids] = {}
        self.whole_ns: Ids = np.zeros(len(rows), np.int64)
        # Each is looked at several times: from rows of 180 bytes that would be slow.
        column = {name: rows[name].copy() for name in rows.dtype.names or () if name.endswith("_ns")}
        self._cursor = np.full(len(rows), NO_ID, np.int64)
        self._cut(Phase.HANDSHAKE, column["syn_ns"], column["established_ns"])
        self._cut(Phase.ACCEPT_QUEUE, column["established_ns"], column["accept_ns"])
        # What was sent ahead waits for the answer before; that is the client's own doing.
        follows = np.flatnonzero(rows["number"][1:] > 0) + 1
        self._cursor[follows] = column["last_write_ns"][follows - 1]
        self._cut(Phase.REQUEST, column["arrived_ns"], column["arrived_whole_ns"])
        self._cut(Phase.SOCKET_QUEUE, column["arrived_whole_ns"], column["first_read_ns"])
        # Without the wire's word a program that reads piece by piece may be waiting for the client.
        on_wire = column["arrived_whole_ns"] >= 0
        began = np.where(on_wire, column["first_read_ns"], column["last_read_ns"])
        self._cut(Phase.THINKING, began, column["first_write_ns"])
        self._cut(Phase.WRITING, column["first_write_ns"], column["last_write_ns"])
        self._cut(Phase.DELIVERY, column["sent_ns"], column["acked_ns"])

    def _cut(self, phase: Phase, began: Ids, ended: Ids) -> None:
        start = np.maximum(self._cursor, began)
        known = (began >= 0) & (ended >= 0)
        took = np.where(known, np.maximum(ended - start, 0), NO_ID)
        self.start_ns[phase], self.duration_ns[phase] = start, took
        self.whole_ns += np.maximum(took, 0)
        self._cursor = np.where(known, start + took, self._cursor)


def answered_rows(session: Session) -> npt.NDArray[np.bool_]:
    """Which exchanges are a request and its answer, both seen: shape (exchanges,)."""
    rows = session.exchanges
    return (rows["read_count"] > 0) & (rows["answered"] > 0) & (rows["first_write_ns"] >= 0)


def server_latencies(session: Session) -> tuple[ServerLatency, ...]:
    """Latency by server, the one that answered most first."""
    if not len(session.exchanges):
        return ()
    phases = Phases(session.exchanges)
    answered = np.flatnonzero(answered_rows(session))
    names, server = servers_of(session, session.exchanges["connection"][answered])
    order = np.argsort(server, kind="stable")
    bounds = np.searchsorted(server[order], np.arange(len(names) + 1))
    found = [
        _of_server(session, phases, answered[order[low:high]], name)
        for name, low, high in zip(names, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    return tuple(sorted(found, key=lambda one: -one.exchange_count)[:_SHOWN_SERVERS])


def servers_of(session: Session, connections: npt.NDArray[np.int32]) -> tuple[list[str], Ids]:
    """The servers that connections (ids, ascending) belong to, in words; and of each of them which: shape (n,)."""
    begins = np.append(True, connections[1:] != connections[:-1]) if len(connections) else np.zeros(0, np.bool_)
    ids, place = connections[begins], np.cumsum(begins) - 1
    numbers: dict[object, int] = {}
    names: list[str] = []
    of_connection = np.zeros(len(ids), np.int64)
    for at, number in enumerate(ids.tolist()):
        one = session.connections[number]
        key = (one.protocol, one.local.port, one.local.packed) if one.local is not None else (one.protocol,)
        known = numbers.get(key)
        if known is None:
            known = numbers[key] = len(names)
            names.append(str(one.local) if one.local is not None and (one.local.packed or one.local.port) else "*")
        of_connection[at] = known
    return names, of_connection[place]


def _of_server(session: Session, phases: Phases, rows: Ids, name: str) -> ServerLatency:
    connection = phases.rows["connection"][rows]
    slowest = int(rows[int(np.argmax(phases.whole_ns[rows]))])
    told = [percentiles(phase, took[rows]) for phase, took in phases.duration_ns.items()]
    return ServerLatency(
        local=name,
        connection_count=1 + int(np.count_nonzero(np.diff(connection))),
        exchange_count=len(rows),
        wire_count=int(np.count_nonzero(phases.duration_ns[Phase.REQUEST][rows] >= 0)),
        whole=percentiles(None, phases.whole_ns[rows]),
        phases=tuple(one for one in told if one.count),
        slowest=_whole(session, phases, slowest),
    )


def percentiles(phase: Phase | None, took: Ids) -> PhaseLatency:
    """Sum up durations; those below 0 were not seen.

    Source: nearest-rank percentiles: the smallest duration that at least p % are not above.
    """
    seen = took[took >= 0]
    count = len(seen)
    if not count:
        return PhaseLatency(phase=phase, count=0, p50_ns=0, p95_ns=0, p99_ns=0, max_ns=0)
    ranks = [-(-count * percent // 100) - 1 for percent in (50, 95, 99)] + [count - 1]
    sorted_there = np.partition(seen, ranks)
    p50, p95, p99, most = (int(sorted_there[rank]) for rank in ranks)
    each = tuple(seen.tolist()) if count < FEWEST_FOR_PERCENTILES else ()
    return PhaseLatency(phase=phase, count=count, p50_ns=p50, p95_ns=p95, p99_ns=p99, max_ns=most, each_ns=each)


def _whole(session: Session, phases: Phases, row: int) -> SlowestExchange:
    one = phases.rows[row]
    spans = _spans(phases.start_ns, phases.duration_ns, row)
    return SlowestExchange(
        connection=int(one["connection"]),
        number=int(one["number"]),
        duration_ns=int(phases.whole_ns[row]),
        phases=spans,
        tgid=int(one["tgid"]),
        comm=session.comm(int(one["tgid"])),
        request=request_words(session, int(one["first_read_event"])),
        read_bytes=int(one["read_bytes"]),
        written_bytes=int(one["written_bytes"]),
        fin_ns=int(one["fin_ns"]) if one["fin_ns"] >= 0 else None,
    )


def _spans(start_ns: Mapping[Phase, Ids], duration_ns: Mapping[Phase, Ids], row: int) -> tuple[PhaseSpan, ...]:
    return tuple(
        PhaseSpan(phase=phase, start_ns=int(start_ns[phase][row]), duration_ns=int(took[row]))
        for phase, took in duration_ns.items()
        if took[row] >= 0
    )


def request_words(session: Session, event: int) -> str:
    """What a read brought, where it begins as an HTTP/1 request: `GET /index.html`; else empty."""
    payload = session.events.section(event, Section.PAYLOAD) if event >= 0 else None
    if not payload:
        return ""
    found = start_line(payload, max(int(session.events.records["ret"][event]), len(payload)))
    return f"{found[0].method} {found[0].target}" if found is not None and found[0].method else ""
