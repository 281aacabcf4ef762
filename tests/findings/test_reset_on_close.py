"""reset-on-close: closed with bytes unread, and the resets that are something else."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, answer, ask, leave, peer, server, told

SLUG = "reset-on-close"
RST = TcpFlag.RST | TcpFlag.ACK


def upload(script: Script, number: int = 0, *, rest: bytes = b"x" * 5000, linger: bool = False) -> None:
    """A request of which the first bytes are read; its rest has arrived too."""
    accept(script, number, 7 + number)
    if linger:
        script.event(100, 100, Call.setsockopt, 1, 13, fd=7 + number, option=b"\1\0\0\0\0\0\0\0")
    ask(script, number, 7 + number)
    script.packet(peer(number), SERVER, TcpFlag.ACK, seq=1007, ack=5001, payload=rest)


def close(script: Script, number: int = 0, *, flags: TcpFlag = RST) -> None:
    script.event(100, 100, Call.close, fd=7 + number)
    script.packet(SERVER, peer(number), flags, seq=5004, ack=6007)


def test_answered_and_closed_with_the_body_unread(run: Run) -> None:
    script = server()
    for number in range(2):
        upload(script, number)
        answer(script, 7 + number)
        close(script, number)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.CERTAIN, 2)
    assert "5006 bytes had arrived and 6 were read" in finding.explanation
    assert any("RST" in fact.text for fact in finding.evidence)


def test_nothing_written(run: Run) -> None:
    script = server()
    upload(script)
    close(script)
    session = script.ends(S).session()
    assert not run(session, SLUG)
    assert len(run(session, SLUG, least=Severity.INFO)) == 1


def test_written_long_ago(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    answer(script, 7)
    script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1007, ack=5001, payload=b"next", at=3 * S)
    close(script)
    assert not run(script.ends(4 * S).session(), SLUG)


def test_lingering_close(run: Run) -> None:
    script = server()
    upload(script)
    answer(script, 7)
    script.event(100, 100, Call.shutdown, 1, fd=7)
    script.packet(SERVER, peer(0), TcpFlag.FIN | TcpFlag.ACK, seq=5004, ack=6007)
    script.event(100, 100, Call.recvfrom, fd=7, ret=5000)
    leave(script, 0, sent=5006)
    told(script, 7)
    script.event(100, 100, Call.close, fd=7)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_so_linger_is_meant(run: Run) -> None:
    script = server()
    upload(script, linger=True)
    answer(script, 7)
    close(script)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_tls_close_notify(run: Run) -> None:
    script = server()
    upload(script, rest=b"\x15\x03\x03\x00\x1a" + bytes(26))
    answer(script, 7)
    close(script)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_data_after_the_close(run: Run) -> None:
    """The FIN went out; what comes later is answered by RST in any case."""
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    answer(script, 7)
    close(script, flags=TcpFlag.FIN | TcpFlag.ACK)
    script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1007, ack=5005, payload=b"late", at=30 * MS)
    script.packet(SERVER, peer(0), TcpFlag.RST, seq=5005)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_the_peer_reset_it(run: Run) -> None:
    script = server()
    upload(script)
    answer(script, 7)
    script.packet(peer(0), SERVER, TcpFlag.RST, seq=6007)
    close(script)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)
