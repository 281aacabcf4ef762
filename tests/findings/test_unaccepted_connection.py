"""unaccepted-connection: who waits in the accept queue, and for what."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpState
from tests.analysis.builders import Script, address
from tests.findings.conftest import MS, SERVER, Run, S, accept, ask, peer, server

SLUG = "unaccepted-connection"


def shown(script: Script, *numbers: int, at: int, state: TcpState = TcpState.ESTABLISHED) -> None:
    """A snapshot: the listener, and clients nobody has accepted."""
    script.snapshot(at=at)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, recv_q=len(numbers), send_q=16, owners=[(100, 3)])
    for number in numbers:
        script.socket_row(SERVER, peer(number), state, cookie=50 + number)


def stuck() -> Script:
    """The only thread reads from one client, two others wait from 1 s on."""
    script = server()
    accept(script, 0, 7, at=100 * MS)
    ask(script, 0, 7)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, at=200 * MS, flags=EventFlag.ENTERED_ONLY)
    return script


def test_locked_out_by_an_idle_client(run: Run) -> None:
    script = stuck()
    for at in (1000, 1500, 2000, 2500):
        shown(script, 1, 2, at=at * MS)
    (finding,) = run(script.ends(2600 * MS).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 2)
    assert (finding.tgid, finding.fd) == (100, 3)
    assert "recvfrom(7)" in finding.explanation
    assert "backlog is 16" in finding.explanation


def test_clients_that_gave_up_are_counted(run: Run) -> None:
    script = stuck()
    for at in (1000, 1500, 2500):
        shown(script, 1, at=at * MS, state=TcpState.CLOSE_WAIT)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert "1 of their clients gave up" in finding.explanation


def test_a_queue_that_is_filled_for_a_moment_is_health(run: Run) -> None:
    script = stuck()
    shown(script, 1, at=1000 * MS)
    shown(script, 1, at=1500 * MS)
    shown(script, 2, at=2000 * MS)
    shown(script, 2, 3, at=2500 * MS)
    assert not run(script.ends(2600 * MS).session(), SLUG)


def test_one_snapshot_and_the_handshake(run: Run) -> None:
    """A loaded machine takes few snapshots: the wire says since when it waits."""
    script = stuck()
    script.handshake(peer(1), SERVER, at=500 * MS)
    shown(script, 1, at=2500 * MS)
    (finding,) = run(script.ends(2600 * MS).session(), SLUG)
    assert "2.00 s" in finding.title


def test_one_snapshot_alone_says_nothing(run: Run) -> None:
    script = stuck()
    shown(script, 1, at=2500 * MS)
    assert not run(script.ends(2600 * MS).session(), SLUG, least=Severity.INFO)


def test_accepted_before_the_end(run: Run) -> None:
    script = stuck()
    for at in (1000, 1500, 2500):
        shown(script, 1, at=at * MS)
    shown(script, at=3000 * MS)
    assert not run(script.ends(4 * S).session(), SLUG)


@pytest.mark.parametrize(("until_s", "severity"), [(2, Severity.INFO), (5, Severity.WARNING)])
def test_slow_but_accepting(run: Run, until_s: int, severity: Severity) -> None:
    script = server()
    for number in range(2 * until_s):
        shown(script, 99, at=1000 * MS + number * 500 * MS)
        accept(script, number, number + 10, at=1000 * MS + number * 500 * MS + MS)
    (finding,) = run(script.ends((until_s + 2) * S).session(), SLUG, least=Severity.INFO)
    assert finding.severity is severity
    assert "slower than they come" in finding.explanation


def test_waiting_for_a_database_is_work(run: Run) -> None:
    script = server()
    accept(script, 0, 7, at=100 * MS)
    script.event(100, 100, Call.socket, 2, 1, ret=8)
    script.event(100, 100, Call.connect, fd=8, sockaddr=address("10.0.0.2", 5432))
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=8, at=200 * MS, flags=EventFlag.ENTERED_ONLY)
    for at in (1000, 1500, 2500):
        shown(script, 1, at=at * MS)
    (finding,) = run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO


def test_explained_by_edge_triggering(run: Run) -> None:
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL).seed_epoll(100, 4, 3, 1 | 1 << 31, inode=3)
    for at in (1000, 1500, 2500):
        shown(script, 1, at=at * MS)
    session = script.ends(3 * S).session()
    assert not run(session, SLUG)
    assert run(session, "edge-triggered-listener-not-drained")
