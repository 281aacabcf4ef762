"""Sessions played in the background, a few at a time: most of a play is waiting.

Every play has a process of its own, as a user's has, where it is recorded and judged; the tests ask what came of it.
Tests that look at the same play share it. They name the plays they need by a parameter that is a `Performance`, or a
tuple of them (tests/live/conftest.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import pytest

from sockscope import fixture
from sockscope.model.findings import Finding, Skip
from sockscope.model.info import SessionInfo
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice
from tools.excerpts import demo

MOST_PLAYERS = 3 * (os.cpu_count() or 1)
FEWEST_PLAYERS = 2
PATIENCE_S = 110.0
PR_SET_PDEATHSIG = 1

Outcome = TypeVar("Outcome", covariant=True)


@runtime_checkable
class Performance(Protocol[Outcome]):
    """What can be played in a process of its own: small, hashable, picklable, and so is what comes of it."""

    @property
    def engine(self) -> EngineChoice: ...

    def perform(self, folder: Path) -> Outcome:
        """In a process of the pool: record into `folder`, and judge."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was said of a play.

    Attributes:
        findings, skipped, info: of the recording, read again.
        printed: what `sockscope demo` printed; empty where the play was no demo.
        told: the rules that it told of.
    """

    findings: tuple[Finding, ...]
    skipped: tuple[Skip, ...]
    info: SessionInfo
    printed: str = ""
    told: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fixture's program, watched."""

    slug: str
    mode: str
    program: str
    engine: EngineChoice

    @property
    def is_demo(self) -> bool:
        """It is what `sockscope demo SLUG` plays, where bpf is to be had."""
        loaded = fixture.load(self.slug)
        engine = loaded.engines[0] if len(loaded.engines) == 1 else EngineChoice.BPF
        return (self.program, self.mode, self.engine) == ("faulty", loaded.modes[0], engine)

    def perform(self, folder: Path) -> Verdict:
        loaded, printed, told = fixture.load(self.slug), "", frozenset[str]()
        if loaded.check:
            with fixture.Play(loaded, self.program) as trial:
                trial.need()
        if self.is_demo:
            document = folder.with_suffix(".json")
            printed = demo(self.slug, "--output", str(folder), "--json", str(document))
            told = frozenset(each["rule"] for each in json.loads(document.read_text())["findings"])
        else:
            fixture.rehearse(loaded, folder, program=self.program, mode=self.mode, engine=self.engine)
        report = make_report(load_session(folder))
        return Verdict(findings=report.findings, skipped=report.skipped, info=report.info, printed=printed, told=told)

    def __str__(self) -> str:
        return f"{self.slug}-{self.mode}-{self.program}-{self.engine.value}"


def play(case: Performance[Outcome], folder: Path) -> Outcome:
    """In a process of the pool."""
    return case.perform(folder)


def players() -> int:
    """How many at once: a machine that is busy with other things gets fewer."""
    return max(FEWEST_PLAYERS, MOST_PLAYERS - int(os.getloadavg()[0]))


def come_on() -> None:
    """A player ends with the tests, however these end, and its plays inherit nothing of the pool.

    multiprocessing leaves its pipes inheritable, at other numbers in each player: what a play launches would get them.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for name in os.listdir("/proc/self/fd"):
        # That of the listing itself is closed by now.
        with contextlib.suppress(OSError):
            if int(name) > 2:
                os.set_inheritable(int(name), False)


def pool(count: int) -> ProcessPoolExecutor:
    # Spawned, not forked: pytest has threads.
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=come_on)


class Rehearsals:
    """All plays asked for, begun at once in the order given. Leaving the context ends what has not begun.

    Args:
        cases: what will be asked for.
        folder: recordings go into folders of it.
    """

    def __init__(self, cases: Iterable[Performance[Any]], folder: Path) -> None:
        self._pool = pool(players())
        self._folders = {case: folder / str(case) for case in cases}
        self._plays: dict[Performance[Any], Future[Any]] = {
            case: self._pool.submit(play, case, place) for case, place in self._folders.items()
        }

    def outcome(self, case: Performance[Outcome]) -> Outcome:
        """What came of a play, once it is over; raises what the play raised. Skips where this machine refuses it."""
        try:
            outcome: Outcome = self._plays[case].result(PATIENCE_S)
        except fixture.PlayRefusedError as refused:
            pytest.skip(refused.message)
        return outcome

    def recording(self, case: Performance[Outcome]) -> Path:
        """Where a play was recorded, once it is over; to be read only."""
        self.outcome(case)
        return self._folders[case]

    def again(self, case: Performance[Outcome]) -> None:
        """Play once more, by a player of its own: what comes of that takes the place of what came before."""
        # Tests may share a play, and each may want it again.
        self._folders[case] = self._folders[case].with_name(f"{self._folders[case].name}-again")
        with pool(1) as player:
            self._plays[case] = player.submit(play, case, self._folders[case])

    def __enter__(self) -> Rehearsals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
