"""nagle-delayed-ack: bytes that the ACK of the bytes before them released."""

from __future__ import annotations

import struct
from itertools import count

import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, accept, peer, server

SLUG = "nagle-delayed-ack"
PSH = TcpFlag.PSH | TcpFlag.ACK
HEADER, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"body\n"


def stall(script: Script, number: int, *, nth: int, begins: int, delay: int = 40, late: int = 0, more: int = 0) -> None:
    """A request, the header written and sent, the body written and sent `late` ms after the ACK that comes `delay` ms
    after the header. Times in ms."""
    sent = nth * (len(HEADER) + len(BODY))
    asked = 1001 + nth * 6
    fd, at = 7 + number, begins * MS
    script.packet(peer(number), SERVER, PSH, seq=asked, ack=5001 + sent, payload=b"hello\n", at=at)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=fd, ret=6, at=at + MS // 10)
    script.event(100, 100, Call.sendto, 0, len(HEADER), fd=fd, ret=len(HEADER), at=at + MS)
    script.packet(SERVER, peer(number), PSH, seq=5001 + sent, ack=asked + 6, payload=HEADER, at=at + MS + 500)
    script.event(100, 100, Call.sendto, 0, len(BODY), more, fd=fd, ret=len(BODY), at=at + MS + 50_000)
    back = 5001 + sent + len(HEADER)
    if delay:
        script.packet(peer(number), SERVER, TcpFlag.ACK, seq=asked + 6, ack=back, at=at + (1 + delay) * MS)
    script.packet(
        SERVER, peer(number), PSH, seq=back, ack=asked + 6, payload=BODY, at=at + (1 + delay + late) * MS + 60_000
    )
    end = back + len(BODY)
    script.packet(peer(number), SERVER, TcpFlag.ACK, seq=asked + 6, ack=end)


def stalls(count_of: int = 3, *, options: tuple[tuple[int, int, int], ...] = (), **more: int) -> Script:
    script = server()
    accept(script, 0, 7, at=MS)
    for level, name, value in options:
        script.event(
            100, 100, Call.setsockopt, level, name, fd=7, sections=[(Section.OPTION, struct.pack("<i", value))]
        )
    for nth in range(count_of):
        stall(script, 0, nth=nth, begins=10 + nth * 200, **more)
    return script


def test_three_stalls(run: Run) -> None:
    (finding,) = run(stalls().session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.CERTAIN)
    assert (finding.tgid, finding.fd, finding.count) == (100, 7, 1)
    assert finding.title == "3 writes waited for the peer's delayed ACK, 40.0 ms each"
    assert "120.0 ms in all" in finding.explanation
    assert "sendto of 5 bytes on fd 7, 50 µs after sendto of 19 bytes" in finding.explanation
    assert "never set" in finding.explanation
    assert sorted(fact.source.value for fact in finding.evidence) == ["packet"] * 3 + ["syscall"] * 2


def test_over_several_connections(run: Run) -> None:
    script = server()
    for number, begins in zip(range(4), count(10, 200), strict=False):
        accept(script, number, 7 + number, at=(begins - 5) * MS)
        stall(script, number, nth=0, begins=begins)
    (finding,) = run(script.session(), SLUG)
    assert finding.count == 4
    assert "all 4 connections" in finding.explanation


def test_from_before_the_attach(run: Run) -> None:
    """What the wire and the calls show needs no witnessed option."""
    script = server().seed_fd(100, 7, inode=7)
    script.snapshot(at=0)
    script.socket_row(SERVER, peer(0), inode=7, owners=[(100, 7)])
    for nth in range(3):
        stall(script, 0, nth=nth, begins=10 + nth * 200)
    (finding,) = run(script.session(), SLUG)
    assert "or the bytes would not have waited" in finding.explanation


@pytest.mark.parametrize("numbers", [1, 2])
def test_one_or_two_may_be_chance(run: Run, numbers: int) -> None:
    assert not run(stalls(numbers).session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"delay": 5}, id="a quick ACK"),
        pytest.param({"late": 30}, id="it leaves for another reason than the ACK"),
        pytest.param({"more": 0x8000}, id="MSG_MORE"),
        pytest.param({"delay": 0}, id="no ACK between"),
    ],
)
def test_no_stall(run: Run, more: dict[str, int]) -> None:
    assert not run(stalls(3, options=(), **more).session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize("option", [(6, 1, 1), (6, 3, 1)], ids=["TCP_NODELAY", "TCP_CORK"])
def test_options_that_explain_it_otherwise(run: Run, option: tuple[int, int, int]) -> None:
    assert not run(stalls(options=(option,)).session(), SLUG, least=Severity.INFO)


def test_an_option_switched_off_changes_nothing(run: Run) -> None:
    assert run(stalls(options=((6, 1, 0),)).session(), SLUG)


def test_a_slow_path_is_no_delayed_ack(run: Run) -> None:
    """The round trip takes as long: that ACK was not delayed."""
    script = server()
    script.packet(peer(0), SERVER, TcpFlag.SYN, seq=1000, at=MS)
    script.packet(SERVER, peer(0), TcpFlag.SYN | TcpFlag.ACK, seq=5000, ack=1001)
    script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1001, ack=5001, at=39 * MS)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer(0))
    for nth in range(3):
        stall(script, 0, nth=nth, begins=100 + nth * 200)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_the_second_write_came_late_itself(run: Run) -> None:
    """A program that makes the body only when the ACK comes holds nothing back."""
    script = server()
    accept(script, 0, 7, at=MS)
    for nth in range(3):
        at, sent = (10 + nth * 200) * MS, nth * 24
        script.event(100, 100, Call.sendto, 0, 19, fd=7, ret=19, at=at)
        script.packet(SERVER, peer(0), PSH, seq=5001 + sent, ack=1001, payload=HEADER, at=at + 500)
        script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1001, ack=5020 + sent, at=at + 40 * MS)
        script.event(100, 100, Call.sendto, 0, 5, fd=7, ret=5, at=at + 40 * MS + 1000)
        script.packet(SERVER, peer(0), PSH, seq=5020 + sent, ack=1001, payload=BODY, at=at + 40 * MS + 2000)
    assert not run(script.session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize("room", [30, 0x7FFF], ids=["window", "nothing"])
def test_a_window_without_room(run: Run, room: int) -> None:
    """The peer reads slowly: what waits, waits for room (the handshake's windows count as they are, without scale)."""
    script = server()
    accept(script, 0, 7, at=MS)
    for nth in range(3):
        at, sent = (10 + nth * 200) * MS, nth * 24
        script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1001, ack=5001 + sent, window=room // 128 or 1, at=at - MS)
        script.event(100, 100, Call.sendto, 0, 19, fd=7, ret=19, at=at)
        script.packet(SERVER, peer(0), PSH, seq=5001 + sent, ack=1001, payload=HEADER, at=at + 500)
        script.event(100, 100, Call.sendto, 0, 5, fd=7, ret=5, at=at + MS)
        script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1001, ack=5020 + sent, window=500, at=at + 41 * MS)
        script.packet(SERVER, peer(0), PSH, seq=5020 + sent, ack=1001, payload=BODY, at=at + 41 * MS + 2000)
    assert bool(run(script.session(), SLUG)) == (room > 30)


def test_without_packets_it_is_skipped() -> None:
    script = server()
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer(0))
    findings, skips, _ = run_rules(script.session(), select=[SLUG])
    assert not findings
    assert [skip.reason for skip in skips] == ["no packets were captured"]
