"""event-loop-spin: turns without progress, and turns with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from tests.analysis.builders import EPOLLIN, EPOLLOUT, EPOLLRDHUP, Script
from tests.findings.conftest import MS, Run, S, accept, server

SLUG = "event-loop-spin"
EPOLLHUP = 0x10
STEP = 500_000
TURNS = 1500


def loop(events: int = EPOLLIN | EPOLLOUT, *tids: int) -> Script:
    """A connection as fd 7, registered under its number."""
    script = server(*tids).seed_fd(100, 4, kind=FileKind.EPOLL)
    accept(script, 0, 7)
    script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(events, 7)])
    return script


def turns(
    script: Script,
    said: int | None,
    each: Callable[[int], object] | None = None,
    *,
    count: int = TURNS,
    step: int = STEP,
    timeout: int = 1000,
) -> Script:
    """Waits at a steady pace, and what is done after each one."""
    for number in range(count):
        ready = [] if said is None else [(said, 7)]
        at = S + number * step
        script.event(100, 100, Call.epoll_wait, 0, 64, timeout, fd=4, ret=len(ready), epoll=ready, at=at)
        if each is not None:
            each(at + 10_000)
    return script.ends(3 * S)


def test_always_writable(run: Run) -> None:
    (finding,) = run(turns(loop(), EPOLLOUT).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.fd) == (Severity.WARNING, Confidence.CERTAIN, 7)
    assert finding.connections == (0,)
    assert f"{TURNS} times in a row" in finding.explanation
    assert "readiness to write" in finding.title


def test_hang_up(run: Run) -> None:
    (finding,) = run(turns(loop(), EPOLLIN | EPOLLHUP | EPOLLRDHUP).session(), SLUG)
    assert "a hang-up that nobody handles" in finding.title


def test_end_of_file_read_again_and_again(run: Run) -> None:
    script = loop()
    read = lambda at: script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, ret=0, at=at)  # noqa: E731
    (finding,) = run(turns(script, EPOLLIN, read).session(), SLUG)
    assert "end of file" in finding.title


def test_timeout_zero(run: Run) -> None:
    script = turns(loop(), None, timeout=0, count=2500)
    (finding,) = run(script.session(), SLUG)
    assert finding.confidence is Confidence.LIKELY
    assert "timeout 0" in finding.title


@pytest.mark.parametrize(("call", "ret"), [(Call.recvfrom, 5), (Call.sendto, 5), (Call.epoll_ctl, 0)])
def test_progress_each_turn(run: Run, call: Call, ret: int) -> None:
    script = loop()
    step = lambda at: script.event(100, 100, call, 3, 7, fd=7 if ret else 4, ret=ret, at=at)  # noqa: E731
    assert not run(turns(script, EPOLLIN, step).session(), SLUG)


def test_progress_by_another_thread(run: Run) -> None:
    script = loop(EPOLLIN, 100, 101)
    turns(script, EPOLLIN)
    script.event(100, 101, Call.recvfrom, 0, 4096, fd=7, ret=9, at=S + 300 * MS)
    assert not run(script.ends(3 * S).session(), SLUG)


def test_a_slow_poll_is_no_spin(run: Run) -> None:
    assert not run(turns(loop(), None, step=3 * MS, count=600, timeout=0).session(), SLUG)


def test_a_short_burst(run: Run) -> None:
    assert not run(turns(loop(), EPOLLOUT, count=400).session(), SLUG)


def test_poll_and_select_are_read_too(run: Run) -> None:
    script = loop()
    for number in range(TURNS):
        script.event(100, 100, Call.poll, 0, 1, 1000, ret=1, poll=[(7, 5, 4)], at=S + number * STEP)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert (finding.fd, finding.connections) == (7, (0,))


def test_a_ghost_that_keeps_it_spinning_is_one_finding() -> None:
    """The registration outlived its descriptor: ghost-epoll-event says why, and event-loop-spin nothing more."""
    script = loop(EPOLLIN)
    script.event(100, 100, Call.dup, fd=7, ret=9)
    script.event(100, 100, Call.close, fd=7)
    findings, _, _ = run_rules(turns(script, EPOLLIN).session(), select=[SLUG, "ghost-epoll-event"])
    assert [finding.rule for finding in findings] == ["ghost-epoll-event"]


def test_the_mend_speaks_of_the_call_that_is_made(run: Run) -> None:
    script = loop()
    for number in range(TURNS):
        script.event(100, 100, Call.poll, 0, 1, 1000, ret=1, poll=[(7, 1, 0x11)], at=S + number * STEP)
    (finding,) = run(script.ends(3 * S).session(), SLUG)
    assert finding.remedy.startswith("On POLLHUP")
