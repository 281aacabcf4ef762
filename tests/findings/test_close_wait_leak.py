"""close-wait-leak: told and not closed; and the legal ways to stay in CLOSE_WAIT."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Severity, Source
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, answer, ask, leave, peer, server, told, wait

SLUG = "close-wait-leak"


def visit(script: Script, number: int, fd: int) -> None:
    accept(script, number, fd)
    ask(script, number, fd)
    answer(script, fd)


def test_told_and_not_closed(run: Run) -> None:
    script = server()
    for number in range(3):
        visit(script, number, 7 + number)
        leave(script, number)
        told(script, 7 + number)
    visit(script, 9, 20)  # stays, idle
    for at in range(1, 5):
        wait(script, at=at * S)
    script.snapshot(at=4 * S)
    script.socket_row(SERVER, peer(0), TcpState.CLOSE_WAIT, inode=90, recv_q=1)
    (finding,) = run(script.ends(5 * S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert finding.count == 3
    assert finding.fd == 7
    assert "3 of 4 connections" in finding.explanation
    assert {fact.source for fact in finding.evidence} == {Source.SYSCALL, Source.PACKET, Source.SOCKET, Source.PROC}
    assert finding.evidence[0].text.startswith("server[100] recvfrom(7")


def test_closed_a_little_later(run: Run) -> None:
    script = server()
    visit(script, 0, 7)
    leave(script, 0)
    told(script, 7)
    script.event(100, 100, Call.close, fd=7, at=script.now_ns + 3 * MS)
    wait(script, at=5 * S)
    assert not run(script.ends(6 * S).session(), SLUG)


def test_end_of_session_comes_first(run: Run) -> None:
    script = server()
    visit(script, 0, 7)
    leave(script, 0)
    told(script, 7)
    wait(script)
    assert not run(script.ends(script.now_ns + 900 * MS).session(), SLUG)


def test_half_close_and_still_sending(run: Run) -> None:
    script = server()
    visit(script, 0, 7)
    leave(script, 0)
    told(script, 7)
    for at in range(1, 20):
        script.now_ns = at * S // 4
        answer(script, 7)
    assert not run(script.ends(5 * S).session(), SLUG)


def test_request_still_at_work(run: Run) -> None:
    script = server()
    visit(script, 1, 8)
    accept(script, 0, 7)
    ask(script, 0, 7)
    leave(script, 0)
    told(script, 7)
    wait(script, at=3 * S)
    assert not run(script.ends(5 * S).session(), SLUG)


def test_waits_for_room_to_send(run: Run) -> None:
    script = server()
    visit(script, 0, 7)
    leave(script, 0)
    told(script, 7)
    script.event(100, 100, Call.sendto, 0, 4096, fd=7, ret=-11)
    wait(script, at=3 * S)
    assert not run(script.ends(5 * S).session(), SLUG)


def test_ended_its_own_half(run: Run) -> None:
    script = server()
    visit(script, 0, 7)
    leave(script, 0)
    told(script, 7)
    script.event(100, 100, Call.shutdown, 1, fd=7)
    script.packet(SERVER, peer(0), TcpFlag.FIN | TcpFlag.ACK, seq=5004, ack=1008)
    wait(script, at=3 * S)
    assert not run(script.ends(5 * S).session(), SLUG)


def test_no_fin_on_the_wire(run: Run) -> None:
    """A read returns 0 after the program's own shutdown(SHUT_RD)."""
    script = server()
    visit(script, 0, 7)
    script.event(100, 100, Call.shutdown, 0, fd=7)
    told(script, 7)
    wait(script, at=3 * S)
    assert not run(script.ends(5 * S).session(), SLUG)


def test_never_looked_is_no_more_than_interesting_at_first(run: Run) -> None:
    script = server()
    visit(script, 0, 7)
    leave(script, 0)
    wait(script, at=3 * S)
    session = script.ends(5 * S).session()
    assert not run(session, SLUG)
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert finding.confidence is Confidence.POSSIBLE


def test_never_looked_for_long(run: Run) -> None:
    script = server()
    visit(script, 0, 7)
    leave(script, 0)
    wait(script, at=3 * S)
    (finding,) = run(script.ends(14 * S).session(), SLUG)
    assert finding.severity is Severity.WARNING
    assert "does not look" in finding.title


def test_blocked_in_a_write(run: Run) -> None:
    script = server()
    visit(script, 0, 7)
    leave(script, 0)
    script.event(100, 100, Call.sendto, 0, 4096, fd=7, flags=EventFlag.ENTERED_ONLY)
    assert not run(script.ends(14 * S).session(), SLUG, least=Severity.INFO)


def test_told_by_epoll(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.epoll_create1, ret=4)
    visit(script, 0, 7)
    script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(0x80002001, 7)])
    leave(script, 0)
    script.event(100, 100, Call.epoll_wait, 0, 64, 500, fd=4, ret=1, epoll=[(0x2001, 7)])
    wait(script, at=2 * S)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.severity is Severity.ERROR
    assert "epoll_wait" in finding.evidence[0].text


def found_at_attach(*, recv_q: int) -> Script:
    """In CLOSE_WAIT before watching began, as fd 7."""
    script = server().seed_fd(100, 7, inode=70)
    for at in (0, 3, 8):
        script.snapshot(at=at * S)
        script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3)])
        script.socket_row(SERVER, peer(0), TcpState.CLOSE_WAIT, inode=70, recv_q=recv_q, owners=[(100, 7)])
        wait(script)
    return script


def test_told_before_watching_began(run: Run) -> None:
    script = found_at_attach(recv_q=0)
    (finding,) = run(script.ends(10 * S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.LIKELY)
    assert finding.fd == 7
    assert "when watching began" in finding.explanation


def test_found_at_attach_for_a_short_while(run: Run) -> None:
    (finding,) = run(found_at_attach(recv_q=0).ends(6 * S).session(), SLUG)
    assert finding.severity is Severity.WARNING


def test_found_at_attach_and_unread(run: Run) -> None:
    session = found_at_attach(recv_q=1).ends(6 * S).session()
    assert not run(session, SLUG)
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert "does not look" in finding.title
