"""However sockscope ends, the target goes on: nothing stopped, no request failed, affinity as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.live.observed import SERVER, ask, start_observer, start_server
from tests.sources.syscalls.ptrace_support import Program, Trace, assert_left_alone, tids, tracer_of, wait_until

pytestmark = pytest.mark.live

OBSERVER = """
import sys
from sockscope.sources.syscalls.engine import EngineOptions
from sockscope.sources.syscalls.ptrace.engine import PtraceEngine
e = PtraceEngine(EngineOptions())
e.attach([int(a) for a in sys.argv[1:]])
print(*[h.process.pid for h in e._helpers], flush=True)
n = 0
for b in e.batches():
    n += len(b.events)
    if n: print("events", flush=True)
"""


def observe(pids: list[int]) -> tuple[subprocess.Popen[str], list[int]]:
    """sockscope's engine in a process of its own, and the pids of its tracers."""
    observer, said = start_observer(OBSERVER, pids)
    return observer, [int(word) for word in said.split()]


def wait_until_left_alone(pids: list[int]) -> None:
    everyone = [tid for pid in pids for tid in tids(pid)]
    cpus = os.sched_getaffinity(0)
    wait_until(lambda: not any(tracer_of(tid) for tid in everyone), "still traced")
    wait_until(lambda: all(os.sched_getaffinity(tid) == cpus for tid in everyone), "still pinned")
    for pid in pids:
        assert_left_alone(pid, cpus)


@pytest.mark.parametrize("victim", ["main", "tracer", "group"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_observer_leaves_no_trace(victim: str, how: signal.Signals) -> None:
    with Program.python(SERVER) as program:
        pids, port = start_server(program)
        for _ in range(3):
            observer, tracers = observe(pids)
            for _ in range(20):
                ask(port)
            assert any(tracer_of(pid) for pid in pids)
            if victim == "main":
                observer.send_signal(how)
            elif victim == "tracer":
                for tracer in tracers:
                    os.kill(tracer, how)
            else:
                os.killpg(observer.pid, how)
            for _ in range(20):
                ask(port)
            wait_until_left_alone(pids)
            observer.communicate(timeout=10)


def test_detach_of_an_idle_server_returns_promptly() -> None:
    with Program.python(SERVER) as program:
        pids, port = start_server(program)
        trace = Trace(attach=pids)
        ask(port)
        time.sleep(0.2)
        before = time.monotonic()
        trace.finish()
        # Generous: the guard is against waiting for a request that never comes.
        assert time.monotonic() - before < 5
        for pid in pids:
            assert_left_alone(pid, os.sched_getaffinity(0))
        ask(port)


def test_pinning_can_be_declined_and_masks_differ_by_thread() -> None:
    with Program.python("import sys; print('ready'); sys.stdin.readline()") as program:
        assert program.line() == "ready"
        with Trace(attach=[program.pid], pin=False) as trace:
            assert os.sched_getaffinity(program.pid) == os.sched_getaffinity(0)
            assert not trace.engine.coverage().pinned
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            pytest.skip("one CPU")
        os.sched_setaffinity(program.pid, {cpus[1]})
        with Trace(attach=[program.pid]):
            assert os.sched_getaffinity(program.pid) == {cpus[1]}
        assert os.sched_getaffinity(program.pid) == {cpus[1]}


def test_children_made_while_traced_get_the_mask_back() -> None:
    source = """
import os, sys, threading, time
sys.stdin.readline()
pid = os.fork()
if pid == 0:
    threading.Thread(target=time.sleep, args=(100,)).start()
    time.sleep(100)
threading.Thread(target=time.sleep, args=(100,)).start()
time.sleep(0.2)
print(pid)
sys.stdin.readline()
"""
    with Program.python(source) as program:
        with Trace(attach=[program.pid]):
            program.say("go")
            child = int(program.line())
            assert len(os.sched_getaffinity(child)) == 1
        for pid in (program.pid, child):
            assert len(tids(pid)) == 2
            assert_left_alone(pid, os.sched_getaffinity(0))


PARALLEL = """
import hashlib, threading, time
def work():
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        hashlib.sha256(bytes(1 << 20)).digest()
threads = [threading.Thread(target=work) for _ in range(2)]
[t.start() for t in threads]
time.sleep(0.9); print(0, flush=True); time.sleep(30)
"""


def test_a_process_of_several_busy_threads_keeps_its_cpus() -> None:
    with Program.python(PARALLEL) as program:
        program.line()
        own = os.sched_getaffinity(program.pid)
        with Trace(attach=[program.pid]):
            assert os.sched_getaffinity(program.pid) == own
