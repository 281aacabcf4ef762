"""slow-reader: who does not read, for how long, and whom it holds up."""

from __future__ import annotations

import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, accept, answer, ask, peer, server

SLUG = "slow-reader"
ACK = TcpFlag.ACK


def closed(script: Script, number: int, *, since: int, until: int | None, by_server: bool = False) -> None:
    """The client's (or the server's) window is closed between those times, in ms; probed once."""
    src, dst = (SERVER, peer(number)) if by_server else (peer(number), SERVER)
    seq = 5001 if by_server else 1007
    script.packet(src, dst, ACK, seq=seq, window=0, at=since * MS)
    script.packet(src, dst, ACK, seq=seq, window=0, at=(since + 200) * MS)
    if until is not None:
        script.packet(src, dst, ACK, seq=seq, window=500, at=until * MS)


def blocked(script: Script, fd: int, *, at: int, took: int, tid: int = 100) -> int:
    return script.event(100, tid, Call.sendto, 0, 1 << 20, fd=fd, ret=1 << 20, at=at * MS, took=took * MS)


def one_thread(*, until: int = 2100, took: int = 2000) -> Script:
    """Client 0 does not read from 0.1 s on; the only thread sends to it with a blocking call."""
    script = server()
    accept(script, 0, 7, at=10 * MS)
    ask(script, 0, 7)
    blocked(script, 7, at=90, took=took)
    closed(script, 0, since=100, until=until)
    return script


def test_holds_up_the_only_thread(run: Run) -> None:
    script = one_thread()
    accept(script, 1, 8, at=2200 * MS)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.CERTAIN, 1)
    assert (finding.tgid, finding.fd) == (100, 7)
    assert "closed for 2.00 s" in finding.explanation
    assert "hung in sendto on fd 7 for 2.00 s" in finding.explanation
    assert "1 other connection" in finding.explanation


def test_still_in_it_at_the_end(run: Run) -> None:
    script = server()
    accept(script, 0, 7, at=10 * MS)
    script.event(100, 100, Call.sendto, 0, 1 << 20, fd=7, at=90 * MS, flags=EventFlag.ENTERED_ONLY)
    closed(script, 0, since=100, until=None)
    (finding,) = run(script.ends(3090 * MS).session(), SLUG)
    assert "for 3.00 s" in finding.explanation


def test_a_thread_of_its_own_is_normal(run: Run) -> None:
    script = server(100, 101)
    accept(script, 0, 7, at=10 * MS)
    blocked(script, 7, at=90, took=2000, tid=101)
    closed(script, 0, since=100, until=2100)
    accept(script, 1, 8, at=2200 * MS)
    assert not run(script.session(), SLUG)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert "nobody else waits" in finding.explanation


def test_a_sibling_accepts_too(run: Run) -> None:
    script = server().process(200, tids=(200,)).seed_fd(200, 3, inode=3, open_file=1_000_000)
    accept(script, 0, 7, at=10 * MS)
    blocked(script, 7, at=90, took=2000)
    closed(script, 0, since=100, until=2100)
    assert not run(script.session(), SLUG)


def test_an_event_loop_that_waits_for_room(run: Run) -> None:
    script = server()
    accept(script, 0, 7, at=10 * MS)
    script.event(100, 100, Call.sendto, 0, 1 << 20, fd=7, ret=4096, at=90 * MS)
    script.event(100, 100, Call.sendto, 0, 1 << 20, fd=7, ret=-11, at=91 * MS)
    closed(script, 0, since=100, until=2100)
    script.event(100, 100, Call.epoll_wait, 0, 64, 3000, fd=4, ret=1, at=92 * MS, took=2000 * MS)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO
    assert "1 send on it found no room" in finding.explanation


def test_polling_for_room_in_one_socket_hangs_as_well(run: Run) -> None:
    script = server()
    accept(script, 0, 7, at=10 * MS)
    answer(script, 7)
    script.event(100, 100, Call.poll, 0, 1, 5000, ret=1, poll=[(7, 4, 4)], at=90 * MS, took=2000 * MS)
    closed(script, 0, since=100, until=2100)
    (finding,) = run(script.session(), SLUG)
    assert "hung in poll on fd 7" in finding.explanation


def test_moments_are_health(run: Run) -> None:
    assert not run(one_thread(until=700, took=600).session(), SLUG, least=Severity.INFO)


def test_what_the_program_has_closed_costs_it_nothing(run: Run) -> None:
    script = one_thread(took=500)
    script.event(100, 100, Call.close, fd=7, at=700 * MS)
    assert not run(script.session(), SLUG, least=Severity.INFO)


def test_known_from_snapshots(run: Run) -> None:
    script = server().seed_fd(100, 7, inode=7)
    for at in (100, 600, 1100, 1600):
        script.snapshot(at=at * MS)
        script.socket_row(SERVER, peer(0), inode=7, timer=4, send_q=9000, owners=[(100, 7)])
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert (finding.severity, finding.confidence) == (Severity.INFO, Confidence.LIKELY)
    assert "9000 bytes" in finding.explanation


def test_the_server_does_not_read(run: Run) -> None:
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL)
    accept(script, 0, 7, at=10 * MS)
    ask(script, 0, 7)
    closed(script, 0, since=100, until=2600, by_server=True)
    script.event(100, 100, Call.epoll_wait, 0, 64, -1, fd=4, at=50 * MS, flags=EventFlag.ENTERED_ONLY)
    (finding,) = run(script.ends(3000 * MS).session(), SLUG)
    assert finding.title == "1 connection not read by the server for 2.50 s: its window was closed"
    assert "in epoll_wait" in finding.explanation


@pytest.mark.parametrize("why", ["short", "at work", "passes it on"])
def test_the_server_has_reasons(run: Run, why: str) -> None:
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL)
    accept(script, 0, 7, at=10 * MS)
    accept(script, 1, 8, at=12 * MS)
    ask(script, 0, 7)
    closed(script, 0, since=100, until=1500 if why == "short" else 2600, by_server=True)
    if why == "passes it on":
        closed(script, 1, since=80, until=2500)
    if why != "at work":
        script.event(100, 100, Call.epoll_wait, 0, 64, -1, fd=4, at=50 * MS, flags=EventFlag.ENTERED_ONLY)
    assert not run(script.ends(3000 * MS).session(), SLUG)


def test_nothing_that_shows_windows() -> None:
    script = Script(ports=(80,)).process(100).seed_fd(100, 3, inode=3)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer(0))
    _, skips, _ = run_rules(script.session(), select=[SLUG])
    assert [skip.reason for skip in skips] == ["neither packets nor socket snapshots show windows"]
