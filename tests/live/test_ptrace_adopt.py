"""More running processes come under trace while others are traced, or after the last of them has ended."""

from __future__ import annotations

import os

import pytest

from sockscope.model.calls import Call
from sockscope.sources.syscalls.ptrace.engine import PtraceEngine
from tests.sources.syscalls.ptrace_support import Program, Trace, assert_left_alone, rows, tracer_of, wait_until

pytestmark = pytest.mark.live

ECHO = """
import sys
print("ready")
for line in sys.stdin:
    print("done")
"""
THREADED = """
import sys, threading
go = threading.Event()
threads = [threading.Thread(target=go.wait) for _ in range(30)]
for t in threads: t.start()
print("ready")
for line in sys.stdin:
    print("done")
go.set()
"""


def began(source: str = ECHO) -> Program:
    program = Program.python(source)
    assert program.line() == "ready"
    return program


def test_adopted_while_others_are_traced_and_untouched_after() -> None:
    cpus = os.sched_getaffinity(0)
    with began() as first, began(THREADED) as second, Trace(attach=[first.pid]) as trace:
        trace.adopt([second.pid, first.pid])
        trace.wait_for(lambda events: len(rows(events, Call.task_attach)) == 32, "31 threads were not adopted")
        assert os.sched_getaffinity(second.pid) == cpus
        for program in (first, second):
            program.say("x")
            assert program.line() == "done"
            trace.wait_for(
                lambda events, pid=program.pid: bool(rows(events, Call.write, pid)),  # type: ignore[misc]
                "its write was not seen",
            )
        events = trace.finish()
        for program in (first, second):
            assert_left_alone(program.pid, cpus)
            program.say("x")
            assert program.line() == "done"
    assert len(rows(events, Call.task_attach)) == 32
    assert len(rows(events, Call.task_detach)) == 32


def test_with_a_port_it_goes_on_without_targets() -> None:
    with began() as second:
        with began() as first:
            trace = Trace(attach=[first.pid], port=1)
        with trace:
            trace.wait_for(lambda events: bool(rows(events, Call.task_exit)), "the first did not end")
            trace.adopt([first.pid, second.pid])
            wait_until(lambda: tracer_of(second.pid) != 0, "never adopted")
            second.say("x")
            assert second.line() == "done"
            events = trace.finish()
        assert_left_alone(second.pid, os.sched_getaffinity(0))
    assert rows(events, Call.write, second.pid)
    assert trace.engine.coverage().lost == {}


def test_many_at_different_times_share_a_few_tracers() -> None:
    programs = [began() for _ in range(5)]
    try:
        with Trace(attach=[programs[0].pid]) as trace:
            for count, program in enumerate(programs[1:], start=2):
                trace.adopt([program.pid])
                wait_until(lambda pid=program.pid: tracer_of(pid) != 0, f"number {count} never adopted")  # type: ignore[misc]
            assert len({tracer_of(program.pid) for program in programs}) <= 1 + len(os.sched_getaffinity(0))
            for program in programs:
                program.say("x")
                assert program.line() == "done"
            events = trace.finish()
        for program in programs:
            assert_left_alone(program.pid, os.sched_getaffinity(0))
            assert rows(events, Call.write, program.pid)
    finally:
        for program in programs:
            program.__exit__(None, None, None)


def test_what_cannot_be_traced_is_passed_over() -> None:
    with began() as first, began() as second, Trace(attach=[first.pid]) as trace, Trace(attach=[second.pid]) as other:
        trace.adopt([os.getpid(), 2, 1 << 22, second.pid])
        first.say("x")
        assert first.line() == "done"
        trace.wait_for(lambda events: bool(rows(events, Call.write, first.pid)), "the first is no longer seen")
        assert isinstance(other.engine, PtraceEngine)
        assert tracer_of(second.pid) == other.engine._helpers[0].process.pid
        events = trace.finish()
    assert len(rows(events, Call.task_attach)) == 1
