"""The flight recorder: holds the last moments, writes them when a finding fires, when asked to, and at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from sockscope.errors import UsageError
from sockscope.model.events import Events
from sockscope.model.facts import Facts
from sockscope.model.info import SessionInfo
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets
from sockscope.pipeline import clock
from sockscope.pipeline.flight_check import Checked, Checker, Fired
from sockscope.pipeline.flight_dump import Shot, dump_info, write
from sockscope.pipeline.options import Alarm
from sockscope.recording import layout
from sockscope.recording.keep import Kept, KeptSockets
from sockscope.recording.keep_facts import KeptFacts
from sockscope.sources.packets.segments import open_segments

CHECK_EVERY_S = 5.0
CHECK_SHARE = 10
"""Between two checks lies ten times what the last one took: it may cost a tenth of a CPU, of those to spare."""

MOST_ALARMS = 20
"""Recordings made by findings, in one session. Each fault of a program makes one: the first, in which it began."""

_WORK = ".flight-"
_ROOM_BYTES = 64 << 20
"""With so little room left beside what a dump takes, findings are not looked for."""


@dataclass(frozen=True, slots=True)
class _Check:
    """One under way: what it will come to, and where the recording is."""

    result: Future[Checked]
    folder: Path


class FlightRecorder:
    """Takes the place of a session's `Writer`.

    Args:
        parent: where recordings go, each in a folder of its own; made if missing.
        keep_s: how long the window is.
        alarm: which findings make a recording; None: none.
        say: gets a line for the user, now.

    Raises:
        UsageError: the folder cannot be used.
    """

    def __init__(self, parent: Path, keep_s: float, alarm: Alarm | None, say: Callable[[str], None]) -> None:
        self.folder = parent
        self.problem: str | None = None
        self.lost_event_count = 0
        self.fired_count = 0
        self._parent = parent
        self._keep_s = keep_s
        self._alarm = alarm
        self._checker = Checker(alarm.select, alarm.ignore) if alarm is not None else Checker()
        self._say = say
        self._work = _work_folder(parent)
        self._spare = ThreadPoolExecutor(1, thread_name_prefix="flight-prune")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="flight-write")
        self._checking = ThreadPoolExecutor(1, thread_name_prefix="flight-check")
        self._kept = Kept(int(keep_s * 1e9), spare=self._spare)
        self._sockets = KeptSockets(int(keep_s * 1e9))
        self._facts = KeptFacts(int(keep_s * 1e9))
        self._fresh: list[Events] = []
        self._seed = Seed.empty()
        self._number = 0
        self._dumps: list[Future[None]] = []
        self._check: _Check | None = None
        self._next_check_s = time.monotonic() + CHECK_EVERY_S
        self._known_faults: set[tuple[str, str]] = set()
        self._notes: list[str] = []
        self._skipped_count = self._failed_count = 0
        self._sparse = False
        self._last_info: SessionInfo | None = None

    # --- what a Writer does ---------------------------------------------------------------------------------

    @property
    def packets_path(self) -> Path:
        """The folder of the capture's segments."""
        return self._work / "packets"

    def begin(self, info: SessionInfo, seed: Seed) -> None:
        """What was there at attach."""
        self._seed = seed
        self._kept.begin(seed)

    def add_seed(self, info: SessionInfo, later: Seed) -> None:
        """Processes that came under watch later."""
        self.begin(info, self._seed.plus(later))

    def write_events(self, events: Events) -> None:
        """Hold them; `tick` says up to when they are complete."""
        if len(events):
            self._fresh.append(events)

    def write_sockets(self, records: npt.NDArray[np.void]) -> None:
        """Hold one snapshot's rows."""
        self._sockets.add(records)

    def write_facts(self, facts: Facts) -> None:
        """Hold what /proc said since the last call."""
        self._facts.add(facts)

    def finish(self, info: SessionInfo, sockets: Sockets | None = None) -> None:
        """Write what is held as the recording of the end; then all else is cleared away."""
        for events in self._fresh:
            self._kept.add(events, 0)
        self._fresh.clear()
        if self._check is not None and self._check.result.done():
            self._look_at_check()
        for dump in self._dumps:
            dump.result()
        shot = self._shot(info, open_segments(self.packets_path, whole=True), sockets)
        self.folder = self._place("end")
        # What does not fit is told, as in any recording; the rest is there.
        self.problem = write(shot, self.folder) or None
        self._last_info = dump_info(shot)

    @property
    def info(self) -> SessionInfo:
        """Of the recording that `finish` wrote."""
        assert self._last_info is not None
        return self._last_info

    def close(self) -> None:
        """Safe to call twice. A check under way is not waited for."""
        self._checker.stop()
        for pool in (self._checking, self._writing, self._spare):
            pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._work, ignore_errors=True)

    # --- while it goes on -----------------------------------------------------------------------------------

    def tick(
        self,
        complete_ns: int,
        *,
        asked: bool,
        info: Callable[[], SessionInfo],
        cut: Callable[[], list[BinaryIO]],
    ) -> None:
        """After every batch.

        Args:
            complete_ns: up to when all events are here.
            asked: the user wants a recording now.
            info: of the session, as of now.
            cut: the packets up to now.
        """
        batch = Events.concat(self._fresh) if self._fresh else Events.empty()
        self._fresh.clear()
        # An engine that ends says that all is complete, for ever.
        self._kept.add(batch, min(complete_ns, clock.sample()[0]))
        if asked:
            self._dump_as_asked(self._shot(info(), cut(), None))
        self._dumps = [dump for dump in self._dumps if not dump.done()]
        if self._check is not None:
            if self._check.result.done():
                self._look_at_check()
        elif self._alarm is not None and time.monotonic() >= self._next_check_s:
            self._begin_check(info, cut)

    def _shot(self, info: SessionInfo, segments: list[BinaryIO], owners: Sockets | None) -> Shot:
        return Shot(
            info=info if not self._all_notes() else _with_notes(info, self._all_notes()),
            seed=self._seed,
            window=self._kept.window(),
            snapshots=self._sockets.snapshots(),
            facts=self._facts.held(),
            owners=owners,
            segments=segments,
            keep_s=self._keep_s,
        )

    def _all_notes(self) -> tuple[str, ...]:
        notes = list(self._notes)
        if self._skipped_count:
            notes.append(f"flight recorder: {self._skipped_count} times no look for findings, for want of disk space")
        if self._failed_count:
            notes.append(f"flight recorder: {self._failed_count} times the look for findings failed")
        if self._sparse:
            notes.append("flight recorder: some looks for findings were further apart than the window is long")
        return tuple(notes)

    def _dump_as_asked(self, shot: Shot) -> None:
        draft = self._draft()

        def make() -> None:
            try:
                problem = write(shot, draft)
            except OSError as error:
                problem = str(error)
            if problem:
                shutil.rmtree(draft, ignore_errors=True)
                self._tell(f"flight recorder: {problem}; going on")
                return
            self._put(draft, "sigusr1")

        self._dumps.append(self._writing.submit(make))

    def _begin_check(self, info: Callable[[], SessionInfo], cut: Callable[[], list[BinaryIO]]) -> None:
        if _free_bytes(self._parent) < self._kept.held_bytes * 2 + _ROOM_BYTES:
            self._skipped_count += 1
            self._next_check_s = time.monotonic() + CHECK_EVERY_S * CHECK_SHARE
            return
        shot, draft = self._shot(info(), cut(), None), self._draft()

        def judge() -> Checked:
            try:
                problem = write(shot, draft)
                return Checked(problem=problem) if problem else self._checker.check(draft)
            except OSError as error:
                # No process to be had, for one: the session goes on.
                return Checked(problem=str(error))

        self._check = _Check(self._checking.submit(judge), draft)

    def _look_at_check(self) -> None:
        assert self._check is not None
        assert self._alarm is not None
        done, self._check = self._check, None
        checked = done.result.result()
        pause_s = max(CHECK_EVERY_S, checked.cost_s * CHECK_SHARE)
        self._sparse |= pause_s + checked.cost_s > max(self._keep_s, CHECK_EVERY_S * 2)
        self._next_check_s = time.monotonic() + pause_s
        if checked.problem:
            self._failed_count += 1
        loud = [one for one in checked.fired if one.severity >= self._alarm.bar]
        fresh = [one for one in loud if (one.rule, one.comm) not in self._known_faults]
        self.fired_count += len(fresh)
        self._known_faults |= {(one.rule, one.comm) for one in fresh}
        if not fresh:
            shutil.rmtree(done.folder, ignore_errors=True)
            return
        self._announce(fresh, done.folder)

    def _announce(self, fresh: list[Fired], draft: Path) -> None:
        for one in fresh:
            whose = f"{one.comm}[{one.tgid}]: " if one.tgid > 0 else ""
            self._tell(f"{one.rule}: {whose}{one.title}")
        worst = max(fresh, key=lambda one: one.severity)
        if self.fired_count - len(fresh) >= MOST_ALARMS:
            shutil.rmtree(draft, ignore_errors=True)
            self._say(f"no recording of it: {MOST_ALARMS} were written already")
            return
        self._put(draft, worst.rule)

    def _put(self, draft: Path, why: str) -> None:
        """Give a recording that is whole its name."""
        place = self._place(why)
        try:
            draft.rename(place)
        except OSError as error:
            self._tell(f"flight recorder: cannot write {place}: {error.strerror}")
            return
        self._say(f"recording written to {place}")

    def _tell(self, line: str) -> None:
        """Now, and in the notes of what is written later."""
        self._say(line)
        self._notes.append(line)
        # Days may pass: the first and the newest.
        if len(self._notes) > 2 * MOST_ALARMS:
            del self._notes[MOST_ALARMS]

    def _draft(self) -> Path:
        self._number += 1
        return self._work / f"draft-{self._number}"

    def _place(self, why: str) -> Path:
        """Where a recording goes; no two get the same."""
        stem = f"{time.strftime('%Y-%m-%dT%H%M%S')}-{why}"
        place, again = self._parent / stem, 2
        while place.exists():
            place, again = self._parent / f"{stem}-{again}", again + 1
        return place


def _with_notes(info: SessionInfo, notes: tuple[str, ...]) -> SessionInfo:
    return replace(info, notes=(*info.notes, *notes))


def _work_folder(parent: Path) -> Path:
    """A folder for what is not finished, beside what is: on the same disk. What a killed session left there goes."""
    if (parent / layout.MANIFEST).exists():
        raise UsageError(
            f"{parent} is a recording", help_text="--keep writes several: name the folder that they shall go into"
        )
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in parent.glob(f"{_WORK}*"):
            if not Path(f"/proc/{left.name.removeprefix(_WORK).partition('-')[0]}").exists():
                shutil.rmtree(left, ignore_errors=True)
        for again in range(1000):
            work = parent / f"{_WORK}{os.getpid()}-{again}"
            with contextlib.suppress(FileExistsError):
                work.mkdir(mode=0o700)
                return work
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{parent} is not a folder", help_text="name another --output") from error
    except OSError as error:
        raise UsageError(f"cannot write {parent}: {error.strerror}", help_text="name another --output") from error
    raise UsageError(f"cannot write {parent}", help_text="name another --output")


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
