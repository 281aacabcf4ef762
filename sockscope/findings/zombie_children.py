"""Exited children that nobody waits for.

What it reports:
    Children of a server that have ended and stay in state Z (zombie), because their parent never asks how they
    ended: how many, since when, how many more came while watching, and how the parent waits, if it does.

Why it matters:
    Each keeps its number and its place in the process table. A server that forks for each connection runs into
    its limit (RLIMIT_NPROC, the container's pids.max) after days or weeks: then fork fails with EAGAIN, and
    nobody is served any more. It is a warning as long as there is room (a zombie has no memory and no
    descriptors), an error once fork has failed.

Evidence:
    State Z in samples of /proc at least a second apart; where they were seen, the child's end, the parent's forks
    after it, and every wait4 or waitid of the parent. Certain where the parent went on forking after the
    death and did not fetch it.

Example:
    5 children of server[811] have ended and are not waited for, the oldest for 1.6 s. It forked 4 more since,
    and never called wait4 or waitid.

Mend:
    Call waitpid(-1, &status, WNOHANG) until it returns 0 or fails: once a turn of the main loop, or at SIGCHLD.
    Once a SIGCHLD is not enough: signals that come together are merged into one. Where nobody wants to know the
    statuses, ignore SIGCHLD (SIG_IGN or SA_NOCLDWAIT): then there are no zombies.

False positives:
    A child that ended within the last second may still be waited for. Parents that ignore SIGCHLD, or set
    SA_NOCLDWAIT, leave none. A parent that waits when it forks next leaves some while it is idle: it is silent where
    nothing was forked since. A program whose first thread has ended shows Z, too, and lives. Children that wait
    in turn for a parent that is ending are not counted: only what was there before it was asked to. One or two
    helpers that ended long ago do no harm, and are not told; nor are they where many others were fetched.

References:
    wait(2) NOTES "zombie", sigaction(2) SA_NOCLDWAIT, signal(7), getrlimit(2) RLIMIT_NPROC, pid_namespaces(7).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.replay.control import Flags
from sockscope.analysis.session import Ids, Session
from sockscope.analysis.stops.proc_facts import ENDING, SIGCHLD, Rows, has_signal, is_init, named, rows_of, signals_to
from sockscope.findings.shared.evidence import (
    GRACE_NS,
    NS_PER_S,
    from_event,
    from_proc,
    kept,
    listed,
    plural,
    program,
    since_start,
    span,
    who,
)
from sockscope.model.calls import Call, CallGroup
from sockscope.model.findings import Confidence, Evidence, Finding, Rule, Severity, Skip
from sockscope.model.ids import NO_ID

RULE = Rule(
    slug="zombie-children",
    severity=Severity.WARNING,
    summary="exited children that nobody waits for",
    groups=frozenset({CallGroup.TASKS}),
    bears_loss=True,
)

_SOME = 3
_MANY = 20
"""So many are no rest that the next fork will fetch."""
_FETCHED_SHARE = 10
"""Where ten times as many were fetched, those that are left were left on purpose, or do not matter."""
_SLACK_NS = NS_PER_S // 10
"""A parent that forks so soon after a death may not know of it."""
_EAGAIN = -11
_P_ALL = 0
_FORKS = (Call.fork, Call.vfork, Call.clone, Call.clone3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dead:
    """A zombie of the last look.

    Attributes:
        since_ns: when it ended, or was first seen so.
        exit_event: its end; -1 where that was not witnessed.
        is_fresh: it ended while we watched.
        was_left: its parent forked again after its end.
    """

    tgid: int
    since_ns: int
    exit_event: int
    is_fresh: bool
    was_left: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parent:
    """A process and those it does not wait for.

    Attributes:
        dead: oldest first.
        looked_ns: the last look at it before it was asked to end.
        forks: task_new events of it, in order.
        fetched: waits that returned a child. any_child: of these, those that would have taken any.
        failed_forks: fork and clone that failed with EAGAIN.
    """

    tgid: int
    dead: tuple[_Dead, ...]
    looked_ns: int
    forks: Ids
    fetched: Ids
    any_child: Ids
    failed_forks: Ids

    @property
    def fresh(self) -> list[_Dead]:
        return [one for one in self.dead if one.is_fresh]

    @property
    def left(self) -> list[_Dead]:
        return [one for one in self.dead if one.was_left]

    @property
    def leaks(self) -> bool:
        """It was seen to go on without them, and they are more than the odd one."""
        fresh = [one for one in self.left if one.is_fresh]
        return len(self.dead) >= _SOME and len(fresh) >= 2 and len(fresh) * _FETCHED_SHARE >= len(self.fetched)


def check(session: Session, explained: frozenset[int]) -> Iterator[Finding | Skip]:
    """One finding a program."""
    groups: defaultdict[str, list[_Parent]] = defaultdict(list)
    for parent in _parents(session):
        if _severity(parent) is not None:
            groups[program(session, parent.tgid)].append(parent)
    for parents in groups.values():
        yield _finding(session, parents)


def _parents(session: Session) -> Iterator[_Parent]:
    facts = session.facts.processes
    # The first thread of a process that lives on shows Z as well; it is not alone.
    zombies = facts[(facts["state"] == b"Z") & (facts["thread_count"] <= 1)]
    asked_ns: dict[int, int] = {}
    for _, tgid, time_ns in signals_to(session, ENDING) if len(zombies) else ():
        asked_ns.setdefault(tgid, time_ns)
    for tgid in np.unique(zombies["ppid"]).tolist():
        own = rows_of(session, tgid)
        own = own[(own["time_ns"] < asked_ns.get(tgid, session.info.ended_ns + 1)) & (own["state"] != b"Z")]
        if not len(own):
            continue
        looked_ns, first_ns = int(own["time_ns"][-1]), int(own["time_ns"][0])
        mine = zombies[(zombies["ppid"] == tgid) & (zombies["time_ns"] >= first_ns)]
        events = session.events_of_tgid(tgid)
        calls = session.events.records["call"][events]
        forks = events[calls == Call.task_new]
        forks = forks[session.events.records["args"][forks, 1].astype(np.int64) != tgid]
        waits = events[(calls == Call.wait4) | (calls == Call.waitid)]
        failed = events[np.isin(calls, _FORKS)]
        dead = tuple(_dead(session, mine, looked_ns, _second_look(own), forks))
        if not dead:
            continue
        fetched = waits[_took_one(session, waits)]
        yield _Parent(
            tgid=tgid,
            dead=dead,
            looked_ns=looked_ns,
            forks=forks,
            fetched=fetched,
            any_child=fetched[_takes_any(session, fetched)],
            failed_forks=failed[session.events.records["ret"][failed] == _EAGAIN],
        )


def _second_look(own: Rows) -> int:
    """A child that was dead already at the first look was dead before we came."""
    return int(own["time_ns"][1]) if len(own) > 1 else int(own["time_ns"][0]) + 1


def _dead(
    session: Session,
    rows: Rows,
    looked_ns: int,
    second_ns: int,
    forks: Ids,
) -> Iterator[_Dead]:
    """Those still there at the last look, and for longer than a busy parent takes."""
    last_fork_ns = int(session.effective_ns[forks[-1]]) if len(forks) else -1
    rows = rows[np.argsort(rows["time_ns"], kind="stable")]
    tgids, firsts, of_row = np.unique(rows["tgid"], return_index=True, return_inverse=True)
    lasts = np.zeros(len(tgids), np.int64)
    np.maximum.at(lasts, of_row, rows["time_ns"])
    # In a look, parents come before their children.
    there = lasts >= looked_ns
    found = []
    for tgid, first_ns in zip(tgids[there].tolist(), rows["time_ns"][firsts[there]].tolist(), strict=True):
        process = session.processes.get(tgid)
        ended_ns = process.exited_ns if process is not None and process.exited_ns is not None else None
        since_ns = min(first_ns, ended_ns) if ended_ns is not None else first_ns
        if looked_ns - since_ns >= GRACE_NS:
            found.append(
                _Dead(
                    tgid=tgid,
                    since_ns=since_ns,
                    exit_event=_exit_event(session, tgid) if ended_ns is not None else NO_ID,
                    is_fresh=ended_ns is not None or first_ns >= second_ns,
                    was_left=last_fork_ns > since_ns + _SLACK_NS,
                )
            )
    yield from sorted(found, key=lambda one: one.since_ns)


def _exit_event(session: Session, tgid: int) -> int:
    events = session.events_of_tgid(tgid)
    exits = events[session.events.records["call"][events] == Call.task_exit]
    return int(exits[-1]) if len(exits) else NO_ID


def _took_one(session: Session, waits: Ids) -> Flags:
    """wait4 gives the child's number; waitid 0, also where there was none (WNOHANG)."""
    records = session.events.records
    by_id: Flags = records["call"][waits] == Call.waitid
    ret = records["ret"][waits]
    took: Flags = np.where(by_id, ret == 0, ret > 0)
    return took


def _takes_any(session: Session, waits: Ids) -> Flags:
    records = session.events.records
    of_all = records["args"][waits, 0].astype(np.uint32).astype(np.int32)
    by_id = records["call"][waits] == Call.waitid
    any_child: Flags = np.where(by_id, of_all == _P_ALL, of_all == -1)
    return any_child


def _severity(parent: _Parent) -> Severity | None:
    """None: it may well wait for them yet, or they do no harm."""
    many = len(parent.dead) >= _MANY
    if many and len(parent.failed_forks):
        return Severity.ERROR
    if parent.leaks or many:
        return Severity.WARNING
    if len(parent.dead) < _SOME or (not parent.left and len(parent.fetched)):
        return None
    return Severity.INFO if len(parent.dead) * _FETCHED_SHARE >= len(parent.fetched) else None


def _confidence(parent: _Parent) -> Confidence:
    if parent.leaks:
        return Confidence.CERTAIN
    return Confidence.LIKELY if len(parent.dead) >= _MANY else Confidence.POSSIBLE


def _finding(session: Session, parents: list[_Parent]) -> Finding:
    parents.sort(key=lambda parent: -len(parent.dead))
    worst = parents[0]
    count = sum(len(parent.dead) for parent in parents)
    children = plural(count, "exited child", "exited children")
    places = "" if len(parents) == 1 else f" in {len(parents)} processes"
    return Finding(
        rule=RULE.slug,
        severity=max(_severity(parent) or Severity.INFO for parent in parents),
        confidence=_confidence(worst),
        title=f"{children} that nobody waits for{places}",
        tgid=worst.tgid,
        comm=session.comm(worst.tgid),
        explanation=_explanation(session, worst, parents),
        remedy=_remedy(session, worst),
        count=count,
        evidence=kept(_evidence(session, worst)),
    )


def _explanation(session: Session, worst: _Parent, parents: list[_Parent]) -> str:
    dead, oldest = worst.dead, worst.dead[0]
    name = who(session, worst.tgid)
    many = len(dead) > 1
    age = span(worst.looked_ns - oldest.since_ns)
    told = (
        f"{name} has not asked how {len(dead)} of its children ended, so {'they stay zombies' if many else 'it stays'}"
        f"{'; the oldest, ' if many else ' a zombie: '}{named(session, oldest.tgid)}, for "
        f"{age if oldest.is_fresh else 'at least ' + age}. "
    )
    told += f"{_how_it_waits(session, worst)} "
    before = len(dead) - len(worst.fresh)
    if worst.fresh:
        watched = span(worst.looked_ns - session.info.started_ns)
        told += f"{len(worst.fresh) if before else 'All'} ended in the {watched} watched"
        told += f", {before} were there before. " if before else ". "
    elif before:
        told += "All were there before the watching began. "
    if len(worst.failed_forks):
        told += f"{plural(len(worst.failed_forks), 'fork')} failed with EAGAIN since: there is no room for more. "
    if len(parents) > 1:
        others = listed(f"{who(session, parent.tgid)} {len(parent.dead)}" for parent in parents[1:])
        told += f"The same in {others}. "
    return told.rstrip()


def _how_it_waits(session: Session, parent: _Parent) -> str:
    since_ns = parent.dead[0].since_ns
    later = int((session.effective_ns[parent.forks] > since_ns).sum())
    forked = f"It forked {plural(later, 'more child', 'more children')} since, and " if later else "It "
    if len(parent.any_child) and _catches(session, parent):
        fetched = plural(len(parent.any_child), "child", "children")
        return (
            f"{forked}fetched {fetched}, one at a time: signals that come together are one SIGCHLD, "
            "so a single wait for each misses some."
        )
    if len(parent.fetched):
        return f"{forked}fetched {plural(len(parent.fetched), 'other')}, but not these."
    if not session.info.syscalls.engine:
        return "Whether it ever waits was not watched."
    return f"{forked}never called wait4 or waitid{'' if later else ' while it was watched'}."


def _catches(session: Session, parent: _Parent) -> bool:
    return has_signal(rows_of(session, parent.tgid)[-1]["sig_caught"], SIGCHLD)


def _remedy(session: Session, parent: _Parent) -> str:
    loop = "while (waitpid(-1, NULL, WNOHANG) > 0);"
    if len(parent.any_child) and _catches(session, parent):
        return f"Wait in a loop at each SIGCHLD, until there is none left: {loop}"
    caught = "in its handler of SIGCHLD" if _catches(session, parent) else "at SIGCHLD, or once a turn of the main loop"
    told = (
        f"Fetch them {caught}: {loop} (Python: os.waitpid(-1, os.WNOHANG), or poll() and join() of what started "
        "them). Where nobody wants the statuses: signal(SIGCHLD, SIG_IGN) before the first fork."
    )
    if is_init(rows_of(session, parent.tgid)[-1]):
        told += " As PID 1 it also inherits other processes' orphans: docker run --init (tini) takes care of them."
    return told


def _evidence(session: Session, parent: _Parent) -> Iterator[Evidence]:
    oldest = parent.dead[0]
    seen = span(parent.looked_ns - oldest.since_ns)
    some = listed((str(one.tgid) for one in parent.dead[1:]), 8)
    state = "state Z (zombie)" if len(parent.dead) == 1 else f"state Z (zombie), like {some}"
    facts = f"{named(session, oldest.tgid)}: {state}; child of {parent.tgid}; since {seen}"
    yield from_proc(parent.looked_ns, facts)
    if oldest.exit_event != NO_ID:
        process = session.processes[oldest.tgid]
        if process.start_event != NO_ID:
            yield from_event(session, process.start_event, "forked")
        at = since_start(session, parent.looked_ns)
        yield from_event(session, oldest.exit_event, f"ended; still there at {at}")
    later = parent.forks[session.effective_ns[parent.forks] > oldest.since_ns + _SLACK_NS]
    if len(later):
        yield from_event(session, int(later[-1]), "it went on forking")
    if len(parent.fetched):
        yield from_event(session, int(parent.fetched[-1]), "fetched another")
    if len(parent.failed_forks):
        yield from_event(session, int(parent.failed_forks[-1]), "no room for another process")
    own = rows_of(session, parent.tgid)[-1]
    how = "caught" if has_signal(own["sig_caught"], SIGCHLD) else "neither caught nor ignored"
    yield from_proc(int(own["time_ns"]), f"{who(session, parent.tgid)}: SIGCHLD is {how}")
