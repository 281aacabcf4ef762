"""What the kernel told makes evidence exact, and makes no finding nor loses one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.findings.shared.told import established, last_change, peer_ended, reset
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Severity, Source
from sockscope.model.kernel import KERNEL_REF
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import START_NS, Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, answer, ask, leave, peer, server, told, wait

T = TcpState


def leaking(script: Script, *, heard: bool) -> Session:
    """Two clients leave, the program is told and goes on without a close."""
    for number in range(2):
        accept(script, number, 7 + number, at=(10 + 20 * number) * MS)
        ask(script, number, 7 + number)
        answer(script, 7 + number)
        leave(script, number)
        if heard:
            at = script.now_ns
            script.kernel(Call.sock_state, SERVER, peer(number), T.SYN_RECV, T.ESTABLISHED, at=(10 + 20 * number) * MS)
            script.kernel(Call.sock_state, SERVER, peer(number), T.ESTABLISHED, T.CLOSE_WAIT, at=at)
        told(script, 7 + number)
    for turn in range(4):
        wait(script, at=S + turn * S)
    return script.ends(9 * S).session()


def withheld(script: Script, *, heard: bool) -> Session:
    """The parent closes, a forked child keeps its copy."""
    accept(script, 0, 7)
    script.fork(100, 101)
    ask(script, 0, 7)
    answer(script, 7)
    script.event(100, 100, Call.close, fd=7)
    if heard:
        script.kernel(Call.sock_state, SERVER, peer(0), T.SYN_RECV, T.ESTABLISHED, at=1 * MS)
    wait(script, at=3 * S)
    return script.ends(9 * S).session()


def refused(script: Script, *, heard: bool) -> Session:
    """An upload answered and closed with its body unread."""
    accept(script, 0, 7)
    ask(script, 0, 7)
    script.packet(peer(0), SERVER, TcpFlag.ACK, seq=1007, ack=5001, payload=b"x" * 5000)
    answer(script, 7)
    script.event(100, 100, Call.close, fd=7)
    at = script.now_ns
    script.packet(SERVER, peer(0), TcpFlag.RST | TcpFlag.ACK, seq=5004, ack=6007)
    if heard:
        script.kernel(Call.sock_state, SERVER, peer(0), T.ESTABLISHED, T.CLOSE, at=at + 4000)
        script.kernel(Call.tcp_reset_sent, SERVER, peer(0), T.CLOSE, at=at + 5000)
    return script.ends(S).session()


def queued(script: Script, *, heard: bool) -> Session:
    """A connection that nobody accepts."""
    script.handshake(peer(0), SERVER, at=MS)
    if heard:
        script.kernel(Call.sock_state, SERVER, peer(0), T.SYN_RECV, T.ESTABLISHED, at=2 * MS)
    for turn in range(1, 14):
        script.snapshot(at=turn * 900 * MS)
        script.socket_row(SERVER, None, T.LISTEN, inode=3, recv_q=1, send_q=5, owners=[(100, 3)])
        script.socket_row(SERVER, peer(0))
    return script.ends(12 * S).session()


def sound(script: Script, *, heard: bool) -> Session:
    accept(script, 0, 7)
    ask(script, 0, 7)
    answer(script, 7)
    leave(script, 0)
    told(script, 7)
    script.event(100, 100, Call.close, fd=7)
    at = script.now_ns
    script.packet(SERVER, peer(0), TcpFlag.FIN | TcpFlag.ACK, seq=5004, ack=1008)
    if heard:
        script.states(SERVER, peer(0), T.SYN_RECV, T.ESTABLISHED, T.CLOSE_WAIT, T.LAST_ACK, T.CLOSE, at=at, step=1000)
    return script.ends(9 * S).session()


CASES = [leaking, withheld, refused, queued, sound]


@pytest.mark.parametrize("case", CASES)
def test_the_same_findings_whether_the_kernel_was_heard_or_not(case: Callable[..., Session]) -> None:
    unheard, heard = (run_rules(case(server(), heard=heard)) for heard in (False, True))

    def facts(found: tuple[list[object], ...]) -> list[tuple[object, ...]]:
        return [
            (f.rule, f.severity, f.confidence, f.count, f.fd, f.holder, f.connections)  # type: ignore[attr-defined]
            for f in found[0]
        ]

    assert facts(unheard) == facts(heard)  # type: ignore[arg-type]
    assert bool(unheard[0]) == (case is not sound)
    assert [skip.rule for skip in unheard[1]] == [skip.rule for skip in heard[1]]


@pytest.mark.parametrize(
    ("case", "slug", "words"),
    [
        (leaking, "close-wait-leak", "kernel: ESTABLISHED → CLOSE_WAIT"),
        (withheld, "fin-withheld", "neither FIN_WAIT1 nor LAST_ACK"),
        (refused, "reset-on-close", "RST went out"),
    ],
)
def test_its_evidence_is_a_socket_fact(case: Callable[..., Session], slug: str, words: str, run: Run) -> None:
    session = case(server(), heard=True)
    (finding,) = run(session, slug)
    (fact,) = [fact for fact in finding.evidence if words in fact.text]
    assert fact.source is Source.SOCKET
    assert fact is not finding.evidence[0]
    assert session.events.call(fact.ref - KERNEL_REF) in (Call.sock_state, Call.tcp_reset_sent)


def test_a_leak_without_packets_knows_when_it_began(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer(0), at=10 * MS)
    script.event(100, 100, Call.recvfrom, 0, 100, fd=7, ret=6)
    script.event(100, 100, Call.sendto, 0, 3, fd=7, ret=3)
    script.kernel(Call.sock_state, SERVER, peer(0), T.ESTABLISHED, T.CLOSE_WAIT, at=500 * MS)
    script.snapshot(at=740 * MS)
    script.socket_row(SERVER, peer(0), T.CLOSE_WAIT, inode=9, recv_q=1, owners=[(100, 7)])
    wait(script, at=S)
    (finding,) = run(script.ends(12 * S).session(), "close-wait-leak")
    assert "+0.500 s" in finding.explanation


def test_a_reset_that_only_the_kernel_told_ends_the_connection(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=peer(0), at=10 * MS)
    told(script, 7)
    script.kernel(Call.tcp_reset_received, SERVER, peer(0), T.CLOSE_WAIT, at=500 * MS)
    wait(script, at=S)
    session = script.ends(12 * S).session()
    assert not run(session, "close-wait-leak", least=Severity.INFO)
    assert reset(session, session.connections[0]) == 0
    assert reset(session, session.connections[0], sent=False) == 0
    assert reset(session, session.connections[0], sent=True) == -1


def test_what_was_not_told_is_not_there() -> None:
    session = leaking(server(), heard=False)
    one = session.connections[0]
    assert (peer_ended(session, one), established(session, one)) == (-1, -1)
    assert last_change(session, one, before_ns=START_NS + S) == -1


def test_a_pending_io_uring_read_holds_no_thread_up(run: Run) -> None:
    """A read that waits beside the loop is no blocked thread, so half-closed is of interest at most."""
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    answer(script, 7)
    script.event(100, 100, Call.shutdown, 1, fd=7)
    script.packet(SERVER, peer(0), TcpFlag.FIN | TcpFlag.ACK, seq=5004, ack=1007)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, flags=EventFlag.URING | EventFlag.ENTERED_ONLY)
    session = script.ends(9 * S).session()
    assert not run(session, "missing-fin")
    assert len(run(session, "missing-fin", least=Severity.INFO)) == 1
