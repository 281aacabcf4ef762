"""accept-stall: a queue that did not move, told from one that moved slowly."""

from __future__ import annotations

from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.descriptors import How
from sockscope.model.findings import Finding, Severity
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script, address
from tests.findings.conftest import MS, SERVER, Run, S, peer, server

SLUG = "accept-stall"


def arrive(script: Script, number: int, *, at: int, asks: bool = True) -> None:
    script.handshake(peer(number), SERVER, at=at)
    if asks:
        script.packet(peer(number), SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"hello\n", at=at + MS)


def take(script: Script, number: int, fd: int, *, at: int, tid: int = 100, reads: bool = True) -> None:
    script.event(100, tid, Call.accept4, fd=3, ret=fd, sockaddr=peer(number), at=at, took=MS // 10)
    if reads:
        script.event(100, tid, Call.recvfrom, fd=fd, ret=6, payload=b"hello\n", at=at + MS // 4, took=MS // 10)
        script.event(100, tid, Call.sendto, fd=fd, ret=3, payload=b"ok\n", at=at + MS // 2, took=MS // 10)


def one_at_a_time(*, late: int = 5, silent: int = 1800 * MS) -> Script:
    """The first client is served until it goes; `late` others come meanwhile."""
    script = server()
    arrive(script, 0, at=100 * MS)
    take(script, 0, 7, at=110 * MS)
    for number in range(1, late + 1):
        arrive(script, number, at=(200 + number) * MS)
    script.event(100, 100, Call.recvfrom, fd=7, ret=0, at=112 * MS, took=silent)
    script.event(100, 100, Call.close, fd=7, at=113 * MS + silent)
    for number in range(1, late + 1):
        take(script, number, 7, at=115 * MS + silent + number * 10 * MS)
        script.event(100, 100, Call.close, fd=7, at=120 * MS + silent + number * 10 * MS)
    return script


def findings(session: Session) -> list[Finding]:
    found, skips, _ = run_rules(session, select=[SLUG])
    assert not skips
    return found


def test_a_client_that_is_silent_keeps_the_others_out(run: Run) -> None:
    (finding,) = run(one_at_a_time().session(), SLUG)
    assert (finding.severity, finding.count, finding.fd, finding.tgid) == (Severity.WARNING, 5, 3, 100)
    assert len(finding.connections) == 5
    assert "nothing was accepted for 1.72 s" in finding.explanation
    assert "recvfrom(7) for 1.71 s, blocked on the client 127.0.0.1:40000" in finding.explanation
    assert "fd 3" in finding.remedy
    assert any("accept before" in fact.text for fact in finding.evidence)


def test_a_short_stall_is_none() -> None:
    assert findings(one_at_a_time(silent=900 * MS).session()) == []


def test_a_crowd_that_is_taken_one_by_one_is_no_stall() -> None:
    """The last of forty waits for 2 s, but the queue moves all the time."""
    script = server()
    take_at = 120 * MS
    for number in range(40):
        arrive(script, number, at=(100 * MS + number * MS // 10))
    for number in range(40):
        take(script, number, 7, at=take_at + number * 50 * MS)
        script.event(100, 100, Call.close, fd=7, at=take_at + number * 50 * MS + 49 * MS)
    assert findings(script.session()) == []


def test_an_empty_queue_in_between_is_no_stall() -> None:
    """An accept that failed with EAGAIN after the handshake: it was another's turn to come."""
    script = one_at_a_time(late=1)
    script.event(100, 101, Call.accept4, fd=3, ret=-11, at=1200 * MS)
    assert findings(script.session()) == []


def test_a_pool_at_its_limit_is_information() -> None:
    script = one_at_a_time(silent=2800 * MS)
    script.thread(100, 101, at=50 * MS)
    take(script, 20, 30, at=60 * MS, tid=101)
    (finding,) = findings(script.session())
    assert finding.severity is Severity.INFO
    assert "2 threads accept there" in finding.explanation


def test_a_thread_of_which_nothing_is_seen_is_information() -> None:
    script = server()
    arrive(script, 0, at=100 * MS)
    take(script, 0, 7, at=110 * MS)
    arrive(script, 1, at=200 * MS)
    take(script, 1, 8, at=3 * S)
    (finding,) = findings(script.session())
    assert finding.severity is Severity.INFO
    assert "made no call that is seen" in finding.explanation


def test_starting_is_no_stall() -> None:
    """It listens, loads for two seconds, and only then begins to accept."""
    script = Script(ports=(80,)).process(100)
    script.event(100, 100, Call.socket, 2, 1, ret=3, at=10 * MS)
    script.event(100, 100, Call.bind, fd=3, sockaddr=SERVER, at=11 * MS)
    script.event(100, 100, Call.listen, 16, fd=3, at=12 * MS)
    arrive(script, 0, at=100 * MS)
    script.event(100, 100, Call.recvfrom, fd=9, ret=5, at=101 * MS, took=1900 * MS)
    take(script, 0, 7, at=2100 * MS)
    session = script.session()
    assert session.exchanges["accept_ns"].max() - session.exchanges["established_ns"].max() > S
    assert findings(session) == []


def test_a_deferred_accept_waits_for_the_request() -> None:
    script = server()
    for number in range(3):
        arrive(script, number, at=(100 + number) * MS, asks=False)
        at = (2000 + 10 * number) * MS
        script.packet(peer(number), SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"hello\n", at=at)
        take(script, number, 7 + number, at=at + MS)
    assert findings(script.session()) == []


def test_the_kernels_word_does_where_no_packets_are(run: Run) -> None:
    script = server()
    script.states(SERVER, peer(0), TcpState.SYN_RECV, TcpState.ESTABLISHED, at=100 * MS)
    take(script, 0, 7, at=110 * MS)
    script.states(SERVER, peer(1), TcpState.SYN_RECV, TcpState.ESTABLISHED, at=200 * MS)
    script.event(100, 100, Call.recvfrom, fd=7, ret=0, at=112 * MS, took=1800 * MS)
    take(script, 1, 8, at=1920 * MS)
    (finding,) = run(script.session(), SLUG)
    assert finding.count == 1
    assert any("SYN_RECV" in fact.text for fact in finding.evidence)


def test_without_the_handshakes_it_cannot_judge() -> None:
    script = server()
    take(script, 0, 7, at=110 * MS)
    _, skips, _ = run_rules(script.session(), select=[SLUG])
    assert ["handshakes" in skip.reason for skip in skips] == [True]


def test_a_service_asked_by_the_accepting_thread(run: Run) -> None:
    script = server()
    arrive(script, 0, at=100 * MS)
    take(script, 0, 7, at=110 * MS)
    script.event(100, 100, Call.socket, 2, 1, ret=9, at=120 * MS)
    script.event(100, 100, Call.connect, 0, 16, fd=9, sockaddr=address("10.0.0.5", 53), at=121 * MS, took=1500 * MS)
    arrive(script, 1, at=200 * MS)
    take(script, 1, 8, at=1700 * MS)
    session = script.session()
    assert session.descriptors[-1].how is How.ACCEPT
    (finding,) = run(session, SLUG)
    assert "connecting to 10.0.0.5:53" in finding.explanation
    assert "Take connect out of the thread" in finding.remedy


def test_what_the_program_does_on_its_own_for_a_moment_is_not_worth_a_line() -> None:
    script = server()
    arrive(script, 0, at=100 * MS)
    take(script, 0, 7, at=110 * MS)
    arrive(script, 1, at=200 * MS)
    take(script, 1, 8, at=1900 * MS)
    assert findings(script.session()) == []


def test_a_slow_machine_is_nobodys_fault() -> None:
    script = one_at_a_time()
    script.event(100, 102, Call.clone3, ret=103, at=300 * MS, took=500 * MS)
    assert findings(script.session()) == []
