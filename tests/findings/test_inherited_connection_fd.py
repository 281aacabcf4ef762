"""inherited-connection-fd: a child that holds what it does not use."""

from __future__ import annotations

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Holder, Severity
from tests.analysis.builders import Script
from tests.findings.conftest import SERVER, Run, S, accept, answer, ask, peer, server

SLUG = "inherited-connection-fd"


def forked() -> Script:
    """A connection in use before and after a fork; the listener is closed on exec."""
    script = server()
    script.event(100, 100, Call.fcntl, 2, 1, fd=3)
    accept(script, 0, 7)
    ask(script, 0, 7)
    script.fork(100, 200)
    answer(script, 7)
    return script


def test_across_exec(run: Run) -> None:
    script = forked()
    script.exec(200, comm="sleep")
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.severity is Severity.WARNING
    assert finding.holder == Holder(tgid=200, comm="sleep", fd=7)
    assert finding.tgid == 100


def test_fork_alone_is_only_interesting(run: Run) -> None:
    session = forked().ends(3 * S).session()
    assert not run(session, SLUG)
    assert len(run(session, SLUG, least=Severity.INFO)) == 1


def test_close_on_exec(run: Run) -> None:
    script = server()
    script.handshake(peer(0), SERVER)
    script.event(100, 100, Call.accept4, 0, 0, 0o2000000, fd=3, ret=7, sockaddr=peer(0))
    ask(script, 0, 7)
    script.fork(100, 200)
    answer(script, 7)
    script.exec(200, comm="sleep")
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_exits_at_once(run: Run) -> None:
    script = forked()
    script.exec(200)
    script.exit(200)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_child_uses_it(run: Run) -> None:
    script = forked()
    script.exec(200)
    answer(script, 7, tgid=200)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_on_stdin_it_is_meant(run: Run) -> None:
    """CGI: the child gets the connection as its stdout."""
    script = forked()
    script.event(200, 200, Call.dup2, 1, fd=7, ret=1)
    script.event(200, 200, Call.close, fd=7)
    script.exec(200, comm="cgi")
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_given_away(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    script.fork(100, 200)
    script.event(100, 100, Call.close, fd=7)
    script.exec(200, comm="handler")
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def found_at_attach(exe: str, *, used_by: tuple[int, ...] = (100,)) -> Script:
    """Parent and child have the connection already."""
    script = server().process(200, ppid=100, comm="sleep", exe=exe)
    for tgid in (100, 200):
        script.seed_fd(tgid, 7, inode=70, open_file=1)
    script.snapshot()
    script.socket_row(SERVER, peer(0), inode=70, owners=[(100, 7), (200, 7)])
    for tgid in used_by:
        answer(script, 7, tgid=tgid)
    return script


def test_found_at_attach(run: Run) -> None:
    (finding,) = run(found_at_attach("/usr/bin/sleep").ends(3 * S).session(), SLUG)
    assert (finding.confidence, finding.holder) == (Confidence.LIKELY, Holder(tgid=200, comm="sleep", fd=7))


def test_found_at_attach_in_a_worker_of_the_same_program(run: Run) -> None:
    assert not run(found_at_attach("/usr/bin/server").ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_found_at_attach_and_used_by_both(run: Run) -> None:
    script = found_at_attach("/usr/bin/sleep", used_by=(100, 200))
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_made_inheritable_by_the_child(run: Run) -> None:
    """Python's pass_fds."""
    script = forked()
    script.event(200, 200, Call.fcntl, 2, 0, fd=7)
    script.exec(200, comm="handler")
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_with_the_listener_it_is_one_finding() -> None:
    script = forked()
    script.event(100, 100, Call.fcntl, 2, 0, fd=3)
    script.event(200, 200, Call.close, fd=3)
    script.event(200, 200, Call.close, fd=7)
    script.fork(100, 300)
    answer(script, 7)
    script.exec(300, path="/usr/bin/sleep", comm="sleep")
    findings, _, _ = run_rules(script.ends(3 * S).session(), select=[SLUG, "inherited-listener"])
    assert [finding.rule for finding in findings] == ["inherited-listener"]
    assert [one.rule for one in findings[0].consequences] == [SLUG]
