"""passed-fd-leak: one of the two ends of an SCM_RIGHTS message keeps its copy."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Holder, Severity
from tests.analysis.builders import Script
from tests.findings.conftest import Run, S, accept, answer, ask, server

SLUG = "passed-fd-leak"


def passed(number: int = 0, fd: int = 7) -> Script:
    """Dispatcher 100 accepts and passes on, worker 200 receives as fd 9."""
    script = server().process(200, comm="worker")
    script.seed_fd(100, 5, inode=50).seed_fd(200, 6, inode=51)
    script.snapshot(at=0)
    script.socket_row(None, None, inode=50, peer_inode=51, type=1, owners=[(100, 5)])
    script.socket_row(None, None, inode=51, peer_inode=50, type=1, owners=[(200, 6)])
    accept(script, number, fd)
    script.event(100, 100, Call.sendmsg, fd=5, ret=1, control=[fd])
    script.event(200, 200, Call.recvmsg, fd=6, ret=1, control=[9])
    return script


def test_sender_keeps_it(run: Run) -> None:
    script = passed()
    ask(script, 0, 9, tgid=200)
    answer(script, 9, tgid=200)
    script.event(200, 200, Call.close, fd=9)
    session = script.ends(3 * S).session()
    (finding,) = run(session, SLUG)
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert finding.holder == Holder(tgid=100, comm="server", fd=7)
    assert "keeps the FIN from going out" in finding.explanation
    assert not run(session, "fin-withheld")


def test_sender_keeps_it_while_it_is_served(run: Run) -> None:
    script = passed()
    ask(script, 0, 9, tgid=200)
    answer(script, 9, tgid=200)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.severity is Severity.WARNING


def test_sender_closes(run: Run) -> None:
    script = passed()
    script.event(100, 100, Call.close, fd=7)
    ask(script, 0, 9, tgid=200)
    answer(script, 9, tgid=200)
    assert not run(script.ends(3 * S).session(), SLUG)


def test_receiver_never_looks_at_it(run: Run) -> None:
    script = passed()
    script.event(100, 100, Call.close, fd=7)
    for _ in range(3):
        script.event(200, 200, Call.recvmsg, fd=6, ret=1)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.holder == Holder(tgid=200, comm="worker", fd=9)


def test_receiver_waits_for_it(run: Run) -> None:
    script = passed()
    script.event(100, 100, Call.close, fd=7)
    for _ in range(3):
        script.event(200, 200, Call.poll, 0, 2, 1000, ret=0, poll=[(6, 1, 0), (9, 1, 0)])
    assert not run(script.ends(3 * S).session(), SLUG)


def test_sender_shares_it(run: Run) -> None:
    script = passed()
    ask(script, 0, 9, tgid=200)
    answer(script, 7)
    assert not run(script.ends(3 * S).session(), SLUG)
