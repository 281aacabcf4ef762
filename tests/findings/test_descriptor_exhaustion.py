"""descriptor-exhaustion: EMFILE that lasts, and EMFILE that is coped with."""

from __future__ import annotations

import pytest

from sockscope.findings import close_wait_leak, descriptor_exhaustion
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Severity
from tests.analysis.builders import Script
from tests.findings.conftest import MS, Run, S, accept, answer, ask, leave, server, told, wait

SLUG = "descriptor-exhaustion"
EMFILE = 24


def full() -> Script:
    script = server()
    for number in range(5):
        accept(script, number, 7 + number)
    return script


def test_fails_to_the_end(run: Run) -> None:
    script = full()
    for number in range(20):
        script.event(100, 100, Call.accept4, fd=3, ret=-EMFILE, at=S + number * 100 * MS)
    (finding,) = run(script.ends(4 * S).session(), SLUG)
    assert (finding.severity, finding.count, finding.fd) == (Severity.ERROR, 20, 3)
    assert "6 descriptors open (6 sockets)" in finding.explanation
    assert "5 of its 5 connections did nothing" in finding.explanation


def test_the_reserve_descriptor(run: Run) -> None:
    """libuv's way: close the spare, accept, close, take it again."""
    script = full()
    for number in range(5):
        at = S + number * 100 * MS
        script.event(100, 100, Call.accept4, fd=3, ret=-EMFILE, at=at)
        script.event(100, 100, Call.close, fd=20)
        script.event(100, 100, Call.accept4, fd=3, ret=20)
        script.event(100, 100, Call.close, fd=20)
        script.event(100, 100, Call.open, ret=20, path="/dev/null")
    session = script.ends(4 * S).session()
    assert not run(session, SLUG)
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert "recovered" in finding.title


def test_other_errors_are_not_meant(run: Run) -> None:
    script = full()
    script.event(100, 100, Call.accept4, fd=3, ret=-11)
    script.event(100, 100, Call.epoll_ctl, 1, 9, fd=4, ret=-2)
    assert not run(script.ends(4 * S).session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize(("leaks", "others"), [(12, 5), (3, 14)])
def test_a_leak_is_the_cause_where_it_holds_most(leaks: int, others: int) -> None:
    script = server()
    for number in range(leaks + others):
        fd = 7 + number
        accept(script, number, fd)
        ask(script, number, fd)
        answer(script, fd)
        if number < leaks:
            leave(script, number)
            told(script, fd)
    script.event(100, 100, Call.accept4, fd=3, ret=-EMFILE, at=2 * S)
    for at in range(3, 6):
        wait(script, at=at * S)
    findings, _, _ = run_rules(script.ends(7 * S).session(), modules=[close_wait_leak, descriptor_exhaustion])
    leak = next(finding for finding in findings if finding.rule == "close-wait-leak")
    told_under_it = [one.rule for one in leak.consequences]
    told_beside_it = [finding.rule for finding in findings if finding is not leak]
    assert (told_under_it, told_beside_it) == (([SLUG], []) if leaks > others else ([], [SLUG]))
