"""slow-request: where the time of a late answer went."""

from __future__ import annotations

import pytest

from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Finding, Severity
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script, address
from tests.findings.conftest import MS, SERVER, Run, S, peer, server

SLUG = "slow-request"
GET = b"GET /report HTTP/1.1\r\nHost: a\r\n\r\n"
DATABASE = address("10.0.0.5", 5432)


def request(script: Script, number: int, *, at: int, took: int, queued: int = MS, payload: bytes = GET) -> None:
    """A connection, its request and the answer `took` after the read; another thread for each."""
    fd, tid = 10 + number, 1000 + number
    script.handshake(peer(number), SERVER, at=at)
    script.event(100, 100, Call.accept4, fd=3, ret=fd, sockaddr=peer(number), at=at + MS)
    script.thread(100, tid, at=at + 2 * MS)
    script.packet(peer(number), SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=payload, at=at + 3 * MS)
    script.event(100, tid, Call.recvfrom, fd=fd, ret=len(payload), payload=payload, at=at + 3 * MS + queued)
    script.event(100, tid, Call.sendto, fd=fd, ret=9, payload=b"HTTP/1.1 ", at=at + 3 * MS + queued + took)


def quick(script: Script, count: int = 12) -> None:
    for number in range(count):
        request(script, number, at=(100 + 10 * number) * MS, took=MS)


def ask_database(script: Script, tid: int, *, at: int, took: int) -> None:
    """Blocked in connect for a moment and in a read for the rest."""
    script.event(100, tid, Call.socket, 2, 1, ret=90, at=at)
    script.event(100, tid, Call.connect, 0, 16, fd=90, sockaddr=DATABASE, at=at + MS)
    script.event(100, tid, Call.sendto, fd=90, ret=20, at=at + 3 * MS)
    script.event(100, tid, Call.recvfrom, fd=90, ret=50, at=at + 4 * MS, took=took - 6 * MS)


def findings(session: Session) -> list[Finding]:
    found, skips, _ = run_rules(session, select=[SLUG])
    assert not skips
    return found


def test_a_thread_that_waits_for_a_service(run: Run) -> None:
    script = server()
    quick(script)
    request(script, 50, at=S, took=1500 * MS)
    ask_database(script, 1050, at=S + 5 * MS, took=1490 * MS)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.count, finding.fd, finding.tgid) == (Severity.WARNING, 1, 60, 100)
    assert "1.50 s in the program" in finding.explanation
    assert "recvfrom(90) for 1.48 s, waiting for 10.0.0.5:5432" in finding.explanation
    assert "GET /report" in finding.explanation
    assert "median of the server's 13 requests is 2.0 ms" in finding.explanation
    assert "10.0.0.5:5432" in finding.remedy


def test_a_poll_with_a_time_limit_waits_for_the_service_too(run: Run) -> None:
    script = server()
    quick(script)
    request(script, 50, at=S, took=1500 * MS)
    script.event(100, 1050, Call.socket, 2, 1, ret=90, at=S + 5 * MS)
    script.event(100, 1050, Call.connect, 0, 16, fd=90, sockaddr=DATABASE, at=S + 6 * MS)
    script.event(100, 1050, Call.poll, 0, 1, 5000, ret=1, poll=[(90, 1, 1)], at=S + 8 * MS, took=1480 * MS)
    script.event(100, 1050, Call.recvfrom, fd=90, ret=50, at=S + 1490 * MS)
    (finding,) = run(script.session(), SLUG)
    assert "waiting for 10.0.0.5:5432" in finding.explanation


def test_a_request_that_lay_unread(run: Run) -> None:
    script = server()
    quick(script)
    request(script, 50, at=S, took=MS, queued=2 * S)
    (finding,) = run(script.session(), SLUG)
    assert "unread in the socket's queue" in finding.title
    assert "2.00 s in the socket's queue" in finding.explanation


def test_what_the_program_does_on_its_own_is_information_and_one_line() -> None:
    script = server()
    quick(script)
    for number in range(50, 53):
        request(script, number, at=number * 5 * S, took=2500 * MS)
    script.event(100, 1050, Call.epoll_wait, 0, 64, 5000, fd=4, ret=1, at=250 * S + 5 * MS, took=2400 * MS)
    (finding,) = findings(script.session())
    assert finding.severity is Severity.INFO
    assert finding.count == 3


def test_another_protocol_is_information() -> None:
    """A tunnel, a blocking pop: nobody says that an answer is due at once."""
    script = server()
    quick(script)
    request(script, 50, at=S, took=2500 * MS, payload=b"*3\r\n$5\r\nBLPOP\r\n")
    ask_database(script, 1050, at=S + 5 * MS, took=2490 * MS)
    (finding,) = findings(script.session())
    assert finding.severity is Severity.INFO


@pytest.mark.parametrize(
    ("others", "took"), [(12, 900 * MS), (5, 1500 * MS)], ids=["not long enough", "too few to compare with"]
)
def test_silent(others: int, took: int) -> None:
    script = server()
    quick(script, others)
    request(script, 50, at=S, took=took)
    ask_database(script, 1050, at=S + 5 * MS, took=took - 10 * MS)
    assert findings(script.session()) == []


def test_silent_where_all_take_a_moment() -> None:
    """1.5 s is not ten times 200 ms."""
    script = server()
    for number in range(12):
        request(script, number, at=(1 + number) * S, took=200 * MS)
    request(script, 50, at=20 * S, took=1500 * MS)
    ask_database(script, 1050, at=20 * S + 5 * MS, took=1490 * MS)
    assert findings(script.session()) == []


def test_all_slow_is_information() -> None:
    script = server()
    for number in range(12):
        request(script, number, at=(1 + 2 * number) * S, took=1200 * MS)
        ask_database(script, 1000 + number, at=(1 + 2 * number) * S + 5 * MS, took=1190 * MS)
    (finding,) = findings(script.session())
    assert finding.severity is Severity.INFO
    assert "That is the rule here: the median of 12 requests is 1.20 s" in finding.explanation


def test_a_streamed_answer_is_not_late() -> None:
    script = server()
    quick(script)
    request(script, 50, at=S, took=MS)
    for turn in range(5):
        script.event(100, 1050, Call.sendto, fd=60, ret=9, at=(2 + turn) * S)
    assert findings(script.session()) == []


def test_a_slow_upload_is_not_the_servers() -> None:
    script = server()
    quick(script)
    script.handshake(peer(50), SERVER, at=S)
    script.event(100, 100, Call.accept4, fd=3, ret=60, sockaddr=peer(50), at=S + MS)
    for turn in range(3):
        at = S + 10 * MS + turn * S
        script.packet(peer(50), SERVER, TcpFlag.ACK, seq=1001 + 34 * turn, ack=5001, payload=b"x" * 34, at=at)
        script.event(100, 100, Call.recvfrom, fd=60, ret=34, payload=GET if not turn else b"x", at=at + MS)
    script.event(100, 100, Call.sendto, fd=60, ret=9, at=3 * S + 20 * MS)
    assert findings(script.session()) == []


def test_a_request_sent_ahead_waits_for_the_answer_before() -> None:
    script = server()
    quick(script)
    script.handshake(peer(50), SERVER, at=S)
    script.event(100, 100, Call.accept4, fd=3, ret=60, sockaddr=peer(50), at=S + MS)
    script.packet(peer(50), SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=GET * 4, at=S + 2 * MS)
    for turn in range(4):
        at = S + 3 * MS + turn * 800 * MS
        script.event(100, 100, Call.recvfrom, fd=60, ret=len(GET), payload=GET, at=at)
        script.event(100, 100, Call.sendto, fd=60, ret=9, at=at + 790 * MS)
    assert findings(script.session()) == []


def test_a_call_that_never_returned_has_no_answer() -> None:
    script = server()
    quick(script)
    script.handshake(peer(50), SERVER, at=S)
    script.event(100, 100, Call.accept4, fd=3, ret=60, sockaddr=peer(50), at=S + MS)
    script.event(100, 100, Call.recvfrom, fd=60, ret=34, payload=GET, at=S + 2 * MS)
    script.event(100, 100, Call.recvfrom, fd=60, at=S + 3 * MS, flags=EventFlag.ENTERED_ONLY)
    assert findings(script.session()) == []


def test_what_the_program_does_on_its_own_for_a_moment_is_not_worth_a_line() -> None:
    script = server()
    quick(script)
    request(script, 50, at=S, took=1500 * MS)
    assert findings(script.session()) == []


def test_a_slow_machine_is_nobodys_fault() -> None:
    """A close took 400 ms, or our own snapshots came 1.4 s apart."""
    script = server()
    quick(script)
    request(script, 50, at=S, took=1500 * MS)
    ask_database(script, 1050, at=S + 5 * MS, took=1490 * MS)
    script.event(100, 100, Call.close, fd=99, ret=-9, at=S + 100 * MS, took=400 * MS)
    assert findings(script.session()) == []
    script = server()
    quick(script)
    request(script, 50, at=S, took=1500 * MS)
    ask_database(script, 1050, at=S + 5 * MS, took=1490 * MS)
    for at in (250 * MS, 500 * MS, 750 * MS, 1000 * MS, 2400 * MS):
        script.snapshot(at=at)
        script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3)])
    assert findings(script.session()) == []
