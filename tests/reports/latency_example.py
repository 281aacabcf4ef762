"""Latency as the analysis would hand it over, without running it."""

from __future__ import annotations

from sockscope.model.latency import Phase, PhaseLatency, PhaseSpan, ServerLatency, SlowestExchange

US, MS = 1_000, 1_000_000
START_NS = 1_000_000_000_000


def phase(name: Phase | None, count: int, *times: int) -> PhaseLatency:
    """`times`: p50, p95, p99 and the maximum; where there are fewer than five exchanges, all of them."""
    if count < 5:
        ordered = sorted(times)
        p50, last = ordered[(count + 1) // 2 - 1], ordered[-1]
        return PhaseLatency(phase=name, count=count, p50_ns=p50, p95_ns=last, p99_ns=last, max_ns=last, each_ns=times)
    p50, p95, p99, most = times
    return PhaseLatency(phase=name, count=count, p50_ns=p50, p95_ns=p95, p99_ns=p99, max_ns=most)


def spans(start_ns: int, *parts: tuple[Phase, int]) -> tuple[PhaseSpan, ...]:
    found = []
    for name, took in parts:
        found.append(PhaseSpan(phase=name, start_ns=start_ns, duration_ns=took))
        start_ns += took
    return tuple(found)


def busy_server(local: str, connection: int, tgid: int, comm: str, request: str) -> ServerLatency:
    """Thousands of answers, all found on the wire."""
    parts = (
        (Phase.HANDSHAKE, 31 * US),
        (Phase.ACCEPT_QUEUE, 220 * MS),
        (Phase.REQUEST, 0),
        (Phase.SOCKET_QUEUE, 52 * US),
        (Phase.THINKING, 1250 * MS),
        (Phase.WRITING, 90 * MS),
        (Phase.DELIVERY, 41 * MS),
    )
    whole = sum(took for _, took in parts)
    return ServerLatency(
        local=local,
        connection_count=350,
        exchange_count=1204,
        wire_count=1204,
        whole=phase(None, 1204, 810 * US, 4_200 * US, 41 * MS, whole),
        phases=(
            phase(Phase.HANDSHAKE, 350, 29 * US, 44 * US, 61 * US, 90 * US),
            phase(Phase.ACCEPT_QUEUE, 350, 48 * US, 3 * MS, 190 * MS, 220 * MS),
            phase(Phase.REQUEST, 1204, 0, 0, 12 * US, 310 * US),
            phase(Phase.SOCKET_QUEUE, 1204, 35 * US, 80 * US, 1_100 * US, 4 * MS),
            phase(Phase.THINKING, 1204, 410 * US, 2 * MS, 9 * MS, 1250 * MS),
            phase(Phase.WRITING, 1204, 120 * US, 340 * US, 700 * US, 90 * MS),
            phase(Phase.DELIVERY, 1204, 14 * US, 40 * MS, 41 * MS, 41 * MS),
        ),
        slowest=SlowestExchange(
            connection=connection,
            number=2,
            duration_ns=whole,
            phases=spans(START_NS + 110 * MS, *parts),
            tgid=tgid,
            comm=comm,
            request=request,
            read_bytes=78,
            written_bytes=615,
            fin_ns=START_NS + 110 * MS + whole + 42 * US,
        ),
    )


def quiet_server(local: str, connection: int, tgid: int, comm: str) -> ServerLatency:
    """Three answers of which the wire says nothing."""
    parts = ((Phase.THINKING, 3_100 * US), (Phase.WRITING, 12 * US))
    return ServerLatency(
        local=local,
        connection_count=2,
        exchange_count=3,
        wire_count=0,
        whole=phase(None, 3, 905 * US, 3_112 * US, 1_000 * US),
        phases=(
            phase(Phase.THINKING, 3, 900 * US, 3_100 * US, 990 * US),
            phase(Phase.WRITING, 3, 5 * US, 12 * US, 10 * US),
        ),
        slowest=SlowestExchange(
            connection=connection,
            number=0,
            duration_ns=3_112 * US,
            phases=spans(START_NS + 300 * MS, *parts),
            tgid=tgid,
            comm=comm,
            request="",
            read_bytes=12,
            written_bytes=1_204_000,
        ),
    )
