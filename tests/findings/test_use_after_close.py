"""use-after-close: calls on a number that the program itself has closed."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence
from tests.findings.conftest import Run, S, accept, answer, ask, server

SLUG = "use-after-close"
EBADF = -9


def test_writes_to_closed_numbers(run: Run) -> None:
    script = server()
    for number, fd in enumerate((7, 8)):
        accept(script, number, fd)
        script.event(100, 100, Call.close, fd=fd)
        for _ in range(3 + number):
            script.event(100, 100, Call.sendto, 0, 4, fd=fd, ret=EBADF)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.confidence, finding.count, finding.fd) == (Confidence.CERTAIN, 2, 8)
    assert "4 times in all" in finding.explanation
    assert "7 calls on 2 closed descriptors" in finding.explanation


def test_a_reused_number(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    script.event(100, 100, Call.close, fd=7)
    accept(script, 1, 7)
    ask(script, 1, 7)
    answer(script, 7)
    assert not run(script.ends(S).session(), SLUG)


def test_asking_is_not_using(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    script.event(100, 100, Call.close, fd=7)
    for call in (Call.fcntl, Call.getsockopt, Call.shutdown, Call.getpeername):
        script.event(100, 100, call, fd=7, ret=EBADF)
    script.event(100, 100, Call.epoll_ctl, 2, 7, fd=4, ret=EBADF)
    assert not run(script.ends(S).session(), SLUG)


def test_minus_one(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.sendto, 0, 4, fd=-1, ret=EBADF)
    assert not run(script.ends(S).session(), SLUG)


def test_what_exec_closed_was_not_closed_by_the_program(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.accept4, 0, 0, 0o2000000, fd=3, ret=7)
    script.exec(100)
    script.event(100, 100, Call.sendto, 0, 4, fd=7, ret=EBADF)
    assert not run(script.ends(S).session(), SLUG)
