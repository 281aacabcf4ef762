"""Threads and processes out of a log that numbers threads alone: who made whom, and who belongs together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import Call
from sockscope.model.constants import CLONE_THREAD
from sockscope.model.events import EVENT_DTYPE, EventFlag, Section, pack_section, unpack_sections
from sockscope.sources.syscalls.strace_log.halves import in_order_of

Rows = npt.NDArray[np.void]
Ids = npt.NDArray[np.int64]

_FORKS = (Call.clone, Call.clone3, Call.fork, Call.vfork)
_EXECS = (Call.execve, Call.execveat)
_CLONE_VFORK_VM = 0x4100
COMM_BYTES = 15


class Life(NamedTuple):
    """A thread from its beginning to its end: numbers come again in a long log. `number`: how many had it before."""

    tid: int
    number: int


class Birth(NamedTuple):
    """A child that is in the log."""

    parent: Life
    child: Life
    flags: int
    time_ns: int


@dataclass(slots=True)
class Evidence:
    """What the log's lines say of who belongs together, beside its calls.

    Attributes:
        attached: tid → how many threads strace found there.
        execs: (tid, former tid, time) of execs by another thread than the first.
        tids: who has a line in the log, if only of calls that no event is made of (a child that sleeps).
    """

    attached: dict[int, int] = field(default_factory=dict)
    execs: list[tuple[int, int, int]] = field(default_factory=list)
    tids: set[int] = field(default_factory=set)


class Tasks:
    """The tasks of a log.

    Args:
        parts: EVENT_DTYPE pieces; their tgid is filled in by `fill_tgids`.
        blob: what they refer to.

    Attributes:
        births: children that are in the log, in order of time.
        roots: tids that were there before the log begins → the process they are taken for.
        unfollowed_count: children that are not in the log.
        assumed: what was guessed, a line each.
    """

    def __init__(self, parts: Sequence[Rows], blob: bytearray, evidence: Evidence) -> None:
        self._blob = blob
        self._exits: dict[int, list[int]] = {}
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._born: dict[Life, Birth] = {}
        self._tgids: dict[Life, int] = {}
        self.births: list[Birth] = []
        self.assumed: list[str] = []
        self.unfollowed_count = 0
        special = _picked(parts, (*_FORKS, *_EXECS, Call.task_exit, Call.exit, Call.exit_group, Call.tgkill))
        self._see(parts, special)
        self._find_births(special, evidence.tids)
        self.roots = {tid: tid for tid in self._first if Life(tid, 0) not in self._born}
        self._group_roots(special, evidence)
        self._special = special
        self._former = {(tid, time_ns): former for tid, former, time_ns in evidence.execs}

    # --- who made whom --------------------------------------------------------------------------------------

    def _see(self, parts: Sequence[Rows], special: Rows) -> None:
        for part in parts:
            order = in_order_of(part["tid"].astype(np.int64))
            tids, first = np.unique(part["tid"][order], return_index=True)
            enter = part["enter_ns"][order]
            begins, ends = np.minimum.reduceat(enter, first), np.maximum.reduceat(enter, first)
            for tid, begin, end in zip(tids.tolist(), begins.tolist(), ends.tolist(), strict=True):
                self._first[tid] = min(begin, self._first.get(tid, begin))
                self._last[tid] = max(end, self._last.get(tid, end))
        ended = special[special["call"] == Call.task_exit]
        for tid, time_ns in zip(ended["tid"].tolist(), ended["enter_ns"].tolist(), strict=True):
            self._exits.setdefault(tid, []).append(time_ns)
        for times in self._exits.values():
            times.sort()

    def life(self, tid: int, time_ns: int) -> Life:
        """Which life of a number it was at this time."""
        exits = self._exits.get(tid)
        return Life(tid, bisect_left(exits, time_ns) if exits else 0)

    def _find_births(self, special: Rows, in_log: set[int]) -> None:
        made = np.isin(special["call"], _FORKS) & (special["ret"] > 0)
        made &= (special["flags"] & EventFlag.ENTERED_ONLY) == 0
        for row in special[made]:
            child, enter, leave = int(row["ret"]), int(row["enter_ns"]), int(row["exit_ns"])
            if self._last.get(child, -1) < enter and (child in self._first or child not in in_log):
                self.unfollowed_count += 1
                continue
            life = self.life(child, enter)
            first = self._first.get(child, leave) if life.number == 0 else enter
            birth = Birth(self.life(int(row["tid"]), enter), life, self._flags(row), min(leave, max(enter, first)))
            if life not in self._born and birth.parent != life:
                self._born[life] = birth
                self.births.append(birth)
        self.births.sort(key=lambda birth: birth.time_ns)

    def _flags(self, row: np.void) -> int:
        """CLONE_* of a call that made a child."""
        call = int(row["call"])
        if call == Call.clone:
            return int(row["args"][0])
        if call == Call.vfork:
            return _CLONE_VFORK_VM
        if call == Call.clone3:
            start = int(row["blob_offset"])
            for kind, _, data in unpack_sections(bytes(self._blob[start : start + int(row["blob_bytes"])])):
                if kind == Section.CLONE_ARGS and len(data) >= 8:
                    return int.from_bytes(data[:8], "little")
        return 0

    def tgid(self, life: Life) -> int:
        """The process of a thread."""
        path = []
        at = life
        while at not in self._tgids:
            path.append(at)
            birth = self._born.get(at)
            if birth is None or not birth.flags & CLONE_THREAD or birth.parent in path:
                self._tgids[at] = self.roots.get(at.tid, at.tid) if at.number == 0 and birth is None else at.tid
                break
            at = birth.parent
        for passed in path:
            self._tgids[passed] = self._tgids[at]
        return self._tgids[life]

    # --- who was there before -------------------------------------------------------------------------------

    def _group_roots(self, special: Rows, evidence: Evidence) -> None:
        """Threads of one process among those whose beginning is not in the log.

        Proof comes first (tgkill names process and thread, an exec takes its process over), then what strace said
        when it attached, then how threads end: exit(2) is for threads, exit_group(2) for processes, and who
        ends without either ends with its process.
        """
        if len(self.roots) < 2:
            return
        by_call = special["call"]
        told = special[(by_call == Call.tgkill) & (special["ret"] == 0)]
        for tgid, tid in zip(told["args"][:, 0].tolist(), told["args"][:, 1].tolist(), strict=True):
            self._join(tid, tgid, "")
        for tgid, former, _ in evidence.execs:
            self._join(former, tgid, "")
        for leader, count in evidence.attached.items():
            others = [tid for tid in sorted(self.roots) if tid > leader and self.roots[tid] == tid]
            for tid in others[: count - 1]:
                self._join(tid, leader, f"strace found {count} threads at process {leader}")
        asked = {call: set(special["tid"][by_call == call].tolist()) for call in (Call.exit, Call.exit_group)}
        groups = special[(by_call == Call.exit_group) & np.isin(special["tid"], list(self.roots))]
        leaders = sorted(zip(groups["enter_ns"].tolist(), groups["tid"].tolist(), strict=True))
        ended = special[by_call == Call.task_exit]
        for tid, time_ns, status in zip(
            ended["tid"].tolist(), ended["enter_ns"].tolist(), ended["args"][:, 0].tolist(), strict=True
        ):
            if tid not in self.roots or tid in asked[Call.exit_group] or status & 0x7F:
                continue
            if tid in asked[Call.exit]:
                lower = [root for root in self.roots if root < tid and root not in asked[Call.exit]]
                if lower:
                    self._join(tid, self.roots[max(lower)], "it ended by exit(2), as threads do")
                continue
            place = bisect_left(leaders, (time_ns, 0)) - 1
            if place >= 0:
                self._join(tid, self.roots[leaders[place][1]], f"it ended with {leaders[place][1]}")

    def _join(self, tid: int, tgid: int, guess: str) -> None:
        if tid == tgid or tid not in self.roots or self.roots[tid] != tid or tgid not in self.roots:
            return
        into = self.roots[tgid]
        if into == tid:
            return
        for other, process in list(self.roots.items()):
            if process == tid:
                self.roots[other] = into
        if guess:
            self.assumed.append(f"{tid} was taken for a thread of process {into}: {guess}")

    # --- rows -----------------------------------------------------------------------------------------------

    def fill_tgids(self, part: Rows) -> None:
        """Write the process of each event."""
        tids, which = np.unique(part["tid"], return_inverse=True)
        part["tgid"] = np.array([self.tgid(Life(tid, 0)) for tid in tids.tolist()], np.int32)[which.reshape(-1)]
        for tid in tids.tolist():
            exits = self._exits.get(tid)
            if exits and self._last[tid] > exits[0]:
                rows = np.flatnonzero(part["tid"] == tid)
                lives = np.searchsorted(np.array(exits), part["enter_ns"][rows], "left")
                numbers, which_life = np.unique(lives, return_inverse=True)
                tgids = [self.tgid(Life(tid, number)) for number in numbers.tolist()]
                part["tgid"][rows] = np.array(tgids, np.int32)[which_life.reshape(-1)]

    def events(self) -> Rows:
        """task_new, task_exec and the ends that strace was told not to print (-qq): EVENT_DTYPE."""
        rows = [
            self._event(
                Call.task_new, birth.parent, birth.time_ns, (birth.child.tid, self.tgid(birth.child), birth.flags)
            )
            for birth in self.births
        ]
        special = self._special
        done = np.isin(special["call"], _EXECS) & (special["ret"] == 0)
        done &= (special["flags"] & EventFlag.ENTERED_ONLY) == 0
        for row in special[done]:
            tid, leave = int(row["tid"]), int(row["exit_ns"])
            former = self._former.get((tid, leave), tid)
            made = self._event(Call.task_exec, self.life(tid, int(row["enter_ns"])), leave, (former, 0, 0))
            start = int(row["blob_offset"])
            sections = _exec_sections(bytes(self._blob[start : start + int(row["blob_bytes"])]))
            made["blob_offset"], made["blob_bytes"] = len(self._blob), len(sections)
            self._blob += sections
            rows.append(made)
        rows.extend(self._silent_ends(special))
        return np.concatenate(rows) if rows else np.zeros(0, EVENT_DTYPE)

    def _silent_ends(self, special: Rows) -> Iterable[Rows]:
        asked = special[np.isin(special["call"], (Call.exit, Call.exit_group))]
        done: set[Life] = set()
        for row in asked:
            life = self.life(int(row["tid"]), int(row["enter_ns"]))
            tids = [life.tid]
            if int(row["call"]) == Call.exit_group:
                tgid = self.tgid(life)
                tids += [tid for tid in self._first if self.tgid(self.life(tid, int(row["enter_ns"]))) == tgid]
            for tid in tids:
                other = self.life(tid, int(row["enter_ns"]))
                if other in done or other.number < len(self._exits.get(tid, ())):
                    continue
                done.add(other)
                status = (int(row["args"][0]) & 0xFF) << 8
                yield self._event(Call.task_exit, other, max(int(row["enter_ns"]), self._last[tid]), (status, 0, 0))

    def _event(self, call: Call, life: Life, time_ns: int, args: tuple[int, int, int]) -> Rows:
        made = np.zeros(1, EVENT_DTYPE)
        made["call"], made["tid"], made["tgid"] = call, life.tid, self.tgid(life)
        made["enter_ns"] = made["exit_ns"] = time_ns
        made["args"][0, :3] = args
        return made


def _exec_sections(blob: bytes) -> bytes:
    """PATH and COMM of a task_exec, from what execve was called with."""
    path = next((data for kind, _, data in unpack_sections(blob) if kind == Section.PATH), b"")
    comm = path.rpartition(b"/")[2][:COMM_BYTES]
    return (pack_section(Section.PATH, path) + pack_section(Section.COMM, comm)) if path else b""


def _picked(parts: Sequence[Rows], calls: tuple[Call, ...]) -> Rows:
    """The events of these calls, copied."""
    wanted = np.zeros(1 << 16, np.bool_)
    wanted[[int(call) for call in calls]] = True
    picked = [part[wanted[part["call"]]] for part in parts]
    return np.concatenate(picked) if picked else np.zeros(0, EVENT_DTYPE)
