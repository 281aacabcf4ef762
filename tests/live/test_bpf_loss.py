"""A ring that is full costs events, each of them counted, and the target nothing."""

from __future__ import annotations

import time

import pytest

from sockscope.model.calls import Call
from sockscope.sources.syscalls.bpf import engine
from sockscope.sources.syscalls.bpf.layout import Ring
from sockscope.sources.syscalls.engine import EngineOptions
from tests.sources.syscalls.ptrace_support import Program, make_engine, rows

pytestmark = pytest.mark.live

WRITER = """
import os, sys
fd = os.open("/dev/null", os.O_WRONLY)
data = b"x" * int(sys.argv[1])
print("ready")
for i in range(int(sys.stdin.readline())):
    os.write(fd, data)
print("done")
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _small_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {Ring.SMALL: 1 << 18, Ring.MEDIUM: 1 << 18, Ring.LARGE: 1 << 18}
    monkeypatch.setattr(engine, "RING_BYTES", sizes)
    monkeypatch.setattr(engine, "LONG_RING_BYTES", sizes)


def writer(size: int) -> Program:
    program = Program.python(WRITER.replace("int(sys.argv[1])", str(size)))
    assert program.line() == "ready"
    return program


@pytest.mark.parametrize("size", [1, 1000, 10_000])
def test_every_event_is_delivered_or_counted(size: int) -> None:
    with writer(size) as program:
        traced = make_engine("bpf", EngineOptions(payload_bytes=size))
        traced.attach([program.pid])
        program.say("5000")
        assert program.line() == "done"
        time.sleep(0.1)
        traced.stop()
        writes = sum(len(rows(batch.events, Call.write)) for batch in traced.batches())
        traced.close()
    coverage = traced.coverage()
    # Of the other rings' events none is lost; those are what the program read and printed.
    assert 0 < writes < 5000
    assert coverage.lost["ring full"] + coverage.event_count >= 5000
    assert 5000 <= coverage.lost["ring full"] + writes <= 5010


def test_a_reader_that_keeps_up_loses_nothing_through_small_rings() -> None:
    with Program.python(WRITER.replace("int(sys.argv[1])", "1").replace("os.write(fd, data)", PACED)) as program:
        assert program.line() == "ready"
        traced = make_engine("bpf", EngineOptions())
        traced.attach([program.pid])
        program.say("5000")
        writes = 0
        for batch in traced.batches():
            writes += len(rows(batch.events, Call.write))
            if writes >= 5000:
                traced.stop()
        traced.close()
    assert not traced.coverage().lost
    assert writes >= 5000


PACED = """os.write(fd, data)
    if i % 200 == 0: import time; time.sleep(0.02)"""
