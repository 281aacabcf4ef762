"""sigpipe-death: killed by the write to a peer that had gone."""

from __future__ import annotations

import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from tests.analysis.builders import Script
from tests.findings.conftest import Run, S, accept, answer, server

SLUG = "sigpipe-death"
SIGPIPE = 13


def killed(script: Script, fd: int = 7, *, tgid: int = 100, status: int = SIGPIPE) -> None:
    script.event(tgid, tgid, Call.sendto, 0, 4, fd=fd, ret=-32, payload=b"tick")
    script.signal(tgid, SIGPIPE)
    script.exit(tgid, status=status)


def serving(*fds: int) -> Script:
    script = server()
    for number, fd in enumerate(fds):
        accept(script, number, fd)
        answer(script, fd)
    return script


def test_a_server_with_other_clients(run: Run) -> None:
    script = serving(7, 8, 9)
    killed(script)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert (finding.tgid, finding.fd, finding.connections) == (100, 7, (0,))
    assert "2 other connections of its own went with it, and its listener: nobody answers" in finding.explanation
    assert "MSG_NOSIGNAL to sendto" in finding.remedy
    assert any("SIGPIPE" in fact.text for fact in finding.evidence)


def test_workers_killed_again_and_again(run: Run) -> None:
    script = server()
    for number in range(3):
        child = 200 + number
        script.fork(100, child)
        accept(script, number, 7, tgid=child)
        answer(script, 7, tgid=child)
        killed(script, tgid=child)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.count, finding.tgid) == (Severity.ERROR, 3, 200)
    assert "started again, and killed again" in finding.explanation


def test_a_child_for_one_connection(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    script.fork(100, 200)
    script.event(200, 200, Call.close, fd=3)
    answer(script, 7, tgid=200)
    killed(script, tgid=200)
    session = script.ends(S).session()
    assert not run(session, SLUG)
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert "served no other connection" in finding.explanation


def test_the_writes_before_are_no_finding_of_their_own() -> None:
    script = serving(7, 8)
    for _ in range(5):
        script.event(100, 100, Call.sendto, 0, 4, fd=7, ret=-32)
    killed(script)
    findings, _, _ = run_rules(script.ends(S).session(), select=[SLUG, "write-after-peer-close"])
    assert [finding.rule for finding in findings] == [SLUG]


def silent(run: Run, script: Script) -> bool:
    return not run(script.ends(S).session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize("status", [0, 15, 9])
def test_another_end(run: Run, status: int) -> None:
    script = serving(7, 8)
    killed(script, status=status)
    assert silent(run, script)


def test_it_goes_on(run: Run) -> None:
    script = serving(7, 8)
    script.event(100, 100, Call.sendto, 0, 4, fd=7, ret=-32)
    script.event(100, 100, Call.close, fd=7)
    answer(script, 8)
    assert silent(run, script)


def test_a_pipe(run: Run) -> None:
    """server | head"""
    script = serving(7).seed_fd(100, 5, kind=FileKind.PIPE)
    script.event(100, 100, Call.write, 0, 4, fd=5, ret=-32)
    script.exit(100, status=SIGPIPE)
    assert silent(run, script)


def test_standard_output_is_the_connection(run: Run) -> None:
    script = serving(7)
    script.event(100, 100, Call.dup2, 1, fd=7, ret=1)
    script.event(100, 100, Call.write, 0, 4, fd=1, ret=-32)
    script.exit(100, status=SIGPIPE)
    assert silent(run, script)


def test_sent_by_hand(run: Run) -> None:
    script = serving(7)
    script.signal(100, SIGPIPE)
    script.exit(100, status=SIGPIPE)
    assert silent(run, script)
