"""write-after-peer-close: the first failures are normal, what follows is not."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.findings import Severity
from tests.analysis.builders import Script
from tests.findings.conftest import Run, S, accept, answer, server

SLUG = "write-after-peer-close"
EPIPE, ECONNRESET = -32, -104


def told_times(times: int, *, script: Script | None = None, number: int = 0) -> Script:
    script = script or server()
    accept(script, number, 7 + number)
    answer(script, 7 + number)
    for at in range(times):
        script.event(100, 100, Call.sendto, 0, 4, fd=7 + number, ret=ECONNRESET if at == 0 else EPIPE)
    return script


def test_again_and_again(run: Run) -> None:
    script = told_times(5)
    told_times(9, script=script, number=1)
    told_times(0, script=script, number=2)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.count, finding.fd) == (Severity.WARNING, 2, 8)
    assert "2 of 3 connections" in finding.explanation
    assert "14 times in all" in finding.explanation
    assert finding.evidence[0].text.endswith("(told again, and it goes on)")


@pytest.mark.parametrize("times", [1, 2])
def test_the_first_is_normal(run: Run, times: int) -> None:
    script = told_times(times)
    script.event(100, 100, Call.close, fd=7)
    assert not run(script.ends(S).session(), SLUG, least=Severity.INFO)


def test_lost_events_do_not_matter(run: Run) -> None:
    script = told_times(5)
    script.lost["ring full"] = 3
    assert len(run(script.ends(S).session(), SLUG)) == 1


def test_the_rest_of_an_answer_and_then_the_close(run: Run) -> None:
    script = told_times(5)
    script.event(100, 100, Call.close, fd=7)
    assert not run(script.ends(S).session(), SLUG)
    script = told_times(12)
    script.event(100, 100, Call.close, fd=7)
    assert run(script.ends(S).session(), SLUG)
