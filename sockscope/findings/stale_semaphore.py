"""A semaphore of an earlier run was taken over, with the value it had then.

What it reports:
    A named semaphore (a file /dev/shm/sem.NAME) that a process opened, or has mapped, although the file is older than
    every process that uses it, than all their parents among the target, and nobody else alive had it: left by a run
    that has ended. Its value is told.

Why it matters:
    sem_open with O_CREAT and without O_EXCL takes a semaphore that exists as it is, and ignores the value it is given
    then. If the former owner was killed inside the critical section the value is 0: sem_wait blocks forever, and no
    restart mends it. If posts were left over, more get in than should. A warning, not an error: whether the value is
    wrong only the program knows. Likely where the value was 0 when it was opened; otherwise possible.

Evidence:
    The open that succeeded without O_CREAT (so glibc's sem_open begins), the time of the file in /dev/shm, the births
    of the processes that map it (/proc/PID/maps of every process is looked through at the start and at the end).
    Attached late: the same without the open, and with the value of that moment.

Example:
    `openat("/dev/shm/sem.jobs", O_RDWR|O_NOFOLLOW) = 5`: made two hours before the process was born, value 0.

Mend:
    Where one process owns the semaphore: sem_unlink before sem_open at the start, or O_CREAT|O_EXCL and on EEXIST
    sem_unlink and again; and sem_unlink at the end. Better still, an unnamed semaphore in memory shared by fork
    (sem_init with pshared): it ends with its processes.

False positives:
    A semaphore that is meant to outlive its processes (made once by a setup step, or kept on purpose) looks the same;
    the ten seconds by which the file must be older let a setup step of the same start pass, not one of the boot.
    One that somebody else has mapped is in use, not stale. One that the target removed first is a new one. musl names
    the files without `sem.`: they are not seen.

References:
    sem_open(3), sem_unlink(3), sem_overview(7); glibc nptl/sem_open.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Session
from sockscope.findings.shared.evidence import NS_PER_S, from_event, from_proc, kept, listed, since_start, span, who
from sockscope.findings.shared.shared_files import SEMAPHORES, opened, unlinked
from sockscope.model.calls import CallGroup
from sockscope.model.facts import SegmentKind
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="stale-semaphore",
    severity=Severity.WARNING,
    summary="sem_open took over a semaphore of an earlier run, and its value",
    groups=frozenset({CallGroup.MEMORY}),
    bears_loss=True,
)

_SETUP_NS = 10 * NS_PER_S
"""What was made so shortly before the process belongs to its start: a setup step, or the parent of a daemon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One semaphore that was there before everybody who uses it.

    Attributes:
        made_ns: CLOCK_MONOTONIC of the file's mtime, which using it does not change.
        tgid: who took it over. born_ns: when that one began.
        value: -1 where it could not be read. value_ns: when it was read.
        event: the open; -1 where that was before the watching.
        users: everybody of the target that has it.
    """

    path: str
    made_ns: int
    tgid: int
    born_ns: int
    value: int
    value_ns: int
    event: int
    users: tuple[int, ...]


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a semaphore."""
    rows = session.facts.segments
    rows = rows[rows["kind"] == SegmentKind.SEMAPHORE]
    if not len(rows):
        if not len(session.facts.processes) and opened(session, SEMAPHORES):
            yield Skip(rule=RULE.slug, reason="a named semaphore was opened, but nobody looked at /dev/shm")
        return
    opens = opened(session, SEMAPHORES)
    removals = unlinked(session, SEMAPHORES)
    births = _births(session)
    for number in np.unique(rows["id"]).tolist():
        case = _judge(session, rows[rows["id"] == number], opens, removals, births)
        if case is not None:
            yield _finding(session, case)


def _births(session: Session) -> dict[int, int]:
    """When each process began, where that is known. CLOCK_MONOTONIC."""
    known = {one.tgid: one.started_ns for one in session.seed.processes if one.started_ns is not None}
    return known | {one.tgid: one.started_ns for one in session.processes.values() if one.started_ns is not None}


def _judge(
    session: Session,
    rows: npt.NDArray[np.void],
    opens: dict[str, list[int]],
    removals: dict[str, list[int]],
    births: dict[int, int],
) -> _Case | None:
    rows = rows[np.argsort(rows["time_ns"], kind="stable")]
    path = rows["path"][0].decode("utf-8", "backslashreplace")
    mapping = set(rows["tgid"].tolist()) - {-1}
    if not mapping <= session.processes.keys():
        return None
    taken = _first_open(session, opens.get(path, []), removals.get(path, []))
    users = mapping | ({int(session.events.records["tgid"][taken])} if taken >= 0 else set())
    if not users:
        return None
    family = {parent for tgid in users for parent in _line(session, tgid)}
    if not family <= births.keys():
        return None
    offset_ns = session.info.started_realtime_ns - session.info.started_ns
    made_ns = int(rows["changed_realtime_ns"].min()) - offset_ns
    if made_ns + _SETUP_NS > min(births[tgid] for tgid in family):
        return None
    tgid = int(session.events.records["tgid"][taken]) if taken >= 0 else min(mapping, key=lambda one: births[one])
    return _Case(
        path=path,
        made_ns=made_ns,
        tgid=tgid,
        born_ns=births[tgid],
        value=int(rows["value"][0]),
        value_ns=int(rows["time_ns"][0]),
        event=taken,
        users=tuple(sorted(users)),
    )


def _first_open(session: Session, opens: list[int], removals: list[int]) -> int:
    """The first open that found the file as it was, -1 for none: after a removal it is another one."""
    removed_ns = min((int(session.effective_ns[event]) for event in removals), default=None)
    if not opens or (removed_ns is not None and int(session.effective_ns[opens[0]]) > removed_ns):
        return NO_ID
    return opens[0]


def _line(session: Session, tgid: int) -> list[int]:
    """The process and its parents, as far as they belong to the target: any of them may have made the semaphore."""
    line: list[int] = []
    while tgid in session.processes and tgid not in line:
        line.append(tgid)
        tgid = session.processes[tgid].parent
    return line


def _finding(session: Session, case: _Case) -> Finding:
    name = "/" + case.path.removeprefix(SEMAPHORES)
    age = span(case.born_ns - case.made_ns)
    witnessed = case.event >= 0
    at_open = witnessed and case.value_ns < int(session.effective_ns[case.event])
    stuck = at_open and case.value == 0
    took = (
        f"{who(session, case.tgid)} opened it at {since_start(session, int(session.effective_ns[case.event]))}"
        if witnessed
        else f"{who(session, case.tgid)} has it mapped"
    )
    with_others = [who(session, tgid) for tgid in case.users if tgid != case.tgid]
    shared = f" ({listed(with_others)} too)" if with_others else ""
    value = _value(case, at_open=at_open)
    return Finding(
        rule=RULE.slug,
        severity=Severity.WARNING,
        confidence=Confidence.LIKELY if stuck else Confidence.POSSIBLE,
        title=f"semaphore {name} was left by an earlier run"
        + (f": its value {'was' if at_open else 'is'} {case.value}" if case.value >= 0 else ""),
        tgid=case.tgid,
        comm=session.comm(case.tgid),
        explanation=(
            f"{case.path} was made {age} before the first process that uses it was born, by one that has ended; {took}"
            f"{shared}, and nobody else has it. {value} "
            "sem_open with O_CREAT and without O_EXCL takes over what exists and ignores the value it is given."
        ),
        remedy=(
            f'Call sem_unlink("{name}") before sem_open at the start and again at the end, or sem_open with '
            "O_CREAT|O_EXCL and, where that fails with EEXIST, sem_unlink and again."
        ),
        evidence=kept(_evidence(session, case, age)),
    )


def _value(case: _Case, *, at_open: bool) -> str:
    if case.value < 0:
        return "Its value could not be read."
    if not at_open:
        return f"Its value is {case.value}: what the earlier run left, and what was waited and posted since."
    if case.value == 0:
        return "Its value was 0: a sem_wait blocks until somebody posts, and whoever held it is gone."
    return f"Its value was {case.value}, as the earlier run left it."


def _evidence(session: Session, case: _Case, age: str) -> Iterator[Evidence]:
    if case.event >= 0:
        yield from_event(session, case.event, f"there already: made {age} before this process was born")
    value = f", value {case.value}" if case.value >= 0 else ""
    yield from_proc(case.value_ns, f"{case.path}: made {span(case.value_ns - case.made_ns)} ago{value}")
    if case.event < 0:
        mapped = ", ".join(who(session, tgid) for tgid in case.users)
        yield from_proc(case.value_ns, f"/proc/PID/maps: {case.path} is mapped by {mapped} and nobody else")
