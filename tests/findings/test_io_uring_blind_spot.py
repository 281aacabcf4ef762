"""io-uring-blind-spot: said where something is not seen, and only there."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import Script
from tests.findings.conftest import SERVER, Run, accept, peer, server

SLUG = "io-uring-blind-spot"


def ringed(engine: str = "ptrace") -> Script:
    script = server()
    script.engine = engine
    script.event(100, 100, Call.io_uring_setup, 64, ret=4)
    for _ in range(3):
        script.event(100, 100, Call.io_uring_enter, 2, 1, 1, fd=4, ret=2)
    return script


def through(script: Script, call: Call, *args: int, fd: int, ret: int) -> None:
    script.event(100, 100, call, *args, fd=fd, ret=ret, flags=EventFlag.URING)


def test_ptrace_sees_none_of_it(run: Run) -> None:
    (finding,) = run(ringed().session(), SLUG, least=Severity.INFO)
    assert (finding.severity, finding.confidence, finding.fd) == (Severity.INFO, Confidence.CERTAIN, 4)
    assert "6 requests were handed in" in finding.explanation
    assert "the ptrace engine sees system calls" in finding.explanation
    assert "--engine bpf" in finding.remedy


def test_connections_without_a_call_are_counted(run: Run) -> None:
    script = ringed()
    script.event(100, 100, Call.bind, fd=3, sockaddr=SERVER)
    accept(script, 0, 7)
    script.handshake(peer(1), SERVER)
    script.packet(SERVER, peer(1), TcpFlag.PSH | TcpFlag.ACK, seq=5001, ack=1001, payload=b"answer")
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert "On 1 of 2 connections to it no call was seen" in finding.explanation
    assert len(finding.connections) == 1


def test_a_ring_from_before_the_attach_that_nobody_enters(run: Run) -> None:
    script = server().seed_fd(100, 5, kind=FileKind.IO_URING)
    script.engine = "ptrace"
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert (finding.confidence, finding.fd) == (Confidence.POSSIBLE, 5)
    assert "SQPOLL" in finding.explanation


def test_workers_of_one_server_are_told_together(run: Run) -> None:
    script = server().process(101)
    script.engine = "ptrace"
    for tgid in (100, 101):
        script.event(tgid, tgid, Call.io_uring_setup, 64, ret=4)
        script.event(tgid, tgid, Call.io_uring_enter, 1, fd=4, ret=1)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.count == 2
    assert "server[100] and server[101] use io_uring" in finding.explanation


def test_bpf_sees_it_all(run: Run) -> None:
    script = ringed("bpf")
    through(script, Call.recvfrom, 0, 64, fd=7, ret=5)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_bpf_left_something_out(run: Run) -> None:
    script = ringed("bpf")
    script.lost = {"io_uring request of a registered file": 4, "ring full": 0}
    through(script, Call.recvfrom, 0, 64, fd=7, ret=5)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert "1 call came out of them; not seen were 4 × request of a registered file" in finding.explanation
    assert finding.title.endswith("4 requests")


def test_a_program_that_may_not_have_a_ring(run: Run) -> None:
    script = server()
    script.engine = "ptrace"
    script.event(100, 100, Call.io_uring_setup, 64, ret=-1)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_no_ring(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    assert not run(script.session(), SLUG, least=Severity.INFO)
