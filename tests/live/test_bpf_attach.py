"""What the programs in the kernel see of a target, and what the target sees of them: nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sockscope.errors import CannotObserveError, TargetGoneError
from sockscope.fixture import free_port
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Section
from sockscope.sources.syscalls.engine import EngineOptions
from tests.sources.syscalls.ptrace_support import (
    Program,
    Trace,
    args,
    assert_left_alone,
    compile_c,
    flags,
    make_engine,
    ret,
    rows,
    section,
    tids,
    wait_until,
)

pytestmark = pytest.mark.live

ECHO = """
import sys
print("ready")
for line in sys.stdin:
    print("done")
"""

EPOLL_C = """
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
int main(void) {
    struct epoll_event e;
    int fd = epoll_create1(0);
    setvbuf(stdout, 0, _IONBF, 0);
    puts("ready");
    while (epoll_wait(fd, &e, 1, 3000) < 0) puts(errno == EINTR ? "EINTR" : "other");
    puts("over");
    epoll_wait(fd, &e, 1, -1);
}
"""


def test_a_blocked_call_is_not_interrupted_and_told_when_it_returns(tmp_path: Path) -> None:
    with Program(compile_c(EPOLL_C, tmp_path)) as program:
        assert program.line() == "ready"
        program.blocked_in("epoll_wait")
        with Trace(engine="bpf", attach=[program.pid]) as trace:
            assert program.line() == "over"
            program.blocked_in("epoll_wait")
            events = trace.finish()
        assert_left_alone(program.pid, os.sched_getaffinity(0))
    first, second = rows(events, Call.epoll_wait)
    assert flags(events, first) == EventFlag.NO_ENTRY
    assert int(events.records[first]["enter_ns"]) == -1
    assert args(events, first)[3] == 3000
    assert ret(events, first) == 0
    assert flags(events, second) == EventFlag.ENTERED_ONLY
    assert int(events.records[second]["exit_ns"]) == -1


def test_what_a_call_waits_for_at_the_end_is_told() -> None:
    source = """
import select, sys
p = select.poll(); p.register(0, select.POLLIN); p.register(1, select.POLLERR)
print("ready")
sys.stdin.readline()
p.poll()
"""
    with Program.python(source) as program:
        assert program.line() == "ready"
        with Trace(engine="bpf", attach=[program.pid]) as trace:
            program.say("x")
            time.sleep(0.2)
            program.blocked_in("poll")
            events = trace.finish()
    (poll,) = rows(events, Call.poll)
    assert flags(events, poll) == EventFlag.ENTERED_ONLY
    assert section(events, poll, Section.POLLFDS) == struct.pack("<ihhihh", 0, 1, 0, 1, 8, 0)


def test_the_very_first_call_of_a_child_is_seen(tmp_path: Path) -> None:
    source = """
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    char go;
    read(0, &go, 1);
    for (int i = 0; i < 100; i++) {
        if (!syscall(SYS_fork)) { syscall(SYS_dup2, 99, 98); _exit(0); }
        wait(0);
    }
    puts("done"); fflush(stdout);
    pause();
}
"""
    with (
        Program(compile_c(source, tmp_path, "-w")) as program,
        Trace(engine="bpf", attach=[program.pid]) as trace,
    ):
        program.say("go")
        assert program.line() == "done"
        events = trace.finish()
    children = [args(events, row)[0] for row in rows(events, Call.task_new)]
    assert len(children) == 100
    for child in children:
        first = next(row for row in range(len(events)) if int(events.records[row]["tid"]) == child)
        assert events.call(first) is Call.dup2
        assert flags(events, first) == EventFlag(0)


def test_pids_are_our_namespaces() -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare")
    source = "import os; print(os.getpid()); input(); os.fork() or os._exit(7); os.wait(); print('done'); input()"
    with Program(unshare, "-p", "-f", sys.executable, "-u", "-c", source) as program:
        assert program.line() == "1"
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        inner = int(children[0])
        with Trace(engine="bpf", attach=[inner]) as trace:
            program.say("go")
            assert program.line() == "done"
            events = trace.finish()
        os.kill(inner, signal.SIGKILL)
    assert {int(t) for t in events.records["tgid"]} == {inner, args(events, rows(events, Call.task_new)[0])[1]}
    (child,) = [args(events, row)[0] for row in rows(events, Call.task_new)]
    assert [args(events, row)[0] for row in rows(events, Call.task_exit, child)] == [7 << 8]
    # What the call returned is what the program saw.
    assert [ret(events, row) for row in rows(events, Call.clone) + rows(events, Call.fork)] == [2]


INSIDE = """
from sockscope.model.calls import Call
from tests.sources.syscalls.ptrace_support import Program, Trace, args, rows
SOURCE = "import os; print('ready'); input(); os.fork() or os._exit(7); print(os.wait()[0]); input()"
with Program.python(SOURCE) as program:
    assert program.line() == "ready"
    with Trace(engine="bpf", attach=[program.pid]) as trace:
        program.say("go")
        child = int(program.line())
        events = trace.finish()
assert program.pid < 100 and child < 100
(new,) = rows(events, Call.task_new)
assert args(events, new)[:2] == [child, child], args(events, new)
assert set(events.records["tid"].tolist()) == {program.pid, child}
print("as seen inside", flush=True)
"""


def test_pids_are_those_of_a_namespace_that_sockscope_runs_in() -> None:
    make_engine("bpf", EngineOptions()).close()
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare")
    done = subprocess.run(
        [unshare, "-p", "-f", "--mount-proc", sys.executable, "-c", INSIDE],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=False,
    )
    if "unshare:" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout == "as seen inside\n", done.stderr


def test_adopted_while_others_are_traced() -> None:
    threaded = """
import sys, threading
go = threading.Event()
threads = [threading.Thread(target=go.wait) for _ in range(30)]
for t in threads: t.start()
print("ready")
for line in sys.stdin: print("done")
go.set()
"""
    with Program.python(ECHO) as first, Program.python(threaded) as second:
        assert first.line() == second.line() == "ready"
        with Trace(engine="bpf", attach=[first.pid]) as trace:
            trace.adopt([os.getpid(), 2, 1 << 22, second.pid, first.pid])
            trace.wait_for(lambda events: len(rows(events, Call.task_attach)) == 32, "31 threads were not adopted")
            for program in (first, second):
                program.say("x")
                assert program.line() == "done"
            events = trace.finish()
        for program in (first, second):
            assert rows(events, Call.write, program.pid)
            assert_left_alone(program.pid, os.sched_getaffinity(0))
    assert len(rows(events, Call.task_attach)) == 32
    assert len(rows(events, Call.task_detach)) == 32
    assert trace.engine.coverage().lost == {}


BINDER = """
import socket, sys, threading
done = threading.Event()
threading.Thread(target=done.wait, daemon=True).start()
print("ready")
port = int(sys.stdin.readline())
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", port)); s.listen()
print("listening")
c, _ = s.accept(); c.close()
done.set()
print("done")
sys.stdin.readline()
"""


def test_who_binds_the_port_becomes_a_target_with_that_very_call() -> None:
    port = free_port()
    with Program.python(ECHO) as first, Program.python(BINDER) as other:
        assert first.line() == other.line() == "ready"
        with Trace(engine="bpf", attach=[first.pid], port=port) as trace:
            first.process.kill()
            trace.wait_for(lambda events: bool(rows(events, Call.task_exit)), "the first did not end")
            other.say(str(port))
            assert other.line() == "listening"
            trace.wait_for(lambda events: bool(rows(events, Call.listen)), "nobody came")
            wait_until(lambda: len(rows(trace.events, Call.task_attach)) == 3, "its other thread was not followed")
            socket.create_connection(("127.0.0.1", port)).close()
            assert other.line() == "done"
            events = trace.finish()
    (bind,) = rows(events, Call.bind)
    assert section(events, bind, Section.SOCKADDR)[2:4] == port.to_bytes(2, "big")
    assert int(events.records[bind]["tgid"]) == other.pid
    assert int(events.records[bind]["enter_ns"]) > 0
    came = [row for row in rows(events, Call.task_attach) if args(events, row)[0] == 1]
    assert [int(events.records[row]["tid"]) for row in came] == [other.pid]
    assert any(ret(events, row) > 0 for row in rows(events, Call.accept4))


def test_the_same_number_in_another_network_namespace_is_another_port() -> None:
    port = free_port()
    stranger = f"import socket; s = socket.socket(); s.bind(('', {port})); print('bound'); input()"
    with Program.python(ECHO) as target:
        assert target.line() == "ready"
        with Trace(engine="bpf", attach=[target.pid], port=port) as trace:
            with Program("unshare", "-n", sys.executable, "-u", "-c", stranger) as other:
                assert other.line() == "bound"
            target.say("x")
            assert target.line() == "done"
            events = trace.finish()
    assert not rows(events, Call.bind)
    assert [int(events.records[row]["tgid"]) for row in rows(events, Call.task_attach)] == [target.pid]


def test_refused_as_with_any_engine() -> None:
    with Program.python(ECHO) as program:
        assert program.line() == "ready"
        with pytest.raises(CannotObserveError, match="kernel thread"):
            make_engine("bpf", EngineOptions()).attach([program.pid, 2])
        with pytest.raises(CannotObserveError, match="sockscope itself"):
            make_engine("bpf", EngineOptions()).attach([os.getpid()])
        with pytest.raises(TargetGoneError, match="no process"):
            make_engine("bpf", EngineOptions()).attach([4194303, 4194302])
        with pytest.raises(CannotObserveError, match="no process to attach"):
            make_engine("bpf", EngineOptions()).attach([])
        with Trace(engine="bpf", attach=[4194303, program.pid]) as trace:
            program.say("x")
            assert program.line() == "done"
            assert rows(trace.finish(), Call.write, program.pid)


def test_threads_come_and_go_during_the_attach() -> None:
    source = """
import sys, threading, time
stop = False
def churn():
    while not stop:
        t = threading.Thread(target=time.sleep, args=(0.0005,)); t.start(); t.join()
workers = [threading.Thread(target=churn) for _ in range(4)]
for w in workers: w.start()
print("ready")
sys.stdin.readline()
stop = True
for w in workers: w.join()
print("done")
sys.stdin.readline()
"""
    with Program.python(source) as program:
        assert program.line() == "ready"
        with Trace(engine="bpf", attach=[program.pid]) as trace:
            time.sleep(0.3)
            program.say("stop")
            assert program.line() == "done"
            # Joined, for Python: the kernel may be busy with its end still.
            wait_until(lambda: tids(program.pid) == [program.pid], "its threads did not end")
            events = trace.finish()
    known: set[int] = set()
    for row in range(len(events)):
        call, tid = events.call(row), int(events.records[row]["tid"])
        if call is Call.task_new:
            known.add(args(events, row)[0])
        elif call is Call.task_attach:
            known.add(tid)
        assert tid in known, f"{call.name} of an unknown task"
    detached = {int(events.records[row]["tid"]) for row in rows(events, Call.task_detach)}
    assert detached == {program.pid}
    assert trace.engine.coverage().lost == {}
