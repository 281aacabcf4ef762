"""uneven-workers: found, the twin and natural skews silent, numbers in the text."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import EPOLLIN, Script
from tests.findings.conftest import SERVER, Run, peer

SLUG = "uneven-workers"
MS = 1_000_000
BLOCKED = EventFlag.ENTERED_ONLY


def workers(count: int = 2) -> Script:
    """Processes from 100 on that have one listener as fd 3 and an epoll each as fd 4."""
    script = Script(ports=(80,))
    for tgid in range(100, 100 + count):
        script.process(tgid).seed_fd(tgid, 3, inode=3, open_file=1).seed_fd(tgid, 4, kind=FileKind.EPOLL)
        script.seed_epoll(tgid, 4, 3, EPOLLIN, inode=3)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3)])
    return script


def come(script: Script, number: int, tgid: int, *, stay: bool = True) -> int:
    """A client is accepted; its descriptor."""
    fd = 10 + number
    script.handshake(peer(number), SERVER)
    script.event(tgid, tgid, Call.accept4, fd=3, ret=fd, sockaddr=peer(number))
    if not stay:
        script.event(tgid, tgid, Call.close, fd=fd)
    return fd


def rest(script: Script, tgid: int) -> None:
    """Waits from the beginning to the end."""
    now = script.now_ns
    script.event(tgid, tgid, Call.epoll_wait, 0, 64, 0xFFFFFFFF, fd=4, flags=BLOCKED, at=1)
    script.now_ns = now


def skewed(*, busy: int = 48, other: int = 2, work_ms: int = 0, stay: bool = True) -> Script:
    script = workers()
    fds = [come(script, number, 100, stay=stay) for number in range(busy)]
    for number in range(busy, busy + other):
        come(script, number, 101)
    if work_ms:
        for number in range(busy):
            script.packet(peer(number), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1001, ack=5001, payload=b"work\n")
        for number, fd in enumerate(fds):
            script.now_ns += work_ms * MS
            script.event(100, 100, Call.recvfrom, 0, 4096, fd=fd, ret=5, payload=b"work\n")
            script.event(100, 100, Call.sendto, 0, 5, fd=fd, ret=5, payload=b"done\n")
            script.packet(SERVER, peer(number), TcpFlag.PSH | TcpFlag.ACK, seq=5001, ack=1006, payload=b"done\n")
    rest(script, 101)
    return script


def test_clients_wait_while_a_worker_is_idle(run: Run) -> None:
    (finding,) = run(skewed(work_ms=8).session(), SLUG)
    assert finding.severity is Severity.WARNING
    assert (finding.tgid, finding.fd, finding.count) == (100, 3, 48)
    assert finding.title == "48 of 50 connections went to one of 2 workers"
    assert "of 48 requests lay unread for 50 ms and more" in finding.explanation
    assert "accepted 2" in finding.explanation
    assert finding.worst == max(finding.connections)
    assert "SO_REUSEPORT" in finding.remedy


def test_without_suffering_it_is_of_interest_only(run: Run) -> None:
    session = skewed().session()
    assert run(session, SLUG) == []
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert "Its clients did not wait for it so far" in finding.explanation


def test_low_load_goes_to_one_worker_rightly(run: Run) -> None:
    assert run(skewed(stay=False).session(), SLUG, least=Severity.INFO) == []


def test_a_fair_deal(run: Run) -> None:
    assert run(skewed(busy=26, other=24, work_ms=8).session(), SLUG, least=Severity.INFO) == []


def test_too_few_to_tell(run: Run) -> None:
    assert run(skewed(busy=30, other=0, work_ms=8).session(), SLUG, least=Severity.INFO) == []


def test_the_other_was_at_work_itself(run: Run) -> None:
    script = workers()
    fds = [come(script, number, 100) for number in range(48)]
    # In no wait: it computes, or is blocked in a call of its own.
    script.event(101, 101, Call.connect, fd=9, flags=BLOCKED, at=1)
    assert len(fds) == 48
    assert run(script.session(), SLUG, least=Severity.INFO) == []


def test_the_other_came_later(run: Run) -> None:
    script = workers(1)
    for number in range(24):
        come(script, number, 100)
    script.fork(100, 101)
    for number in range(24, 48):
        come(script, number, 100)
    script.event(101, 101, Call.epoll_wait, 0, 64, 0xFFFFFFFF, fd=4, flags=BLOCKED)
    assert run(script.session(), SLUG, least=Severity.INFO) == []


def test_one_process_alone(run: Run) -> None:
    script = workers(1)
    for number in range(48):
        come(script, number, 100)
    assert run(script.session(), SLUG, least=Severity.INFO) == []
