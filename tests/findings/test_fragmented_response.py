"""fragmented-response: many writes for one answer, one right after the other."""

from __future__ import annotations

import struct

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, accept, ask, peer, server

SLUG = "fragmented-response"
PSH = TcpFlag.PSH | TcpFlag.ACK


def pieces(script: Script, fd: int, *, many: int = 30, size: int = 5, every: int = MS // 10, flags: int = 0) -> None:
    for _ in range(many):
        script.event(100, 100, Call.sendto, 0, size, flags, fd=fd, ret=size, at=script.now_ns + every)


def served(answers: int = 4, **more: int) -> Script:
    """So many clients, each answered in pieces."""
    script = server()
    for number in range(answers):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number)
        pieces(script, 7 + number, **more)
    return script


def test_written_in_pieces(run: Run) -> None:
    (finding,) = run(served().session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.CERTAIN, 4)
    assert (finding.tgid, finding.fd) == (100, 7)
    assert finding.title == "all 4 answers written in about 30 pieces of 5 bytes each"
    assert "30 writes for 150 bytes" in finding.explanation
    assert "sendto" in finding.remedy


def test_each_in_a_packet(run: Run) -> None:
    script = server()
    for number in range(3):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number)
        for nth in range(25):
            pieces(script, 7 + number, many=1)
            payload = b"12345"
            script.packet(
                SERVER, peer(number), PSH, seq=5001 + nth * 5, ack=1007, payload=payload, at=script.now_ns + 500
            )
    (finding,) = run(script.session(), SLUG)
    assert "25 packets on the wire" in finding.explanation


def test_gathered_by_the_kernel_is_of_interest_only(run: Run) -> None:
    script = server()
    for number in range(3):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number)
        pieces(script, 7 + number, many=29)
        script.packet(SERVER, peer(number), PSH, seq=5001, ack=1007, payload=b"x" * 150, at=script.now_ns + 500)
        pieces(script, 7 + number, many=1)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO


def test_some_answers_of_many(run: Run) -> None:
    script = served(3)
    for number in range(10, 20):
        accept(script, number, number)
        ask(script, number, number)
        pieces(script, number, many=2)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO
    assert finding.title.startswith("3 of 13 answers")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"answers": 2}, id="two answers"),
        pytest.param({"many": 3}, id="headers and body"),
        pytest.param({"size": 4096}, id="large pieces"),
        pytest.param({"every": 20 * MS}, id="a stream with pauses"),
        pytest.param({"flags": 0x8000}, id="MSG_MORE"),
    ],
)
def test_no_fault(run: Run, more: dict[str, int]) -> None:
    assert not run(served(**more).session(), SLUG, least=Severity.INFO)


def test_corked(run: Run) -> None:
    script = server()
    for number in range(4):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number)
        option = [(Section.OPTION, struct.pack("<i", 1))]
        script.event(100, 100, Call.setsockopt, 6, 3, fd=7 + number, sections=option)
        pieces(script, 7 + number)
    assert not run(script.session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize("source", ["pipe", "socket"])
def test_passed_on_as_it_comes(run: Run, source: str) -> None:
    script = server().seed_fd(100, 5, kind=FileKind.PIPE)
    accept(script, 90, 6)
    for number in range(4):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number)
        for _ in range(30):
            script.event(
                100, 100, Call.read, 0, 4096, fd=5 if source == "pipe" else 6, ret=5, at=script.now_ns + MS // 10
            )
            pieces(script, 7 + number, many=1)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_polling_for_room_is_no_pause(run: Run) -> None:
    """A socket with a time limit is polled before each send; that returns at once."""
    script = server()
    for number in range(4):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number)
        for _ in range(30):
            script.event(100, 100, Call.poll, 0, 1, 5000, ret=1, poll=[(7 + number, 4, 4)], at=script.now_ns + MS // 10)
            pieces(script, 7 + number, many=1)
    assert run(script.session(), SLUG)
