"""fin-withheld: closed by the one who served, kept open by somebody who has no use for it."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Holder, Severity
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script
from tests.findings.conftest import SERVER, Run, S, accept, answer, ask, leave, peer, server, told, wait

SLUG = "fin-withheld"


def served(script: Script, number: int = 0, fd: int = 7) -> None:
    """Asked, a child is forked, answered, closed."""
    accept(script, number, fd)
    ask(script, number, fd)
    script.fork(100, 200)
    answer(script, fd)
    script.event(100, 100, Call.close, fd=fd)


def test_child_holds_it(run: Run) -> None:
    script = server()
    accept(script, 1, 8)
    ask(script, 1, 8)
    answer(script, 8)
    served(script)
    script.event(100, 100, Call.close, fd=8)
    script.snapshot(at=2 * S)
    for number in (0, 1):
        script.socket_row(SERVER, peer(number), TcpState.ESTABLISHED, inode=70 + number, owners=[(200, 7 + number)])
    session = script.ends(3 * S).session()
    (finding,) = run(session, SLUG)
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert finding.holder is not None
    assert (finding.holder.tgid, finding.count) == (200, 2)
    assert "by fork at +0.0" in finding.explanation
    assert "never used it" in finding.explanation
    assert finding.evidence[0].text.startswith("server[100] close(")
    assert not run(session, "inherited-connection-fd", least=Severity.INFO)


def test_kept_across_exec(run: Run) -> None:
    script = server()
    served(script)
    script.exec(200, comm="sleep")
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.holder == Holder(tgid=200, comm="sleep", fd=7)
    assert "kept it across exec" in finding.explanation
    assert "SOCK_CLOEXEC" in finding.remedy


def test_there_before_watching_began(run: Run) -> None:
    script = server().process(200, ppid=100, comm="helper")
    for tgid in (100, 200):
        script.seed_fd(tgid, 7, inode=70, open_file=1)
    script.snapshot()
    script.socket_row(SERVER, peer(0), inode=70, owners=[(100, 7), (200, 7)])
    answer(script, 7)
    script.event(100, 100, Call.close, fd=7)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.holder == Holder(tgid=200, comm="helper", fd=7)
    assert finding.confidence is Confidence.LIKELY
    assert "before watching began" in finding.explanation


def test_received_by_scm_rights(run: Run) -> None:
    script = server().process(200, comm="logger")
    script.seed_fd(100, 5, inode=50).seed_fd(200, 6, inode=51)
    script.snapshot(at=0)
    script.socket_row(None, None, inode=50, peer_inode=51, type=1, owners=[(100, 5)])
    script.socket_row(None, None, inode=51, peer_inode=50, type=1, owners=[(200, 6)])
    accept(script, 0, 7)
    ask(script, 0, 7)
    script.event(100, 100, Call.sendmsg, fd=5, ret=1, control=[7])
    script.event(200, 200, Call.recvmsg, fd=6, ret=1, control=[9])
    answer(script, 7)
    script.event(100, 100, Call.close, fd=7)
    session = script.ends(3 * S).session()
    (finding,) = run(session, SLUG)
    assert finding.holder == Holder(tgid=200, comm="logger", fd=9)
    assert "by SCM_RIGHTS at" in finding.explanation
    assert not run(session, "passed-fd-leak")


def test_child_closes_its_copy(run: Run) -> None:
    script = server()
    served(script)
    script.event(200, 200, Call.close, fd=7)
    assert not run(script.ends(3 * S).session(), SLUG)


def test_child_serves_it(run: Run) -> None:
    """The usual forking server, with a slow child."""
    script = server()
    accept(script, 0, 7)
    script.fork(100, 200)
    script.event(100, 100, Call.close, fd=7)
    ask(script, 0, 7, tgid=200)
    assert not run(script.ends(3 * S).session(), SLUG)


def test_handed_over_before_the_answer(run: Run) -> None:
    """The parent reads the request; its child is still at work on the answer."""
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    script.fork(100, 200)
    script.event(100, 100, Call.close, fd=7)
    assert not run(script.ends(3 * S).session(), SLUG)


def test_child_waits_for_it(run: Run) -> None:
    script = server()
    served(script)
    script.event(200, 200, Call.poll, 0, 1, 1000, ret=0, poll=[(7, 1, 0)])
    assert not run(script.ends(3 * S).session(), SLUG)


def test_parent_forgets_to_close(run: Run) -> None:
    """The child serves and closes; the parent that accepted never does."""
    script = server()
    accept(script, 0, 7)
    script.fork(100, 200)
    ask(script, 0, 7, tgid=200)
    answer(script, 7, tgid=200)
    script.event(200, 200, Call.close, fd=7)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.holder == Holder(tgid=100, comm="server", fd=7)


def test_shutdown_ends_it_all_the_same(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    script.fork(100, 200)
    answer(script, 7)
    script.event(100, 100, Call.shutdown, 2, fd=7)
    script.event(100, 100, Call.close, fd=7)
    script.packet(SERVER, peer(0), TcpFlag.FIN | TcpFlag.ACK, seq=5004, ack=1007)
    assert not run(script.ends(3 * S).session(), SLUG)


@pytest.mark.parametrize("later_s", [0.5, 0.9])
def test_held_only_for_a_moment(run: Run, later_s: float) -> None:
    script = server()
    served(script)
    script.exit(200, at=int(later_s * S))
    assert not run(script.ends(3 * S).session(), SLUG)


def test_explains_close_wait(run: Run) -> None:
    script = server()
    served(script)
    leave(script, 0)
    wait(script)
    session = script.ends(14 * S).session()
    assert len(run(session, SLUG)) == 1
    for general in ("close-wait-leak", "missing-fin"):
        assert not run(session, general, least=Severity.INFO)


def test_closed_after_end_of_file(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    script.fork(100, 200)
    ask(script, 0, 7)
    leave(script, 0)
    told(script, 7)
    script.event(100, 100, Call.close, fd=7)
    assert len(run(script.ends(3 * S).session(), SLUG)) == 1
