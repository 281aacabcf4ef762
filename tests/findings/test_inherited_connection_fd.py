"""inherited-connection-fd: a child that holds what it does not use."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Holder, Severity
from tests.analysis.builders import Script
from tests.findings.conftest import SERVER, Run, S, accept, answer, ask, peer, server

SLUG = "inherited-connection-fd"


def forked() -> Script:
    """A connection in use before and after a fork."""
    script = server()
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
