"""accept-result-misused: N is never touched, and 0 is used instead."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from tests.analysis.builders import Script
from tests.findings.conftest import MS, Run, S, accept, server

SLUG = "accept-result-misused"


def daemon(kind: FileKind = FileKind.OTHER) -> Script:
    script = server().seed_fd(100, 0, kind=kind, inode=1 if kind == FileKind.SOCKET else 0)
    for number in range(3):
        accept(script, number, 7 + number, at=number * 100 * MS)
    return script


def tick(script: Script, fd: int = 0, call: Call = Call.write) -> None:
    for number in range(4):
        script.event(100, 100, call, 0, 7, fd=fd, ret=7, at=S + number * 200 * MS)


def test_zero_instead(run: Run) -> None:
    script = daemon()
    tick(script)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 3)
    assert finding.fd == 7
    assert "all 3 connections" in finding.explanation


def test_only_reading_zero_is_less_sure(run: Run) -> None:
    script = daemon()
    tick(script, call=Call.read)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)


@pytest.mark.parametrize("fd", [1, 2, 7])
def test_logging_and_serving(run: Run, fd: int) -> None:
    script = daemon()
    tick(script, fd=fd)
    assert not run(script.ends(2 * S).session(), SLUG)


def test_held_and_nothing_done(run: Run) -> None:
    assert not run(daemon().ends(2 * S).session(), SLUG)


def test_served_ones_are_left_out(run: Run) -> None:
    script = daemon()
    tick(script)
    for fd in (7, 8, 9):
        script.event(100, 100, Call.write, 0, 5, fd=fd, ret=5)
    assert not run(script.ends(2 * S).session(), SLUG)


def test_waited_for_in_a_poll_set(run: Run) -> None:
    script = daemon()
    tick(script)
    script.event(100, 100, Call.poll, 0, 3, 500, poll=[(fd, 1, 0) for fd in (7, 8, 9)])
    assert not run(script.ends(2 * S).session(), SLUG)


def test_inetd_style(run: Run) -> None:
    script = daemon(FileKind.SOCKET)
    tick(script)
    assert not run(script.ends(2 * S).session(), SLUG)
