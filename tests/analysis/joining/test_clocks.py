"""Clock skew told from causality."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import Script, address

A = 100
CLIENT = address("10.0.0.9", 40000)
SERVER = address("10.0.0.1", 80)


def exchange(ahead_ns: int) -> Script:
    """One request and its answer; packets stamped by a clock that runs ahead."""
    script = Script(ports=(80,)).process(A)
    script.seed_fd(A, 3, inode=11)
    script.event(A, A, Call.bind, fd=3, sockaddr=address("0.0.0.0", 80), at=1_000)
    script.event(A, A, Call.listen, fd=3, at=5_000)
    script.handshake(CLIENT, SERVER, at=1_000_000 + ahead_ns)
    script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=CLIENT, at=1_100_000)
    data = TcpFlag.PSH | TcpFlag.ACK
    script.packet(CLIENT, SERVER, data, seq=1001, ack=5001, payload=b"ping", at=2_000_000 + ahead_ns)
    script.event(A, A, Call.recvfrom, 7, 0, 100, ret=4, at=2_010_000, took=1_000)
    script.event(A, A, Call.sendto, fd=7, ret=4, at=2_020_000, took=1_000)
    script.packet(SERVER, CLIENT, data, seq=5001, ack=1005, payload=b"pong", at=2_020_500 + ahead_ns)
    return script


@pytest.mark.parametrize(
    ("ahead_ns", "skew_ns"),
    [(0, 0), (5_000, 0), (-400, 0), (111_000, 100_000), (-100_500, -100_000)],
)
def test_skew_is_the_least_that_mends_causality(ahead_ns: int, skew_ns: int) -> None:
    assert exchange(ahead_ns).session().info.clock_skew_ns == skew_ns


def test_nothing_to_tell_from() -> None:
    assert Script().session().info.clock_skew_ns == 0
