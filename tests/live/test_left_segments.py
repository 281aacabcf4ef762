"""Shared memory that a watched program leaves behind."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockscope.model.findings import Confidence, Finding, Severity
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import record
from tests.live.engines import BOTH, need

pytestmark = [pytest.mark.live, pytest.mark.parametrize("engine", BOTH)]

LEAVES = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(0, 8192, 0o1600)
libc.shmat(number, None, 0)
with open(sys.argv[1], "x+b") as file:
    file.truncate(4096)
    memory = mmap.mmap(file.fileno(), 4096)
if os.fork() == 0:
    os._exit(0)
os.wait()
if sys.argv[2] == "tidy":
    libc.shmctl(number, 0, None)
    os.unlink(sys.argv[1])
"""


@pytest.fixture
def name() -> Iterator[str]:
    path = f"/dev/shm/sockscope-left-{os.getpid()}"
    yield path
    Path(path).unlink(missing_ok=True)


def left_by(how: str, name: str, engine: EngineChoice, folder: Path) -> list[Finding]:
    need(engine)
    recorded = record(RecordOptions(command=(sys.executable, "-c", LEAVES, name, how), engine=engine), folder)
    found = make_report(load_session(folder, info=recorded.info)).findings
    return [finding for finding in found if finding.rule == "shared-memory-bypass"]


def test_left_behind(engine: EngineChoice, name: str, tmp_path: Path) -> None:
    (finding,) = left_by("untidy", name, engine, tmp_path / "recording")
    shmids = [int(word) for word in finding.evidence[0].text.replace(",", "").split() if word.isdecimal()][:1]
    for number in shmids:
        ctypes.CDLL(None).shmctl(number, 0, None)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.WARNING, Confidence.CERTAIN, 2)
    assert finding.title == "2 shared memory segments left behind (12288 bytes)"
    assert f"shmid {shmids[0]} and {name}" in finding.explanation


def test_removed(engine: EngineChoice, name: str, tmp_path: Path) -> None:
    assert not left_by("tidy", name, engine, tmp_path / "recording")
