"""A reader that does not read: the target waits a moment, then events are dropped and counted."""

from __future__ import annotations

import time

import pytest

from sockscope.model.calls import Call
from sockscope.sources.syscalls.engine import EngineOptions
from sockscope.sources.syscalls.ptrace import engine
from tests.sources.syscalls.ptrace_support import Program, rows

pytestmark = pytest.mark.live

WRITER = """
import os, sys
fd = os.open("/dev/null", os.O_WRONLY)
print("ready")
for i in range(int(sys.stdin.readline())):
    os.write(fd, b"x")
print("done")
sys.stdin.readline()
"""


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SEGMENT_BYTES", 1 << 20)
    monkeypatch.setattr(engine, "RECORD_MAX", 256)


@pytest.mark.usefixtures("small_buffer")
def test_the_target_goes_on_and_the_loss_is_counted() -> None:
    with Program.python(WRITER) as program:
        program.line()
        traced = engine.PtraceEngine(EngineOptions())
        traced.attach([program.pid])
        program.say("20000")
        assert program.line() == "done"
        time.sleep(0.2)
        traced.stop()
        writes = sum(len(rows(batch.events, Call.write)) for batch in traced.batches())
        traced.close()
    coverage = traced.coverage()
    assert 0 < writes < 20000
    assert coverage.lost["buffer full"] + coverage.event_count >= 20000


@pytest.mark.usefixtures("small_buffer")
def test_a_reader_that_keeps_up_loses_nothing_through_small_segments() -> None:
    with Program.python(WRITER) as program:
        program.line()
        traced = engine.PtraceEngine(EngineOptions())
        traced.attach([program.pid])
        program.say("20000")
        writes = 0
        for batch in traced.batches():
            writes += len(rows(batch.events, Call.write))
            if writes >= 20000:
                traced.stop()
        traced.close()
    assert not traced.coverage().lost
    assert writes >= 20000
