"""blocking-call-in-event-loop: an absence that kept others waiting, and those that did not."""

from __future__ import annotations

import numpy as np
import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.facts import PROCESS_FACT_DTYPE, Facts
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import EPOLLIN, START_NS, Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, peer, server

SLUG = "blocking-call-in-event-loop"
FOREVER = (1 << 64) - 1


def loop(*tids: int, clients: int = 3) -> Script:
    """An epoll loop with clients as fd 7, 8, …, and a socket to its database as fd 20."""
    script = server(*tids).seed_fd(100, 4, kind=FileKind.EPOLL).seed_fd(100, 20, inode=20)
    script.seed_epoll(100, 4, 3, EPOLLIN, inode=3)
    for number in range(clients):
        accept(script, number, 7 + number)
        script.event(100, 100, Call.epoll_ctl, 1, 7 + number, fd=4, epoll=[(EPOLLIN, 7 + number)])
    return script


def turn(script: Script, *fds: int, at: int, tid: int = 100, call: Call = Call.epoll_wait) -> None:
    """The wait returns, told of these."""
    script.event(100, tid, call, 0, 64, FOREVER, fd=4, ret=len(fds), epoll=[(EPOLLIN, fd) for fd in fds], at=at)


def comes(script: Script, number: int, *, at: int, count: int = 0) -> None:
    script.packet(peer(number), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1001 + count, ack=5001, payload=b"x", at=at)


def read(script: Script, fd: int, *, at: int, tid: int = 100) -> None:
    script.event(100, tid, Call.recvfrom, 0, 4096, fd=fd, ret=1, payload=b"x", at=at)


def stalled(script: Script, call: Call | None = Call.recvfrom, *, lasts: int = 800 * MS, fd: int = 20) -> Script:
    """Client 0 is served, for which the thread is away from 0.1 s on; clients 1 and 2 write 100 ms later."""
    for at in (60, 70, 80):
        turn(script, at=at * MS)
    comes(script, 0, at=90 * MS)
    turn(script, 7, at=100 * MS)
    read(script, 7, at=101 * MS)
    if call is not None:
        script.event(100, 100, call, 0, 100, fd=fd, ret=1, payload=b"r", at=102 * MS, took=lasts)
    comes(script, 1, at=200 * MS)
    comes(script, 2, at=210 * MS)
    back = 104 * MS + lasts
    script.event(100, 100, Call.sendto, 0, 1, fd=7, ret=1, payload=b"r", at=back)
    turn(script, 8, 9, at=back + MS)
    read(script, 8, at=back + 2 * MS)
    read(script, 9, at=back + 3 * MS)
    turn(script, at=back + 4 * MS)
    return script.ends(back + S)


def test_a_blocking_read_keeps_others_waiting(run: Run) -> None:
    (finding,) = run(stalled(loop()).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.fd) == (Severity.WARNING, Confidence.CERTAIN, 20)
    assert (finding.connections, finding.count) == ((1, 2), 2)
    assert "recvfrom(20) for 800.0 ms" in finding.explanation
    assert "one of them for 702.0 ms" in finding.explanation
    assert "fd 20 non-blocking" in finding.remedy


def test_no_call_at_all(run: Run) -> None:
    (finding,) = run(stalled(loop(), None, lasts=1200 * MS).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)
    assert (finding.fd, finding.count) == (None, 2)
    assert "no call that is seen" in finding.explanation


def test_less_than_a_second_without_calls_once_is_information(run: Run) -> None:
    (finding,) = run(stalled(loop(), None).session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO


def test_a_call_that_cannot_wait(run: Run) -> None:
    """It took long because the thread had no CPU."""
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL).seed_fd(100, 20, inode=20, nonblock=True)
    for number in range(3):
        accept(script, number, 7 + number)
        script.event(100, 100, Call.epoll_ctl, 1, 7 + number, fd=4, epoll=[(EPOLLIN, 7 + number)])
    assert not run(stalled(script).session(), SLUG, least=Severity.INFO)


def test_the_loop_waits_for_a_free_thread(run: Run) -> None:
    script = stalled(loop(100, 101, clients=4), None)
    script.event(100, 101, Call.sendto, 0, 1, fd=10, ret=1, payload=b"r", at=500 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_a_file_is_never_non_blocking(run: Run) -> None:
    script = loop().seed_fd(100, 30, kind=FileKind.OTHER)
    (finding,) = run(stalled(script, Call.pread64, fd=30).session(), SLUG)
    assert finding.remedy.startswith("Fd 30 is no socket")


def test_a_wait_for_a_child(run: Run) -> None:
    (finding,) = run(stalled(loop(), Call.wait4, fd=4242).session(), SLUG)
    assert "waiting for a child" in finding.explanation
    assert "pidfd" in finding.remedy


def test_many_calls_on_one_descriptor(run: Run) -> None:
    script = loop()
    stalled(script, None)
    for number in range(16):
        script.event(100, 100, Call.recvfrom, 0, 9, fd=20, ret=1, at=(102 + 50 * number) * MS, took=49 * MS)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert "16 calls on fd 20" in finding.explanation


def test_a_client_decides_how_long_it_lasts(run: Run) -> None:
    (finding,) = run(stalled(loop(), fd=7, lasts=1500 * MS).session(), SLUG)
    assert finding.severity is Severity.ERROR
    assert "blocked on its client 127.0.0.1:40000" in finding.explanation


def test_it_has_not_come_back(run: Run) -> None:
    script = loop()
    for at in (60, 70, 80):
        turn(script, at=at * MS)
    turn(script, 7, at=100 * MS)
    script.event(100, 100, Call.recvfrom, 0, 100, fd=20, at=101 * MS, flags=EventFlag.ENTERED_ONLY)
    comes(script, 1, at=200 * MS)
    (finding,) = run(script.ends(4 * S).session(), SLUG)
    assert finding.severity is Severity.ERROR
    assert finding.connections == (1,)
    assert "by the end of the session" in finding.explanation


def test_those_who_wait_to_be_accepted(run: Run) -> None:
    script = stalled(loop())
    newcomer = peer(9)
    script.handshake(newcomer, SERVER, at=300 * MS)
    script.event(100, 100, Call.accept4, fd=3, ret=12, sockaddr=newcomer, at=920 * MS)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert "(1 of them to be accepted)" in finding.explanation
    assert finding.count == 3


def test_a_snapshot_shows_who_waits(run: Run) -> None:
    script = stalled(loop())
    script._packets.clear()
    script.snapshot(at=400 * MS)
    script.socket_row(SERVER, peer(1), inode=80, recv_q=1, owners=[(100, 8)])
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert finding.connections == (1,)


@pytest.mark.parametrize("lasts", [250 * MS, 290 * MS])
def test_a_short_stall(run: Run, lasts: int) -> None:
    assert not run(stalled(loop(), lasts=lasts).session(), SLUG, least=Severity.INFO)


def test_a_short_time_without_calls(run: Run) -> None:
    assert not run(stalled(loop(), None, lasts=450 * MS).session(), SLUG, least=Severity.INFO)


def test_nobody_waited(run: Run) -> None:
    script = loop()
    for at in (60, 70, 80, 100):
        turn(script, at=at * MS)
    script.event(100, 100, Call.recvfrom, 0, 9, fd=20, ret=1, at=102 * MS, took=S)
    turn(script, at=1200 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_only_the_one_that_is_served_wrote_more(run: Run) -> None:
    script = loop()
    for at in (60, 70, 80):
        turn(script, at=at * MS)
    turn(script, 7, at=100 * MS)
    read(script, 7, at=101 * MS)
    script.event(100, 100, Call.recvfrom, 0, 9, fd=20, ret=1, at=102 * MS, took=S)
    comes(script, 0, at=300 * MS)
    turn(script, 7, at=1200 * MS)
    read(script, 7, at=1201 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_another_thread_takes_them_up(run: Run) -> None:
    script = stalled(loop(100, 101))
    read(script, 8, at=205 * MS, tid=101)
    read(script, 9, at=215 * MS, tid=101)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_another_thread_waits_on_the_same_epoll(run: Run) -> None:
    script = stalled(loop(100, 101))
    for at in range(90, 990, 100):
        script.event(100, 101, Call.epoll_wait, 0, 64, 100, fd=4, ret=0, at=at * MS, took=99 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_a_thread_that_serves_one_connection_polls_it_alone(run: Run) -> None:
    """A poll of one connection is no loop; the listener's poll of a server that serves one after the other neither."""
    script = loop(clients=2)
    for at in range(100, 2000, 500):
        script.event(100, 100, Call.poll, 0, 1, 5000, ret=1, poll=[(7, 1, 1)], at=at * MS)
    comes(script, 1, at=300 * MS)
    read(script, 8, at=1900 * MS)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_a_loop_of_poll_with_a_poll_of_its_own_inside(run: Run) -> None:
    script = server().seed_fd(100, 20, inode=20)
    for number in range(3):
        accept(script, number, 7 + number)

    def poll(at: int, *ready: int) -> None:
        fds = [(fd, 1, int(fd in ready)) for fd in (3, 7, 8, 9)]
        script.event(100, 100, Call.poll, 0, 4, FOREVER, ret=len(ready), poll=fds, at=at)

    for at in (60, 70, 80):
        poll(at * MS)
    poll(100 * MS, 7)
    read(script, 7, at=101 * MS)
    script.event(100, 100, Call.poll, 0, 1, 5000, ret=1, poll=[(20, 1, 1)], at=102 * MS, took=900 * MS)
    comes(script, 1, at=200 * MS)
    poll(1010 * MS, 8)
    read(script, 8, at=1011 * MS)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert "poll for 900.0 ms, a wait of its own for fd 20" in finding.explanation
    assert finding.connections == (1,)


def test_a_signal_to_stop(run: Run) -> None:
    script = stalled(loop())
    script.signal(100, 15, at=95 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def sampled(script: Script, state: bytes, used: int) -> Facts:
    rows = np.zeros(3, PROCESS_FACT_DTYPE)
    rows["time_ns"] = START_NS + np.array([0, 500 * MS, 1500 * MS])
    rows["tgid"] = 100
    rows["state"] = [b"S", state, b"S"]
    rows["cpu_ns"] = [0, used // 2, used]
    return Facts(processes=rows)


def test_processor_time_tells_computing(run: Run) -> None:
    script = stalled(loop(), None)
    session = script.session()
    session.facts = sampled(script, b"R", 780 * MS)
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert "most likely it computed" in finding.explanation
    assert "780.0 ms of processor time in the 1.50 s" in finding.explanation


def test_a_thread_that_is_not_given_a_cpu(run: Run) -> None:
    script = stalled(loop(), None)
    session = script.session()
    session.facts = sampled(script, b"R", 20 * MS)
    assert not run(session, SLUG, least=Severity.INFO)


def test_who_waited_cannot_be_known() -> None:
    script = loop()
    stalled(script)
    script._packets.clear()
    script._sockets.clear()
    script._snapshot = -1
    findings, skips, _ = run_rules(script.session(), select=[SLUG])
    assert not findings
    assert "neither packets nor socket states" in skips[0].reason


def test_those_in_the_accept_queue_have_one_cause() -> None:
    """A blocking read from a silent client: unaccepted-connection would say the same of the newcomers."""
    script = loop()
    for at in (60, 70, 80):
        turn(script, at=at * MS)
    turn(script, 7, at=100 * MS)
    read(script, 7, at=101 * MS)
    script.event(100, 100, Call.recvfrom, 0, 100, fd=7, at=102 * MS, flags=EventFlag.ENTERED_ONLY)
    script.handshake(peer(9), SERVER, at=200 * MS)
    for at in (500, 1000, 1500, 2000, 2500):
        script.snapshot(at=at * MS)
        script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, recv_q=1, send_q=64, owners=[(100, 3)])
        script.socket_row(SERVER, peer(9), cookie=59)
    findings, _, _ = run_rules(script.ends(2600 * MS).session(), select=[SLUG, "unaccepted-connection"])
    assert [(finding.rule, finding.severity) for finding in findings] == [(SLUG, Severity.ERROR)]
    assert "(1 of them to be accepted)" in findings[0].explanation
