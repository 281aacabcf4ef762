"""inherited-listener: a child that holds the listening socket and does not accept from it."""

from __future__ import annotations

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Holder, Severity
from sockscope.model.tcp import TcpState
from tests.analysis.builders import Script
from tests.findings.conftest import SERVER, Run, S, accept, answer, ask, server

SLUG = "inherited-listener"


def started() -> Script:
    """A helper is forked and execs; the server serves on."""
    script = server()
    script.fork(100, 200)
    script.exec(200, path="/usr/bin/sleep", comm="sleep")
    accept(script, 0, 7)
    ask(script, 0, 7)
    answer(script, 7)
    return script


def test_a_warning_while_the_server_has_it(run: Run) -> None:
    (finding,) = run(started().ends(3 * S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.CERTAIN)
    assert (finding.tgid, finding.fd, finding.holder) == (100, 3, Holder(tgid=200, comm="sleep", fd=3))
    assert "127.0.0.1:80" in finding.title
    assert "SOCK_CLOEXEC" in finding.remedy


def closed() -> Script:
    script = started()
    script.event(100, 100, Call.close, fd=3, at=S)
    return script


def test_an_error_once_it_has_given_it_up(run: Run) -> None:
    (finding,) = run(closed().ends(4 * S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert "at +1.000 s, and for 3.00 s since" in finding.explanation
    assert "end sleep[200]" in finding.remedy


def test_the_refused_bind_is_told_here_and_not_again() -> None:
    script = closed()
    script.event(100, 100, Call.socket, 2, 1, ret=3, at=S + 10_000_000)
    script.event(100, 100, Call.bind, fd=3, ret=-98, sockaddr=SERVER)
    script.event(100, 100, Call.bind, fd=3, ret=-98, sockaddr=SERVER)
    session = script.ends(4 * S).session()
    findings, _, _ = run_rules(session, select=[SLUG, "bind-address-in-use"])
    assert [finding.rule for finding in findings] == [SLUG]
    assert "2 attempts to bind it anew failed with EADDRINUSE" in findings[0].explanation
    assert any("EADDRINUSE" in fact.text for fact in findings[0].evidence)


def test_the_server_ends(run: Run) -> None:
    script = started()
    script.exit(100, at=S)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert (finding.severity, finding.tgid) == (Severity.ERROR, 100)


def test_all_end_together(run: Run) -> None:
    script = closed()
    script.exit(200, at=S + 500_000_000)
    findings = run(script.ends(4 * S).session(), SLUG)
    assert all(finding.severity is Severity.WARNING for finding in findings)


def test_close_on_exec(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.fcntl, 2, 1, fd=3)
    script.fork(100, 200)
    script.exec(200, path="/usr/bin/sleep", comm="sleep")
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_gone_at_once(run: Run) -> None:
    script = started()
    script.exit(200)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_it_accepts(run: Run) -> None:
    """Socket activation: the program that was started is the server."""
    script = started()
    script.event(200, 200, Call.close, fd=4)
    accept(script, 1, 9, tgid=200)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_its_child_accepts(run: Run) -> None:
    """A new master whose workers accept."""
    script = started()
    script.fork(200, 300)
    accept(script, 1, 9, tgid=300)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_it_waits_for_it(run: Run) -> None:
    script = started()
    script.event(200, 200, Call.poll, 0, 1, 500, ret=0, poll=[(3, 1, 0)])
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_handed_over_on_purpose(run: Run) -> None:
    """The child takes close-on-exec off (Python's pass_fds), or puts it at another number."""
    script = server()
    script.fork(100, 200)
    script.event(200, 200, Call.fcntl, 2, 0, fd=3)
    script.exec(200, path="/usr/bin/worker", comm="worker")
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)
    script = server()
    script.fork(100, 200)
    script.event(200, 200, Call.dup2, 5, fd=3, ret=5)
    script.exec(200, path="/usr/bin/worker", comm="worker")
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_the_same_program_while_the_server_lives(run: Run) -> None:
    script = server()
    script.fork(100, 200)
    script.exec(200, path="/usr/bin/server", comm="server")
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_fork_alone(run: Run) -> None:
    """No finding while the parent listens; an error where the child outlives that."""
    script = server()
    script.fork(100, 200)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)
    script.event(100, 100, Call.close, fd=3, at=S)
    (finding,) = run(script.ends(4 * S).session(), SLUG)
    assert (finding.severity, finding.holder) == (Severity.ERROR, Holder(tgid=200, comm="server", fd=3))


def test_a_worker_that_finishes_its_work(run: Run) -> None:
    """The master has closed, the worker no longer accepts and serves what it has."""
    script = server()
    script.fork(100, 200)
    accept(script, 0, 7, tgid=200)
    script.event(100, 100, Call.close, fd=3, at=S)
    ask(script, 0, 7, tgid=200)
    assert not run(script.ends(9 * S).session(), SLUG, least=Severity.INFO)


def found_at_attach(exe: str) -> Script:
    script = Script(ports=(80,)).process(100).process(200, ppid=100, comm="sleep", exe=exe)
    for tgid in (100, 200):
        script.seed_fd(tgid, 3, inode=3, open_file=1)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3), (200, 3)])
    accept(script, 0, 7)
    return script


def test_found_at_attach(run: Run) -> None:
    (finding,) = run(found_at_attach("/usr/bin/sleep").ends(3 * S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)
    assert "before watching began" in finding.explanation


def test_found_at_attach_of_the_same_program(run: Run) -> None:
    assert not run(found_at_attach("/usr/bin/server").ends(3 * S).session(), SLUG, least=Severity.INFO)
