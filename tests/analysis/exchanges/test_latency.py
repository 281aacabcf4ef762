"""Phases of exchanges, and what they add up to for each server."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.analysis.exchanges.latency import Phases, percentiles, server_latencies
from sockscope.model.calls import Call
from sockscope.model.exchanges import EXCHANGE_DTYPE
from sockscope.model.latency import Phase
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import START_NS, Script, address

SERVER = address("10.0.0.1", 80)
US = 1_000
MS = 1_000_000


def _server() -> Script:
    script = Script().process(100)
    script.seed_fd(100, 3, inode=11)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=11, owners=[(100, 3)])
    return script


def _ask(script: Script, number: int, *, at: int, think: int, packets: bool = True) -> None:
    """A connection with one request: 100 µs in the accept queue, 50 µs in the socket's."""
    client = address("10.0.0.9", 4000 + number)
    if packets:
        script.handshake(client, SERVER, at=at)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=client, at=at + 119 * US, took=US)
    if packets:
        request = b"GET /slow HTTP/1.1\r\n\r\n"
        script.packet(client, SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=request, at=at + 200 * US)
    script.event(100, 100, Call.read, fd=7, ret=22, at=at + 249 * US, took=US, payload=b"GET /slow HTTP/1.1\r\n\r\n")
    wrote = at + 250 * US + think
    script.event(100, 100, Call.write, fd=7, ret=10, at=wrote, took=10 * US)
    if packets:
        script.packet(SERVER, client, TcpFlag.ACK, seq=5001, ack=1023, payload=b"x" * 10, at=wrote + 5 * US)
        script.packet(client, SERVER, TcpFlag.ACK, seq=1023, ack=5011, at=wrote + 30 * US)
    script.event(100, 100, Call.close, fd=7, at=wrote + 40 * US)
    if packets:
        script.packet(SERVER, client, TcpFlag.FIN | TcpFlag.ACK, seq=5011, ack=1023, at=wrote + 41 * US)


def test_the_slowest_is_shown_whole() -> None:
    script = _server()
    for number, think in enumerate([MS, 900 * MS, 2 * MS, MS, MS, MS]):
        _ask(script, number, at=(1 + number) * 1000 * MS, think=think)
    (server,) = server_latencies(script.session())
    assert server.local == "10.0.0.1:80"
    assert (server.exchange_count, server.connection_count, server.wire_count) == (6, 6, 6)
    took = {one.phase: (one.p50_ns // US, one.max_ns // US) for one in server.phases}
    assert took[Phase.HANDSHAKE] == (20, 20)
    assert took[Phase.ACCEPT_QUEUE] == (100, 100)
    assert took[Phase.SOCKET_QUEUE] == (50, 50)
    assert took[Phase.THINKING] == (1000, 900_000)
    assert took[Phase.WRITING] == (10, 10)
    assert took[Phase.DELIVERY] == (20, 20)
    slowest = server.slowest
    assert slowest.request == "GET /slow"
    assert slowest.duration_ns == sum(span.duration_ns for span in slowest.phases) == server.whole.max_ns
    assert slowest.phases[0].start_ns == START_NS + 2000 * MS
    assert slowest.fin_ns is not None
    assert (slowest.connection, slowest.number, slowest.tgid) == (1, 0, 100)


def test_few_durations_are_told_plainly() -> None:
    script = _server()
    for number in range(3):
        _ask(script, number, at=(1 + number) * 100 * MS, think=(number + 1) * MS)
    (server,) = server_latencies(script.session())
    thinking = next(one for one in server.phases if one.phase is Phase.THINKING)
    assert thinking.each_ns == (MS, 2 * MS, 3 * MS)


def test_without_packets_only_the_programs_part_is_known() -> None:
    script = _server()
    _ask(script, 0, at=MS, think=5 * MS, packets=False)
    (server,) = server_latencies(script.session())
    assert server.wire_count == 0
    assert [one.phase for one in server.phases] == [Phase.THINKING, Phase.WRITING]
    assert server.slowest.duration_ns == 5 * MS + 10 * US


def test_what_was_sent_ahead_does_not_wait_for_the_program() -> None:
    """Pipelined: the second request lies there while the first is worked on."""
    script = _server()
    client = address("10.0.0.9", 4000)
    script.handshake(client, SERVER, at=0)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=client, at=100 * US)
    script.packet(client, SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"ab", at=200 * US)
    script.event(100, 100, Call.read, fd=7, ret=1, at=300 * US, took=US)
    script.event(100, 100, Call.write, fd=7, ret=1, at=900 * MS, took=US)
    script.event(100, 100, Call.read, fd=7, ret=1, at=900 * MS + 4 * US, took=US)
    script.event(100, 100, Call.write, fd=7, ret=1, at=900 * MS + 20 * US, took=US)
    phases = Phases(script.session().exchanges)
    assert phases.duration_ns[Phase.SOCKET_QUEUE].tolist() == [101 * US, 4 * US]


def test_one_way_traffic_has_no_latency() -> None:
    script = _server()
    client = address("10.0.0.9", 4000)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=client)
    script.event(100, 100, Call.read, fd=7, ret=100)
    script.event(100, 100, Call.read, fd=7, ret=100)
    assert server_latencies(script.session()) == ()


@given(st.lists(st.integers(-1, 10**12), max_size=200))
def test_percentiles_are_durations_that_were(values: list[int]) -> None:
    found = percentiles(None, np.array(values, np.int64))
    seen = sorted(value for value in values if value >= 0)
    assert found.count == len(seen)
    if seen:
        assert {found.p50_ns, found.p95_ns, found.p99_ns, found.max_ns} <= set(seen)
        assert found.p50_ns <= found.p95_ns <= found.p99_ns <= found.max_ns == seen[-1]
        assert sum(value <= found.p50_ns for value in seen) * 2 >= len(seen)
        assert sum(value < found.p50_ns for value in seen) * 2 < len(seen) + 1
    assert len(found.each_ns) == (len(seen) if len(seen) < 5 else 0)


_NAMES = (
    "syn_ns", "established_ns", "accept_ns", "arrived_ns", "arrived_whole_ns", "first_read_ns", "last_read_ns",
    "first_write_ns", "last_write_ns", "sent_ns", "acked_ns",
)  # fmt: skip


@given(st.lists(st.tuples(*(st.integers(-1, 1000) for _ in _NAMES)), min_size=1, max_size=20))
def test_phases_never_overlap_whatever_the_clocks_say(times: list[tuple[int, ...]]) -> None:
    rows = np.zeros(len(times), EXCHANGE_DTYPE)
    for at, one in enumerate(times):
        for name, value in zip(_NAMES, one, strict=True):
            rows[name][at] = value
    rows["connection"] = np.arange(len(times))
    phases = Phases(rows)
    for at in range(len(times)):
        end = 0
        for phase, took in phases.duration_ns.items():
            if took[at] < 0:
                continue
            assert phases.start_ns[phase][at] >= end
            end = int(phases.start_ns[phase][at] + took[at])
        assert phases.whole_ns[at] == sum(max(int(took[at]), 0) for took in phases.duration_ns.values())
