"""The anatomy of latency: exchanges cut into phases, and percentiles of each phase for each server."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sockscope.analysis.narration.http1 import start_line
from sockscope.analysis.session import Grouping, Ids, Session
from sockscope.model.columns import Appended, pieces
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
    return answered_among(session.exchanges)


def answered_among(rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Like `answered_rows`, of these rows of it."""
    return (rows["read_count"] > 0) & (rows["answered"] > 0) & (rows["first_write_ns"] >= 0)


class Durations:
    """The phases of all exchanges, how long each took; worked out piece by piece, in the session's room.

    Attributes:
        duration_ns: by phase; shape (exchanges,), int64; -1 where one of its ends was not seen.
        whole_ns: shape (exchanges,), the sum of an exchange's phases.
    """

    def __init__(self, session: Session) -> None:
        rows = session.exchanges
        self.whole_ns: Ids = session.columns(len(rows), np.int64)
        self.duration_ns: dict[Phase, Ids] = {}
        for part in pieces(len(rows)):
            phases, before = _phases_of(rows, part.start, part.stop)
            self.whole_ns[part] = phases.whole_ns[before:]
            for phase, took in phases.duration_ns.items():
                self.duration_ns.setdefault(phase, session.columns(len(rows), np.int64))[part] = took[before:]


def _phases_of(rows: npt.NDArray[np.void], begin: int, end: int) -> tuple[Phases, int]:
    """Phases of some rows, and how many come before the first: what an exchange waited for is the one before it."""
    first = max(begin - 1, 0)
    return Phases(rows[first:end]), begin - first


def server_latencies(session: Session) -> tuple[ServerLatency, ...]:
    """Latency by server, the one that answered most first."""
    rows = session.exchanges
    if not len(rows):
        return ()
    answered = session.columns(len(rows), np.bool_)
    talking = [np.zeros(0, np.int32)]
    for part in pieces(len(rows)):
        answered[part] = answered_among(rows[part])
        talking.append(np.unique(rows["connection"][part][answered[part]]))
    connections = np.unique(np.concatenate(talking))
    names, server = servers_of(session, connections)
    of_connection = np.full(len(session.connections), NO_ID, np.int64)
    of_connection[connections] = server
    of_row, every = session.columns(len(rows), np.int32), session.columns(len(rows), np.int64)
    for part in pieces(len(rows)):
        of_row[part] = np.where(answered[part], of_connection[rows["connection"][part]], NO_ID)
        every[part] = np.arange(part.start, part.stop)
    by_server = Grouping(of_row, every, session.columns)
    durations = Durations(session)
    found = [_of_server(session, durations, by_server.of(number), name) for number, name in enumerate(names)]
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


def _of_server(session: Session, durations: Durations, rows: Ids, name: str) -> ServerLatency:
    connections = 0
    on_wire, worst, slowest, last = 0, -1, -1, NO_ID
    for part in pieces(len(rows)):
        connection = session.exchanges["connection"][rows[part]]
        connections += int(np.count_nonzero(np.diff(connection, prepend=last)))
        last = int(connection[-1])
        on_wire += int(np.count_nonzero(durations.duration_ns[Phase.REQUEST][rows[part]] >= 0))
        whole = durations.whole_ns[rows[part]]
        at = int(np.argmax(whole))
        if whole[at] > worst:
            worst, slowest = int(whole[at]), int(rows[part][at])
    told = [_percentiles_of(session, phase, took, rows) for phase, took in durations.duration_ns.items()]
    return ServerLatency(
        local=name,
        connection_count=connections,
        exchange_count=len(rows),
        wire_count=on_wire,
        whole=_percentiles_of(session, None, durations.whole_ns, rows),
        phases=tuple(one for one in told if one.count),
        slowest=_whole(session, slowest),
    )


def _percentiles_of(session: Session, phase: Phase | None, took: Ids, rows: Ids) -> PhaseLatency:
    """Of these rows of a column."""
    seen = Appended(session.columns, np.int64)
    for part in pieces(len(rows)):
        picked = took[rows[part]]
        seen.add(picked[picked >= 0])
    return percentiles(phase, seen.whole())


def percentiles(phase: Phase | None, took: Ids) -> PhaseLatency:
    """Sum up durations; those below 0 were not seen.

    Args:
        took: shape (n,); its order is lost.

    Source: nearest-rank percentiles: the smallest duration that at least p % are not above.
    """
    seen = took if len(took) and took.min() >= 0 else took[took >= 0]
    count = len(seen)
    if not count:
        return PhaseLatency(phase=phase, count=0, p50_ns=0, p95_ns=0, p99_ns=0, max_ns=0)
    ranks = [-(-count * percent // 100) - 1 for percent in (50, 95, 99)] + [count - 1]
    each = tuple(seen.tolist()) if count < FEWEST_FOR_PERCENTILES else ()
    seen.partition(ranks)
    p50, p95, p99, most = (int(seen[rank]) for rank in ranks)
    return PhaseLatency(phase=phase, count=count, p50_ns=p50, p95_ns=p95, p99_ns=p99, max_ns=most, each_ns=each)


def _whole(session: Session, row: int) -> SlowestExchange:
    one = session.exchanges[row]
    phases, at = _phases_of(session.exchanges, row, row + 1)
    return SlowestExchange(
        connection=int(one["connection"]),
        number=int(one["number"]),
        duration_ns=int(phases.whole_ns[at]),
        phases=_spans(phases.start_ns, phases.duration_ns, at),
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
