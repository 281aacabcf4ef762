"""A report of more connections than a page shows one by one, made row by row in a moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.report import ConnectionRow, Report, TimelineTable
from sockscope.model.tcp import TcpState
from tests.reports.example import LOCAL, MS, SERVER, START_NS, WORKER, example_report, peer, story

FAULTY_EVERY = 40
WORST = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedTimelines:
    """Remembers for which connections it was asked."""

    asked: list[int] = field(default_factory=list)

    def __call__(self, connections: Sequence[int], limits: Sequence[int]) -> Iterator[TimelineTable]:
        for connection in connections:
            self.asked.append(connection)
            yield TimelineTable.of_items(story(connection, leaks=connection % FAULTY_EVERY == 0))


def large_row(number: int) -> ConnectionRow:
    """Every 40th leaks, #41 and #42 wait to be accepted, the others are well."""
    leaks, waits = number % FAULTY_EVERY == 0, number in (41, 42)
    owner = WORKER if number % 3 == 0 else SERVER
    first = START_NS + number * 1000
    state = TcpState.CLOSE_WAIT if leaks or waits else TcpState.TIME_WAIT if number % 4 else TcpState.ESTABLISHED
    connection = Connection(
        id=number,
        protocol=Protocol.TCP,
        role=Role.SERVER,
        local=LOCAL,
        peer=peer(number),
        first_ns=first,
        last_ns=first + (5 + number % 1000) * MS,
        state=state,
        read_bytes=78,
        written_bytes=600 + number,
        owners=[(owner, 7)] if leaks else [],
        never_accepted=waits,
    )
    return ConnectionRow(
        connection=connection,
        processes=() if waits else (owner,),
        event_count=9,
        packet_count=12,
        finding_indexes=(0,) if leaks else (1,) if waits else (),
        summary="" if waits else f"GET /item/{number} → 200, {600 + number} bytes",
        wire="3 retransmissions (1 RTO); round trip 41 ms" if number == WORST else "round trip 0.4 ms",
    )


def large_report(connections: int = 100_000, timelines: CountedTimelines | None = None) -> Report:
    """`connections` of them, more than `WORST`."""
    base = example_report(100)
    leaking = tuple(range(0, connections, FAULTY_EVERY))
    first, second, third = base.findings
    findings = (
        replace(first, connections=leaking, count=len(leaking), worst=WORST),
        replace(second, connections=(41, 42), worst=41),
        third,
    )
    return replace(
        base,
        connections=tuple(map(large_row, range(connections))),
        findings=findings,
        timeline_tables=timelines or CountedTimelines(),
    )
