"""double-close: in vain, or on somebody else's connection; and numbers that only look so."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from tests.analysis.builders import Script
from tests.findings.conftest import Run, S, accept, answer, ask, server

SLUG = "double-close"
EBADF = -9


def close(script: Script, fd: int, *, tid: int = 100, ret: int = 0, tgid: int = 100) -> int:
    return script.event(tgid, tid, Call.close, fd=fd, ret=ret)


def test_in_vain(run: Run) -> None:
    script = server()
    for number, fd in enumerate((7, 8)):
        accept(script, number, fd)
        close(script, fd)
        close(script, fd, ret=EBADF)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.CERTAIN, 2)
    assert len(finding.connections) == 2
    assert [fact.text.split("(")[0] for fact in finding.evidence] == ["server[100] close"] * 2


def another_is_hit(*, harmed: bool = True) -> Script:
    """Thread 101 closes fd 7, 100 accepts another connection as fd 7, 101 closes 7 again; 102 serves that one."""
    script = server(100, 101, 102)
    accept(script, 0, 7)
    answer(script, 7, tid=101)
    close(script, 7, tid=101)
    accept(script, 1, 7)
    ask(script, 1, 7, tid=102)
    if not harmed:
        answer(script, 7, tid=102)
    close(script, 7, tid=101)
    if harmed:
        script.event(100, 102, Call.sendto, 0, 3, fd=7, ret=EBADF)
        close(script, 7, tid=102, ret=EBADF)
    return script


def test_another_connection_is_hit(run: Run) -> None:
    session = another_is_hit().ends(S).session()
    (finding,) = run(session, SLUG)
    assert (finding.severity, finding.count) == (Severity.ERROR, 1)
    assert finding.connections == (1,)
    assert "belonged to another connection" in finding.explanation
    assert "server[100/102]" in finding.explanation
    assert not run(session, "use-after-close")


def test_a_thread_that_closes_for_all_others(run: Run) -> None:
    assert not run(another_is_hit(harmed=False).ends(S).session(), SLUG)


def test_a_reused_number_closed_by_its_owner(run: Run) -> None:
    script = server()
    for number in range(3):
        accept(script, number, 7)
        close(script, 7)
    assert not run(script.ends(S).session(), SLUG)


def test_a_sweep_over_what_there_may_be(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    close(script, 7)
    script.fork(100, 200)
    for _ in range(2):
        for fd in range(3, 32):
            close(script, fd, tgid=200, tid=200, ret=0 if fd == 3 and _ == 0 else EBADF)
    for fd in range(4, 20):
        close(script, fd, ret=EBADF)
    assert not run(script.ends(S).session(), SLUG)


def test_a_number_never_opened(run: Run) -> None:
    script = server()
    close(script, 50, ret=EBADF)
    close(script, -1, ret=EBADF)
    assert not run(script.ends(S).session(), SLUG)


def test_a_file_closed_twice_is_not_ours(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.openat, 0xFFFFFF9C, 0, 0, ret=7, path="/etc/hosts")
    close(script, 7)
    close(script, 7, ret=EBADF)
    assert not run(script.ends(S).session(), SLUG)
