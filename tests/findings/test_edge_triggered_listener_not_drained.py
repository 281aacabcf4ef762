"""edge-triggered-listener-not-drained: seen from the registration, and known from fdinfo."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpState
from tests.analysis.builders import EPOLLET, EPOLLIN, Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, peer, server

SLUG = "edge-triggered-listener-not-drained"


def shown(script: Script, *numbers: int, at: int, state: TcpState = TcpState.ESTABLISHED) -> None:
    script.snapshot(at=at)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, recv_q=len(numbers), send_q=64, owners=[(100, 3)])
    for number in numbers:
        script.socket_row(SERVER, peer(number), state, cookie=50 + number)


def seeded(events: int = EPOLLIN | EPOLLET) -> Script:
    """A server that registered its listener before the attach."""
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL)
    return script.seed_epoll(100, 4, 3, events, inode=3)


def later(script: Script, *numbers: int) -> Script:
    """They wait from 0.5 s on, to the end."""
    for at in (500, 1000, 1500, 2000):
        shown(script, *numbers, at=at * MS)
    return script.ends(2100 * MS)


def woken(script: Script, number: int, fd: int, *, at: int, drained: bool = False) -> None:
    """One event, one accept; a second one that finds nothing, where drained."""
    script.event(100, 100, Call.epoll_wait, 0, 64, fd=4, ret=1, epoll=[(EPOLLIN, 3)], at=at)
    accept(script, number, fd, at=at + MS)
    if drained:
        script.event(100, 100, Call.accept4, fd=3, ret=-11)


def waits(script: Script, *, at: int) -> None:
    script.event(100, 100, Call.epoll_wait, 0, 64, (1 << 64) - 1, fd=4, at=at, flags=EventFlag.ENTERED_ONLY)


def test_one_accept_a_wake_up(run: Run) -> None:
    script = seeded()
    woken(script, 0, 7, at=100 * MS)
    waits(script, at=200 * MS)
    (finding,) = run(later(script, 1, 2, 3).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 3)
    assert finding.fd == 3
    assert "before watching began" in finding.explanation


def test_registration_witnessed(run: Run) -> None:
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL)
    script.event(100, 100, Call.epoll_ctl, 1, 3, fd=4, epoll=[(EPOLLIN | EPOLLET, 3)])
    woken(script, 0, 7, at=100 * MS)
    waits(script, at=200 * MS)
    (finding,) = run(later(script, 1).session(), SLUG)
    assert any("EPOLL_CTL_ADD" in fact.text for fact in finding.evidence)


def test_never_woken_in_the_session(run: Run) -> None:
    """The clients came, and left, before the attach; nothing wakes the loop any more."""
    script = seeded()
    for at in (500, 1000, 1600):
        shown(script, 1, 2, at=at * MS, state=TcpState.CLOSE_WAIT)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert finding.confidence is Confidence.LIKELY
    assert "2 of the clients gave up" in finding.explanation


def test_level_triggered_is_another_fault(run: Run) -> None:
    script = seeded(EPOLLIN)
    woken(script, 0, 7, at=100 * MS)
    waits(script, at=200 * MS)
    assert not run(later(script, 1).session(), SLUG)


def test_drained_after_they_came(run: Run) -> None:
    script = seeded()
    for at in (500, 1000, 1500, 2000):
        shown(script, 1, at=at * MS)
    woken(script, 0, 7, at=2010 * MS, drained=True)
    waits(script, at=2050 * MS)
    assert not run(script.ends(2100 * MS).session(), SLUG)


def test_busy_elsewhere(run: Run) -> None:
    """It does not come back to epoll_wait: not the edge is lost, the thread is."""
    script = seeded()
    woken(script, 0, 7, at=100 * MS)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, at=200 * MS, flags=EventFlag.ENTERED_ONLY)
    assert not run(later(script, 1).session(), SLUG)


def test_woken_and_still_at_work(run: Run) -> None:
    """The wait that told of them has returned; other events of the same batch come first."""
    script = seeded()
    for at in (500, 1000, 1500, 2000):
        shown(script, 1, at=at * MS)
    script.event(100, 100, Call.epoll_wait, 0, 64, fd=4, ret=2, epoll=[(EPOLLIN, 9), (EPOLLIN, 3)], at=510 * MS)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=9, ret=5)
    assert not run(script.ends(2100 * MS).session(), SLUG)


def test_a_registration_for_one_event_reports_again_when_renewed(run: Run) -> None:
    script = seeded(EPOLLIN | EPOLLET | 1 << 30)
    woken(script, 0, 7, at=100 * MS)
    waits(script, at=200 * MS)
    assert not run(later(script, 1, 2).session(), SLUG)
