"""zombie-children: who is not waited for, and which zombies are no fault."""

from __future__ import annotations

import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.facts import Relation
from sockscope.model.findings import Confidence, Finding, Severity
from tests.analysis.builders import Script
from tests.findings.conftest import MS, Run, S, server

SLUG = "zombie-children"
SIGCHLD, SIGTERM = 17, 15
EAGAIN, ECHILD = -11, -10


def looks(script: Script, *times: int, **more: object) -> None:
    """The parent, as /proc shows it at each of these."""
    for at in times:
        script.look(100, at=at, **more)  # type: ignore[arg-type]


def zombie(script: Script, tgid: int, *times: int, **more: object) -> None:
    for at in times:
        script.look(tgid, at=at, ppid=100, state="Z", **more)  # type: ignore[arg-type]


def forked(script: Script, count: int, first: int = 200) -> None:
    """Children that come and go, every 100 ms, from +0.1 s on."""
    for number in range(count):
        at = (number + 1) * 100 * MS
        script.fork(100, first + number, at=at)
        script.exit(first + number, at=at + MS)


def leak(count: int = 5, *, end: int = 4 * S) -> Script:
    script = server()
    forked(script, count)
    looks(script, 0, S, 2 * S, end)
    for number in range(count):
        zombie(script, 200 + number, S, 2 * S, end)
    return script


def one(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


def test_never_waited_for(run: Run) -> None:
    finding = one(run(leak().ends(4 * S).session(), SLUG))
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.CERTAIN)
    assert (finding.count, finding.tgid) == (5, 100)
    assert "5 of its children" in finding.explanation
    assert "for 3.90 s" in finding.explanation
    assert "forked 4 more children since, and never called wait4 or waitid" in finding.explanation
    assert "All ended in the 4.00 s watched" in finding.explanation
    assert "state Z" in finding.evidence[0].text
    assert any("exit" in fact.text for fact in finding.evidence)
    assert "SIGCHLD is neither caught nor ignored" in " ".join(fact.text for fact in finding.evidence)


def test_all_are_fetched(run: Run) -> None:
    script = leak()
    for number in range(5):
        script.event(100, 100, Call.wait4, 2**64 - 1, 0, 1, ret=200 + number)
    looks(script, 6 * S)
    assert not run(script.ends(6 * S).session(), SLUG, least=Severity.INFO)


def test_the_last_second_does_not_count(run: Run) -> None:
    script = server()
    forked(script, 5)
    looks(script, 0, S)
    for number in range(5):
        zombie(script, 200 + number, S)
    assert not run(script.ends(S + 50 * MS).session(), SLUG, least=Severity.INFO)


def test_there_at_a_late_attach_and_nothing_since(run: Run) -> None:
    script = server()
    looks(script, 0, S, 3 * S)
    for tgid in range(200, 204):
        zombie(script, tgid, 0, S, 3 * S, relation=Relation.CHILD, comm="worker (a) b")
    finding = one(run(script.ends(3 * S).session(), SLUG, least=Severity.INFO))
    # It may fetch them when it forks next.
    assert (finding.severity, finding.confidence) == (Severity.INFO, Confidence.POSSIBLE)
    assert "worker (a) b[200], for at least 3.00 s" in finding.explanation
    assert "All were there before" in finding.explanation
    assert "never called wait4 or waitid while it was watched" in finding.explanation


def test_very_many_at_a_late_attach(run: Run) -> None:
    script = server()
    looks(script, 0, 3 * S)
    for tgid in range(200, 225):
        zombie(script, tgid, 0, 3 * S)
    finding = one(run(script.ends(3 * S).session(), SLUG))
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.LIKELY, 25)


def test_no_room_for_more(run: Run) -> None:
    script = server()
    looks(script, 0, 3 * S)
    for tgid in range(200, 225):
        zombie(script, tgid, 0, 3 * S)
    script.event(100, 100, Call.clone, ret=EAGAIN, at=2 * S)
    finding = one(run(script.ends(3 * S).session(), SLUG))
    assert finding.severity is Severity.ERROR
    assert "1 fork failed with EAGAIN" in finding.explanation


def test_a_parent_that_waits_when_it_forks_next(run: Run) -> None:
    script = server()
    forked(script, 4)
    for number in range(4):
        script.event(100, 100, Call.wait4, 200 + number, 0, 1, ret=200 + number, at=500 * MS + number)
    for tgid in range(300, 304):
        script.fork(100, tgid, at=600 * MS + tgid)
    looks(script, 0, S, 4 * S)
    for tgid in range(300, 304):
        script.exit(tgid, at=650 * MS + tgid)
        zombie(script, tgid, S, 4 * S)
    assert not run(script.ends(4 * S).session(), SLUG, least=Severity.INFO)


def test_signals_that_are_merged(run: Run) -> None:
    script = leak()
    script.event(100, 100, Call.wait4, 2**64 - 1, 0, 1, ret=300, at=900 * MS)
    looks(script, 4 * S, caught=(SIGCHLD,))
    finding = one(run(script.ends(4 * S).session(), SLUG))
    assert "one at a time" in finding.explanation
    assert "Wait in a loop" in finding.remedy


def test_others_are_fetched(run: Run) -> None:
    script = leak()
    script.event(100, 100, Call.wait4, 300, 0, 0, ret=300, at=900 * MS)
    assert "fetched 1 other, but not these" in one(run(script.ends(4 * S).session(), SLUG)).explanation


def test_a_few_helpers_among_many_that_are_fetched(run: Run) -> None:
    script = leak(3)
    for number in range(100):
        script.event(100, 100, Call.wait4, 300 + number, ret=300 + number, at=S + number * MS)
    assert not run(script.ends(4 * S).session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize("count", [1, 2])
def test_the_odd_one_does_no_harm(run: Run, count: int) -> None:
    assert not run(leak(count).ends(4 * S).session(), SLUG, least=Severity.INFO)


def test_a_first_thread_that_has_ended(run: Run) -> None:
    script = server()
    looks(script, 0, 3 * S)
    for tgid in range(200, 225):
        zombie(script, tgid, 0, 3 * S, thread_count=2)
    assert not run(script.ends(3 * S).session(), SLUG, least=Severity.INFO)


def test_children_of_a_parent_that_is_ending(run: Run) -> None:
    script = server()
    looks(script, 0)
    forked(script, 5)
    script.signal(100, SIGTERM, at=700 * MS)
    looks(script, 800 * MS, 2 * S, 4 * S)
    for number in range(5):
        zombie(script, 200 + number, 800 * MS, 2 * S, 4 * S)
    assert not run(script.ends(4 * S).session(), SLUG, least=Severity.INFO)


def test_gone_before_the_end(run: Run) -> None:
    script = leak(end=3 * S)
    looks(script, 4 * S)
    assert not run(script.ends(4 * S).session(), SLUG, least=Severity.INFO)


def test_workers_of_one_program_are_one_finding(run: Run) -> None:
    script = leak()
    script.process(101)
    script.look(101, at=0).look(101, at=4 * S)
    for tgid in range(300, 325):
        script.look(tgid, at=0, ppid=101, state="Z").look(tgid, at=4 * S, ppid=101, state="Z")
    finding = one(run(script.ends(4 * S).session(), SLUG))
    assert (finding.tgid, finding.count) == (101, 30)
    assert "The same in server[100] 5." in finding.explanation


def test_pid_1_inherits_orphans(run: Run) -> None:
    script = leak()
    looks(script, 4 * S, init_tgid=100, ns_tgid=1)
    assert "docker run --init" in one(run(script.ends(4 * S).session(), SLUG)).remedy


def test_without_facts_nothing_is_said() -> None:
    script = server()
    forked(script, 5)
    findings, skips, _ = run_rules(script.ends(4 * S).session(), select=[SLUG])
    assert not findings
    assert not skips
