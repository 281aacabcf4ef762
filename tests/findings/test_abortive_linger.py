"""abortive-linger: SO_LINGER 0, and the closes that are something else."""

from __future__ import annotations

import struct

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, ask, peer, server

SLUG = "abortive-linger"
RST = TcpFlag.RST | TcpFlag.ACK
ANSWER = b"x" * 3000


def linger(script: Script, fd: int, seconds: int = 0, *, on: int = 1) -> int:
    return script.event(100, 100, Call.setsockopt, 1, 13, fd=fd, option=struct.pack("ii", on, seconds))


def served(script: Script, number: int = 0, *, acked: int = 1000, sent: int = 1000, seconds: int | None = 0) -> None:
    """3000 bytes are written, `sent` of them go out, and the peer acknowledges `acked`."""
    fd = 7 + number
    accept(script, number, fd)
    if seconds is not None:
        linger(script, fd, seconds)
    ask(script, number, fd)
    script.event(100, 100, Call.sendto, 0, len(ANSWER), fd=fd, ret=len(ANSWER), payload=ANSWER)
    script.packet(SERVER, peer(number), TcpFlag.ACK, seq=5001, ack=1007, payload=ANSWER[:sent])
    script.packet(peer(number), SERVER, TcpFlag.ACK, seq=1007, ack=5001 + acked)


def close(script: Script, number: int = 0, *, flags: TcpFlag = RST, at: int | None = None) -> None:
    script.event(100, 100, Call.close, fd=7 + number, at=at)
    script.packet(SERVER, peer(number), flags, seq=6001, ack=1007)


def test_the_answer_is_thrown_away(run: Run) -> None:
    script = server()
    for number in range(2):
        served(script, number)
        close(script, number)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.CERTAIN, 2)
    assert (finding.tgid, finding.fd) == (100, 7)
    assert "2000 bytes of it were not acknowledged" in finding.explanation
    assert "2000 had not even been sent" in finding.explanation
    assert "4000 bytes on all of these" in finding.explanation
    assert "setsockopt(7, SOL_SOCKET, SO_LINGER)" in finding.remedy


def test_sent_and_not_acknowledged(run: Run) -> None:
    script = server()
    served(script, sent=3000, acked=2500)
    close(script)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert "500 bytes of it were not acknowledged by then: what of it is lost" in finding.explanation


def only_info(run: Run, script: Script) -> bool:
    session = script.ends(9 * S).session()
    (finding,) = run(session, SLUG, least=Severity.INFO)
    return finding.severity is Severity.INFO


def test_all_acknowledged(run: Run) -> None:
    script = server()
    served(script, sent=3000, acked=3000)
    close(script)
    assert only_info(run, script)


def test_a_client_that_does_not_read_is_dropped_in_the_end(run: Run) -> None:
    script = server()
    served(script)
    close(script, at=5 * S)
    assert only_info(run, script)


def test_harmless_ones_beside_harmful_ones_are_no_second_finding(run: Run) -> None:
    script = server()
    served(script)
    close(script)
    served(script, 1, sent=3000, acked=3000)
    close(script, 1)
    (finding,) = run(script.ends(S).session(), SLUG, least=Severity.INFO)
    assert (finding.severity, finding.count) == (Severity.WARNING, 1)
    assert "1 of 2 connections" in finding.explanation


def test_set_on_the_listener(run: Run) -> None:
    script = server()
    linger(script, 3)
    served(script, seconds=None)
    close(script)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert finding.confidence is Confidence.CERTAIN
    assert "set on the listener" in finding.explanation
    assert "setsockopt(3," in finding.remedy


def test_set_before_watching_began(run: Run) -> None:
    script = server()
    served(script, seconds=None)
    close(script)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert finding.confidence is Confidence.LIKELY
    assert "before watching began" in finding.explanation


def test_accepted_before_watching_began(run: Run) -> None:
    script = server().seed_fd(100, 7, inode=70)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3)])
    script.socket_row(SERVER, peer(0), inode=70, owners=[(100, 7)])
    script.event(100, 100, Call.sendto, 0, 3000, fd=7, ret=3000)
    script.packet(SERVER, peer(0), TcpFlag.ACK, seq=5001, ack=1007, payload=ANSWER)
    close(script)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)
    script.packet(peer(0), SERVER, TcpFlag.PSH, seq=1007, ack=5001, payload=b"more", at=1)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_reset_by_unread_data_is_another_fault() -> None:
    script = server()
    served(script, seconds=None, sent=3000, acked=3000)
    script.packet(peer(0), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1007, ack=8001, payload=b"more")
    close(script)
    findings, _, _ = run_rules(script.ends(S).session(), select=[SLUG, "reset-on-close"])
    assert [finding.rule for finding in findings] == ["reset-on-close"]


def test_unread_data_and_linger_are_one_finding() -> None:
    script = server()
    served(script)
    script.packet(peer(0), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1007, ack=8001, payload=b"more")
    close(script)
    findings, _, _ = run_rules(script.ends(S).session(), select=[SLUG, "reset-on-close"])
    assert [finding.rule for finding in findings] == [SLUG]


def test_another_linger(run: Run) -> None:
    """With seconds close waits; switched off it is as if it had never been set."""
    for seconds, on in ((5, 1), (0, 0)):
        script = server()
        served(script, seconds=None)
        linger(script, 7, seconds, on=on)
        close(script)
        assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_a_reset_that_comes_later(run: Run) -> None:
    """FIN first, and RST for what the peer sends then."""
    script = server()
    served(script)
    close(script, flags=TcpFlag.FIN | TcpFlag.ACK)
    script.packet(SERVER, peer(0), TcpFlag.RST, seq=6002)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_without_packets() -> None:
    script = server()
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer(0))
    linger(script, 7)
    script.event(100, 100, Call.close, fd=7, at=20 * MS)
    _, skips, _ = run_rules(script.ends(S).session(), select=[SLUG])
    assert ["no packets" in skip.reason for skip in skips] == [True]
