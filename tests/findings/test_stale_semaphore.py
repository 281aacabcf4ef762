"""stale-semaphore: taken over from a run that is gone; and those that somebody made, has, or removed."""

from __future__ import annotations

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.facts import SegmentKind
from sockscope.model.findings import Confidence, Severity
from tests.analysis.builders import REALTIME_OFFSET_NS, START_NS, Script
from tests.findings.conftest import MS, Run, S

SLUG = "stale-semaphore"
PATH = "/dev/shm/sem.jobs"
O_RDWR, O_CREAT, O_EXCL = 2, 0o100, 0o200
AT_FDCWD = -100
HOUR = 3600 * S


def born(script: Script, tgid: int, at: int, *, ppid: int = 1) -> None:
    """A process that was there at attach, since `at` (relative to the start of the watching)."""
    script.process(tgid, ppid=ppid, started_ns=START_NS + at)


def semaphore(script: Script, *tgids: int, at: int, made: int, value: int = 0, number: int = 9) -> None:
    """What one look at /dev/shm shows: the file, and who maps it."""
    for tgid in (-1, *tgids):
        script.fact(
            "segments",
            at=at,
            kind=SegmentKind.SEMAPHORE,
            id=number,
            tgid=tgid,
            creator=-1,
            attach_count=-1,
            size_bytes=32,
            value=value,
            path=PATH.encode(),
            changed_realtime_ns=START_NS + REALTIME_OFFSET_NS + made,
        )


def opens(script: Script, tgid: int = 100, *, flags: int = O_RDWR, ret: int = 5, at: int | None = None) -> int:
    return script.event(tgid, tgid, Call.openat, AT_FDCWD, 0, flags, 0o600, ret=ret, path=PATH, at=at)


def test_opened_from_the_start(run: Run) -> None:
    script = Script()
    born(script, 100, -MS)
    semaphore(script, at=0, made=-HOUR)
    opens(script, at=5 * MS)
    semaphore(script, 100, at=S, made=-HOUR)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)
    assert finding.title == "semaphore /jobs was left by an earlier run: its value was 0"
    assert "made 60 min before" in finding.explanation
    assert "a sem_wait blocks until somebody posts" in finding.explanation
    assert 'sem_unlink("/jobs")' in finding.remedy


def test_attached_late(run: Run) -> None:
    script = Script()
    born(script, 100, -60 * S)
    semaphore(script, 100, at=0, made=-2 * HOUR, value=3)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert (finding.confidence, finding.tgid) == (Confidence.POSSIBLE, 100)
    assert "its value is 3" in finding.title
    assert "has it mapped, and nobody else has it" in finding.explanation


def test_a_value_that_was_there(run: Run) -> None:
    script = Script()
    born(script, 100, -MS)
    semaphore(script, at=0, made=-HOUR, value=3)
    opens(script, at=5 * MS)
    (finding,) = run(script.ends(2 * S).session(), SLUG)
    assert finding.confidence is Confidence.POSSIBLE
    assert "Its value was 3, as the earlier run left it" in finding.explanation


def test_somebody_else_has_it(run: Run) -> None:
    script = Script()
    born(script, 100, -MS)
    opens(script, at=5 * MS)
    semaphore(script, 100, 555, at=S, made=-HOUR)
    assert not run(script.ends(2 * S).session(), SLUG)


def test_made_by_the_same_start(run: Run) -> None:
    """By a setup step, or by the parent of a daemon that has ended."""
    script = Script()
    born(script, 100, -60 * S)
    semaphore(script, 100, at=0, made=-63 * S)
    assert not run(script.ends(2 * S).session(), SLUG)


def test_made_by_the_master_for_a_worker_that_came_later(run: Run) -> None:
    script = Script()
    born(script, 100, -HOUR)
    born(script, 101, -60 * S, ppid=100)
    semaphore(script, 101, at=0, made=-HOUR + S)
    assert not run(script.ends(2 * S).session(), SLUG)


def test_removed_first_and_made_anew(run: Run) -> None:
    script = Script()
    born(script, 100, -MS)
    semaphore(script, at=0, made=-HOUR)
    script.event(100, 100, Call.unlink, ret=0, path=PATH, at=5 * MS)
    opens(script, ret=-2)
    opens(script)
    semaphore(script, 100, at=S, made=6 * MS, value=1, number=10)
    assert not run(script.ends(2 * S).session(), SLUG)


def test_the_births_must_be_known(run: Run) -> None:
    script = Script().process(100)
    semaphore(script, 100, at=0, made=-HOUR)
    assert not run(script.ends(2 * S).session(), SLUG)


def test_nobody_uses_what_lies_there(run: Run) -> None:
    script = Script()
    born(script, 100, -MS)
    semaphore(script, at=0, made=-HOUR)
    assert not run(script.ends(2 * S).session(), SLUG)


def test_nobody_looked() -> None:
    script = Script().process(100)
    opens(script)
    findings, skips, _ = run_rules(script.ends(S).session(), select=[SLUG])
    assert not findings
    assert [skip.rule for skip in skips] == [SLUG]
