"""abrupt-shutdown: who was still waiting when SIGTERM ended the server."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, answer, ask, peer, server

SLUG = "abrupt-shutdown"
SIGTERM = 15
REQUEST = b"GET /slow HTTP/1.1\r\n\r\n"


def busy() -> Script:
    """One client has its answer and stays; two have asked."""
    script = server()
    for number in range(3):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number, REQUEST)
    answer(script, 7)
    return script


def stop(script: Script, *, at: int = S, status: int = SIGTERM) -> None:
    script.signal(100, SIGTERM, at=at)
    script.exit(100, status=status)


def test_killed_in_the_middle(run: Run) -> None:
    script = busy()
    stop(script)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 2)
    assert set(finding.connections) == {1, 2}
    assert "was killed by it" in finding.explanation
    assert finding.evidence[0].text.startswith("server[100] SIGTERM")


def test_a_handler_that_just_closes(run: Run) -> None:
    script = busy()
    script.signal(100, SIGTERM, at=S)
    for fd in (7, 8, 9):
        script.event(100, 100, Call.close, fd=fd)
    script.exit(100)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert finding.count == 2
    assert "exited with status 0" in finding.explanation


def test_answers_first(run: Run) -> None:
    script = busy()
    script.signal(100, SIGTERM, at=S)
    for fd in (8, 9):
        answer(script, fd)
    script.exit(100, at=S + 300 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_idle_connections_may_be_cut(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, REQUEST)
    answer(script, 7)
    accept(script, 1, 8)
    stop(script)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_a_collector_never_answers(run: Run) -> None:
    script = server()
    for number in range(2):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number, b"<13>a line\n")
    stop(script)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_ends_by_itself(run: Run) -> None:
    script = busy()
    script.exit(100, at=S)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_its_own_sigterm_stops_nothing(run: Run) -> None:
    """Apache's event MPM: a thread that ends wakes the process by it."""
    script = busy()
    script.signal(100, SIGTERM, si_pid=100, at=S)
    script.exit(100, status=0)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_a_lingering_close_reads_away(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, REQUEST)
    answer(script, 7)
    script.event(100, 100, Call.shutdown, 1, fd=7)
    ask(script, 0, 7, REQUEST)
    stop(script, status=0)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_closed_before_the_signal(run: Run) -> None:
    script = busy()
    for fd in (8, 9):
        script.event(100, 100, Call.close, fd=fd)
    script.signal(100, SIGTERM)
    script.exit(100, status=0)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_arrived_and_not_read(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"hello")
    stop(script)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert finding.severity is Severity.WARNING
    assert "never read" in finding.explanation


def test_arrived_too_late(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"hello", at=S - 20 * MS)
    stop(script)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_children_that_stay_are_only_interesting(run: Run) -> None:
    script = server()
    script.fork(100, 200)
    stop(script)
    session = script.ends(2 * S).session()
    assert not run(session, SLUG)
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert "server[200]" in finding.explanation


def test_a_blocking_pop_and_a_proper_exit(run: Run) -> None:
    script = server()
    for number in range(2):
        accept(script, number, 7 + number)
        ask(script, number, 7 + number, b"BLPOP k 0\r\n")
    answer(script, 7)
    stop(script, status=0)
    session = script.ends(2 * S).session()
    assert not run(session, SLUG)
    assert len(run(session, SLUG, least=Severity.INFO)) == 1


def test_a_request_read_in_pieces(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, b"POST / HTTP/1.1\r\n")
    ask(script, 0, 7, b"\r\nbody")
    stop(script, status=0)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert finding.severity is Severity.ERROR
