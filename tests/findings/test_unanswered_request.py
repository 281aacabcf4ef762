"""unanswered-request: read, and closed without a byte; told from clients that left."""

from __future__ import annotations

import pytest

from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Finding, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import EPOLLET, EPOLLIN, Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, answer, ask, leave, peer, server

SLUG = "unanswered-request"
GET = b"GET /plums HTTP/1.1\r\nHost: a\r\n\r\n"


def close(script: Script, number: int, fd: int, *, after: int = MS) -> None:
    """The program closes; our FIN goes out."""
    script.event(100, 100, Call.close, fd=fd, at=script.now_ns + after)
    script.packet(SERVER, peer(number), TcpFlag.FIN | TcpFlag.ACK, seq=5001, ack=1001)


def dropped(number: int = 0, payload: bytes = GET, *, script: Script | None = None, after: int = MS) -> Script:
    script = script or server()
    accept(script, number, 7)
    ask(script, number, 7, payload)
    close(script, number, 7, after=after)
    return script


def answered(script: Script, count: int, payload: bytes = GET) -> Script:
    for number in range(100, 100 + count):
        accept(script, number, 8)
        ask(script, number, 8, payload)
        answer(script, 8)
        script.event(100, 100, Call.close, fd=8)
    return script


def findings(session: Session) -> list[Finding]:
    found, skips, _ = run_rules(session, select=[SLUG])
    assert not skips
    return found


def test_a_handler_that_fails_and_says_nothing(run: Run) -> None:
    script = answered(server(), 2)
    for number in range(3):
        dropped(number, script=script)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.CERTAIN)
    assert (finding.count, len(finding.connections), finding.fd) == (3, 3, 7)
    assert "read GET /plums" in finding.explanation
    assert "2 other connections of this server got answers" in finding.explanation
    assert "close(7)" in finding.remedy


def test_a_process_that_ends_with_a_request_in_hand(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, GET)
    script.exit(100, status=11)
    (finding,) = run(script.session(), SLUG)
    assert "ended with the connection open" in finding.explanation
    assert "exit status" in finding.remedy


def test_a_worker_that_is_replaced_is_of_interest_only() -> None:
    """Apache's graceful restart tells its children by a pipe, and may cut one whose request has just been read."""
    script = answered(server(), 2)
    dropped(0, script=script)
    script.exit(100)
    (finding,) = findings(script.session())
    assert finding.severity is Severity.INFO
    assert "on its way out" in finding.explanation


def test_a_second_request_on_the_connection(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, GET)
    answer(script, 7)
    script.event(100, 100, Call.recvfrom, fd=7, ret=len(GET), payload=GET)
    close(script, 0, 7)
    (finding,) = run(script.session(), SLUG)
    assert finding.count == 1


def test_a_client_that_left_first_waits_for_nothing() -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, GET)
    leave(script, 0, sent=len(GET))
    close(script, 0, 7)
    assert findings(script.session()) == []


def test_a_client_that_was_read_to_its_end_waits_for_nothing() -> None:
    script = Script(ports=(80,)).process(100).seed_fd(100, 3, inode=3)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer(0))
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, ret=len(GET), payload=GET)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, ret=0)
    script.event(100, 100, Call.close, fd=7)
    assert findings(script.session()) == []


def test_an_answer_that_was_refused_is_the_clients_doing() -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, GET)
    script.event(100, 100, Call.sendto, fd=7, ret=-32)
    close(script, 0, 7)
    assert findings(script.session()) == []


def test_an_answer_that_only_the_wire_shows() -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, GET)
    script.packet(SERVER, peer(0), TcpFlag.ACK, seq=5001, ack=1001 + len(GET), payload=b"HTTP/1.1 200")
    close(script, 0, 7)
    assert findings(script.session()) == []


def test_a_server_that_was_told_to_stop() -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, GET)
    script.signal(100, 15)
    close(script, 0, 7)
    assert findings(script.session()) == []


@pytest.mark.parametrize(
    ("payload", "after"), [(b"GET /pl", MS), (b"POST /up HTTP/1.1\r\n", 5 * S)], ids=["half a head", "a time limit"]
)
def test_requests_that_never_ended(payload: bytes, after: int) -> None:
    assert findings(dropped(payload=payload, after=after).session()) == []


def test_what_is_still_worked_on() -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7, GET)
    assert findings(script.session()) == []


def test_another_protocol_is_information_where_all_others_get_answers() -> None:
    script = answered(server(), 12, b"\x01hello")
    dropped(script=script, payload=b"\x01broken")
    (finding,) = findings(script.session())
    assert finding.severity is Severity.INFO


@pytest.mark.parametrize("others", [0, 5])
def test_one_way_protocols(others: int) -> None:
    """Metrics, logs: nobody waits for an answer."""
    script = answered(server(), others, b"\x01hello")
    for number in range(5):
        dropped(number, b"metric 1\n", script=script)
    assert findings(script.session()) == []


def test_a_farewell_is_no_request() -> None:
    """`quit` is the last thing said on a connection that got its answers."""
    script = answered(server(), 12, b"\x01hello")
    accept(script, 0, 7)
    ask(script, 0, 7, b"stats\r\n")
    answer(script, 7)
    script.event(100, 100, Call.recvfrom, fd=7, ret=6, payload=b"quit\r\n")
    close(script, 0, 7)
    assert findings(script.session()) == []


@pytest.mark.parametrize("fd", [7, 1027])
def test_a_set_that_is_too_small_is_why(fd: int) -> None:
    """Sets that overlap: what select says of that connection is not worth anything."""
    script = server()
    accept(script, 0, fd)
    for _ in range(2):
        script.event(100, 100, Call.select, fd + 1, 0x7FFD_0000_1000, 0x7FFD_0000_1080, 0, 0, ret=1)
    ask(script, 0, fd, GET)
    close(script, 0, fd)
    assert bool(findings(script.session())) == (fd < 1024)


@pytest.mark.parametrize("events", [EPOLLIN, EPOLLIN | EPOLLET])
def test_a_rest_that_was_not_read_is_why(events: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: " + b"a" * 80
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL)
    accept(script, 0, 7)
    script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(events, 7)])
    script.packet(peer(0), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1001, ack=5001, payload=head + b"a" * 50, at=100 * MS)
    script.event(100, 100, Call.epoll_wait, 0, 64, -1, fd=4, ret=1, epoll=[(EPOLLIN, 7)], at=101 * MS)
    script.event(100, 100, Call.recvfrom, 0, 102, fd=7, ret=102, payload=head, at=102 * MS)
    last = b"\r\n\r\n"
    script.packet(peer(0), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1153, ack=5001, payload=last, at=800 * MS)
    script.event(100, 100, Call.epoll_wait, 0, 64, -1, fd=4, ret=1, epoll=[(1, 7)], at=104 * MS, took=697 * MS)
    script.event(100, 100, Call.recvfrom, 0, 102, fd=7, ret=54, payload=b"a" * 50 + last, at=802 * MS)
    close(script, 0, 7)
    assert bool(findings(script.session())) == (events == EPOLLIN)
