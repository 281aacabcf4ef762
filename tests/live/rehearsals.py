"""Fixtures played in the background, a few at a time: most of a play is waiting.

Every play has a process of its own, as a user's has. What is recorded is judged when a test asks for it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sockscope import fixture
from sockscope.model.findings import Finding, Skip
from sockscope.model.info import SessionInfo
from sockscope.pipeline.analyze import load_session, make_report
from sockscope.pipeline.options import EngineChoice

PLAYERS = 2 * (os.cpu_count() or 1)
PATIENCE_S = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One play."""

    slug: str
    mode: str
    program: str
    engine: EngineChoice

    def __str__(self) -> str:
        return f"{self.slug}-{self.mode}-{self.program}-{self.engine.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was said of a play."""

    findings: tuple[Finding, ...]
    skipped: tuple[Skip, ...]
    info: SessionInfo


def play(case: Case, folder: Path) -> None:
    """In a process of the pool: record one play."""
    fixture.rehearse(fixture.load(case.slug), folder, program=case.program, mode=case.mode, engine=case.engine)


class Rehearsals:
    """All plays asked for, begun at once in the order given. Leaving the context ends what has not begun.

    Args:
        cases: what `verdict` will be asked of.
        folder: recordings go into folders of it.
    """

    def __init__(self, cases: Iterable[Case], folder: Path) -> None:
        self._folder = folder
        # Spawned, not forked: pytest has threads.
        self._pool = ProcessPoolExecutor(PLAYERS, mp_context=multiprocessing.get_context("spawn"))
        self._plays: dict[Case, Future[None]] = {
            case: self._pool.submit(play, case, folder / str(case)) for case in dict.fromkeys(cases)
        }
        self._verdicts: dict[Case, Verdict] = {}

    def verdict(self, case: Case) -> Verdict:
        """What is said of a play, once it is over; raises what the play raised."""
        if case not in self._verdicts:
            self._plays[case].result(PATIENCE_S)
            report = make_report(load_session(self._folder / str(case)))
            self._verdicts[case] = Verdict(findings=report.findings, skipped=report.skipped, info=report.info)
        return self._verdicts[case]

    def __enter__(self) -> Rehearsals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
