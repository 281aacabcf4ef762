"""However sockscope ends, no program, map or link of it is left, and the target never noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.sources.syscalls.engine import EngineOptions
from tests.live.observed import SERVER, ask, start_observer, start_server
from tests.sources.syscalls.bpf_ids import held_by, left_of
from tests.sources.syscalls.ptrace_support import (
    Program,
    Trace,
    assert_left_alone,
    flags,
    make_engine,
    rows,
    wait_until,
)

pytestmark = pytest.mark.live

OBSERVER = """
import signal, sys
from sockscope.sources.syscalls.engine import EngineOptions
from sockscope.sources.syscalls.bpf.engine import BpfEngine
e = BpfEngine(EngineOptions())
signal.signal(signal.SIGINT, lambda *a: e.stop())
e.attach([int(a) for a in sys.argv[1:]])
print("attached", flush=True)
for b in e.batches():
    if len(b.events): print("events", flush=True)
e.close()
print("closed", flush=True)
sys.stdin.readline()
"""


def observe(pids: list[int]) -> subprocess.Popen[str]:
    """sockscope's engine in a process of its own, attached."""
    make_engine("bpf", EngineOptions()).close()
    observer, said = start_observer(OBSERVER, pids)
    assert said == "attached\n"
    return observer


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_behind(how: signal.Signals) -> None:
    with Program.python(SERVER) as program:
        pids, port = start_server(program)
        observer = observe(pids)
        try:
            ids = held_by(observer.pid)
            assert all(ids.values())
            assert set(left_of(ids)) == set(ids)
            for _ in range(20):
                ask(port)
            assert observer.stdout is not None
            assert observer.stdout.readline() == "events\n"
            observer.send_signal(how)
            for _ in range(20):
                ask(port)
            if how == signal.SIGINT:
                while observer.stdout.readline() != "closed\n":
                    assert observer.poll() is None
            else:
                assert observer.wait(10) == -how
            wait_until(lambda: not left_of(ids), f"left: {left_of(ids)}")
            for pid in pids:
                assert_left_alone(pid, os.sched_getaffinity(0))
            ask(port)
        finally:
            observer.kill()
            observer.communicate()


def test_detach_of_an_idle_server_returns_promptly_and_tells_what_waits() -> None:
    with Program.python(SERVER) as program:
        pids, port = start_server(program)
        trace = Trace(engine="bpf", attach=pids)
        ask(port)
        time.sleep(0.2)
        before = time.monotonic()
        events = trace.finish()
        # Generous: the guard is against waiting for a request that never comes.
        assert time.monotonic() - before < 5
        for pid in pids:
            assert_left_alone(pid, os.sched_getaffinity(0))
        ask(port)
    # Six threads, each in accept; the one that served is in its second.
    waiting = [row for row in rows(events, Call.accept4) if EventFlag.ENTERED_ONLY in flags(events, row)]
    assert len(waiting) >= 1
    assert all(int(events.records[row]["exit_ns"]) == -1 for row in waiting)
    assert len(rows(events, Call.task_attach)) == 6
    assert len(rows(events, Call.task_detach)) == 6


def test_closed_without_being_read() -> None:
    with Program.python(SERVER) as program:
        pids, port = start_server(program)
        engine = make_engine("bpf", EngineOptions())
        engine.attach(pids)
        mine = held_by(os.getpid())
        ask(port)
        engine.close()
        engine.close()
        engine.stop()
        assert engine.coverage().engine == "bpf"
        wait_until(lambda: not left_of(mine), "left behind")


def test_no_descriptor_is_left_in_this_process() -> None:
    with Program.python(SERVER) as program:
        pids, port = start_server(program)
        with Trace(engine="bpf", attach=pids) as trace:
            ask(port)
            trace.finish()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with Trace(engine="bpf", attach=pids) as trace:
                ask(port)
                trace.finish()
        assert len(os.listdir("/proc/self/fd")) == before
