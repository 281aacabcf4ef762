"""missing-fin: half closed, and no end to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sockscope.model.calls import Call, CallGroup
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Severity
from sockscope.model.info import SyscallCoverage
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script
from tests.findings.conftest import SERVER, Run, S, accept, answer, ask, leave, peer, server, told

SLUG = "missing-fin"
FIN = TcpFlag.FIN | TcpFlag.ACK


def half_closed(*, limited: bool = False) -> Script:
    """Answered, ended its half."""
    script = server()
    accept(script, 0, 7)
    if limited:
        script.event(100, 100, Call.setsockopt, 1, 20, fd=7, option=bytes(16))
    ask(script, 0, 7)
    answer(script, 7)
    script.event(100, 100, Call.shutdown, 1, fd=7)
    script.packet(SERVER, peer(0), FIN, seq=5004, ack=1007)
    return script


def blocked(script: Script) -> Script:
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, flags=EventFlag.ENTERED_ONLY)
    return script


def test_waits_without_limit(run: Run) -> None:
    (finding,) = run(blocked(half_closed()).ends(4 * S).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.fd) == (Severity.WARNING, Confidence.LIKELY, 7)
    assert "nothing limits" in finding.explanation


def test_waits_with_a_limit(run: Run) -> None:
    assert not run(blocked(half_closed(limited=True)).ends(4 * S).session(), SLUG)


def test_not_for_long(run: Run) -> None:
    assert not run(blocked(half_closed()).ends(S).session(), SLUG)


def test_closed_by_the_program(run: Run) -> None:
    script = half_closed()
    script.event(100, 100, Call.close, fd=7)
    assert not run(script.ends(9 * S).session(), SLUG, least=Severity.INFO)


def test_an_event_loop_may_have_a_timer(run: Run) -> None:
    session = half_closed().ends(9 * S).session()
    assert not run(session, SLUG)
    assert len(run(session, SLUG, least=Severity.INFO)) == 1


def test_peer_ends_too(run: Run) -> None:
    script = half_closed()
    leave(script, 0)
    told(script, 7)
    script.event(100, 100, Call.close, fd=7)
    assert not run(script.ends(9 * S).session(), SLUG, least=Severity.INFO)


def wire_only() -> Script:
    script = Script(ports=(80,), engine="")
    script.handshake(peer(0), SERVER)
    script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"hello\n")
    return script


def test_a_capture_alone(run: Run) -> None:
    script = wire_only()
    leave(script, 0)
    (finding,) = run(script.ends(20 * S).session(), SLUG)
    assert finding.confidence is Confidence.POSSIBLE
    assert "127.0.0.1:80" in finding.title
    assert "had ended its half" in finding.explanation


def test_a_capture_with_both_ends(run: Run) -> None:
    script = wire_only()
    leave(script, 0)
    script.packet(SERVER, peer(0), FIN, seq=5001, ack=1008)
    assert not run(script.ends(20 * S).session(), SLUG, least=Severity.INFO)


def test_a_capture_of_one_side(run: Run) -> None:
    """`tcpdump dst port 80`: the server's FIN was not to be seen."""
    script = Script(ports=(80,), engine="")
    script.packet(peer(0), SERVER, TcpFlag.SYN, seq=1000)
    script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"hello\n")
    leave(script, 0)
    assert not run(script.ends(20 * S).session(), SLUG, least=Severity.INFO)


def test_snapshots_alone(run: Run) -> None:
    script = Script(ports=(80,), engine="")
    for at in (1, 8):
        script.snapshot(at=at * S)
        script.socket_row(SERVER, peer(0), TcpState.CLOSE_WAIT, inode=70, owners=[(100, 7)])
    (finding,) = run(script.ends(9 * S).session(), SLUG)
    assert finding.severity is Severity.WARNING


def test_a_capture_that_begins_after_one_fin(run: Run) -> None:
    """Its first packet is the client's FIN: the server's own may have gone before anybody looked."""
    script = Script(ports=(80,), engine="")
    script.packet(peer(0), SERVER, FIN, seq=1007, ack=5002)
    script.packet(SERVER, peer(0), TcpFlag.ACK, seq=5002, ack=1008)
    assert not run(script.ends(20 * S).session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize(
    "coverage",
    [
        SyscallCoverage(engine="strace", missing_groups=(CallGroup.DESCRIPTORS,)),
        SyscallCoverage(engine="strace", missing_groups=(CallGroup.TASKS,)),
        SyscallCoverage(engine="strace", resolution_ns=0),
    ],
)
def test_a_log_without_closes_or_times_does_not_say_who_holds_it(run: Run, coverage: SyscallCoverage) -> None:
    session = blocked(half_closed()).ends(4 * S).session()
    session = replace(session, info=replace(session.info, syscalls=coverage))
    assert not [one for one in run(session, SLUG) if one.fd is not None]
