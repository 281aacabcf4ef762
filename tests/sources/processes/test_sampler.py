"""The sampler of /proc: what is there when `start` returns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockscope.model.facts import SEGMENT_FACT_DTYPE
from sockscope.sources.processes import sampler
from sockscope.sources.processes.sampler import FactSampler


@pytest.fixture
def name() -> Iterator[Path]:
    path = Path(f"/dev/shm/sockscope-sampler-{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


def test_the_first_look_at_segments_is_over_before_anything_starts(name: Path) -> None:
    """A launched command goes on after that: what it makes was not there."""
    facts = FactSampler({os.getpid()})
    facts.start()
    name.write_bytes(b"later")
    first = facts.drain().segments
    last = facts.stop().segments
    assert first.dtype == SEGMENT_FACT_DTYPE
    assert bytes(name) not in first["path"].tolist()
    assert bytes(name) in last["path"].tolist()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_look_that_fails_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(sampler, "read_segments", fails)
    facts = FactSampler({os.getpid()})
    facts.start()
    assert len(facts.stop().processes)
