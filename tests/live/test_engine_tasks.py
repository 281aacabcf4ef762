"""Threads, forks and execs are followed, and each is told of before its first event."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import Events, Section
from tests.sources.syscalls.ptrace_support import (
    ENGINES,
    Program,
    Trace,
    args,
    assert_left_alone,
    compile_c,
    ret,
    rows,
    section,
)

pytestmark = [pytest.mark.live, pytest.mark.parametrize("engine", ENGINES)]

CLONE_THREAD = 0x10000
CLONE_FILES = 0x400
CLONE_VFORK = 0x4000


def assert_introduced(events: Events) -> None:
    """Every tid was attached to or announced before its first event."""
    known: set[int] = set()
    for i in range(len(events)):
        if events.call(i) is Call.task_new:
            known.add(args(events, i)[0])
        elif events.call(i) is Call.task_attach:
            known.add(int(events.records[i]["tid"]))
        assert int(events.records[i]["tid"]) in known, f"{events.call(i).name} of an unknown task"


def test_threads_before_and_after_the_attach(engine: str) -> None:
    source = """
import threading, sys, os
go = threading.Barrier(4)
def work():
    go.wait()
    os.write(1, b"x\\n")
old = [threading.Thread(target=work) for _ in range(3)]
for t in old: t.start()
print("ready")
sys.stdin.readline()
new = [threading.Thread(target=lambda: os.write(1, b"y\\n")) for _ in range(3)]
for t in new: t.start()
for t in new: t.join()
go.wait()
for t in old: t.join()
print("done")
sys.stdin.readline()
"""
    with Program.python(source) as program:
        assert program.line() == "ready"
        with Trace(engine=engine, attach=[program.pid]) as trace:
            program.say("go")
            while program.line() != "done":
                pass
            events = trace.finish()
        assert_left_alone(program.pid, os.sched_getaffinity(0))
    assert len(rows(events, Call.task_attach)) == 4
    new = rows(events, Call.task_new)
    assert len(new) == 3
    for row in new:
        child, tgid, clone_flags = args(events, row)[:3]
        assert tgid == program.pid
        assert clone_flags & CLONE_THREAD
        assert clone_flags & CLONE_FILES
        assert rows(events, Call.write, child)
    assert len(rows(events, Call.task_exit)) == 6
    assert_introduced(events)


def test_clone3_arguments_are_copied(engine: str) -> None:
    source = """
import threading, sys
sys.stdin.readline()
t = threading.Thread(target=lambda: None); t.start(); t.join()
print("done")
sys.stdin.readline()
"""
    with Program.python(source) as program, Trace(engine=engine, attach=[program.pid]) as trace:
        program.say("go")
        program.line()
        events = trace.finish()
    clones = rows(events, Call.clone3)
    if not clones:
        pytest.skip("this C library makes threads by clone")
    data = section(events, clones[0], Section.CLONE_ARGS)
    assert int.from_bytes(data[:8], "little") == args(events, rows(events, Call.task_new)[0])[2]


def test_fork_is_followed_and_its_end_is_told(engine: str) -> None:
    source = """
import os, sys
sys.stdin.readline()
for code in range(5):
    pid = os.fork()
    if pid == 0:
        os.write(1, b"child\\n")
        os._exit(code)
    os.waitpid(pid, 0)
print("done")
sys.stdin.readline()
"""
    with Program.python(source) as program:
        with Trace(engine=engine, attach=[program.pid]) as trace:
            program.say("go")
            while program.line() != "done":
                pass
            events = trace.finish()
        assert_left_alone(program.pid, os.sched_getaffinity(0))
    new = rows(events, Call.task_new)
    assert [args(events, row)[0] for row in new] == [args(events, row)[1] for row in new]
    assert [args(events, row)[2] & (CLONE_THREAD | CLONE_FILES) for row in new] == [0] * 5
    for code, row in enumerate(new):
        child = args(events, row)[0]
        assert len(rows(events, Call.write, child)) == 1
        assert [args(events, end)[0] for end in rows(events, Call.task_exit, child)] == [code << 8]
    waits = [row for row in rows(events, Call.wait4) if ret(events, row) > 0]
    assert [int.from_bytes(section(events, row, Section.INT), "little") >> 8 for row in waits] == list(range(5))
    assert_introduced(events)


def test_vfork_and_exec(engine: str) -> None:
    source = """
import subprocess, sys
sys.stdin.readline()
subprocess.run(["/bin/echo", "hello"])
print("done")
sys.stdin.readline()
"""
    with Program.python(source) as program, Trace(engine=engine, attach=[program.pid]) as trace:
        program.say("go")
        while program.line() != "done":
            pass
        events = trace.finish()
    (new,) = rows(events, Call.task_new)
    assert args(events, new)[2] & CLONE_VFORK
    child = args(events, new)[0]
    (execve,) = rows(events, Call.execve, child)
    assert section(events, execve, Section.PATH) == b"/bin/echo"
    (happened,) = rows(events, Call.task_exec, child)
    assert section(events, happened, Section.PATH).endswith(b"/echo")
    assert section(events, happened, Section.COMM) == b"echo"
    assert args(events, happened)[0] == child
    assert_introduced(events)


def test_exec_by_a_thread_that_is_not_the_leader(engine: str, tmp_path: Path) -> None:
    program_c = """
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *run(void *p) { execl("/bin/cat", "cat", (char *)0); return p; }
int main(void) {
    char c; pthread_t t, u;
    read(0, &c, 1);
    pthread_create(&u, 0, (void *(*)(void *))pause, 0);
    pthread_create(&t, 0, run, 0);
    pause();
}
"""
    with Program(compile_c(program_c, tmp_path)) as program:
        with Trace(engine=engine, attach=[program.pid]) as trace:
            program.say("go")
            # What is left of the line goes through cat: the new program runs and reads on.
            program.say("hello")
            while program.line() != "hello":
                pass
            events = trace.finish()
        assert_left_alone(program.pid, os.sched_getaffinity(0))
    (happened,) = rows(events, Call.task_exec)
    former = args(events, happened)[0]
    assert int(events.records[happened]["tid"]) == program.pid
    assert former != program.pid
    assert former in [args(events, row)[0] for row in rows(events, Call.task_new)]
    (execve,) = [row for row in rows(events, Call.execve) if ret(events, row) == 0]
    assert section(events, execve, Section.PATH) == b"/bin/cat"
    assert rows(events, Call.write, program.pid)
    assert_introduced(events)


def test_many_forks_at_once_are_all_announced_first(engine: str) -> None:
    source = """
import os, sys, threading
sys.stdin.readline()
def forks():
    for _ in range(20):
        pid = os.fork()
        if pid == 0: os._exit(0)
        os.waitpid(pid, 0)
threads = [threading.Thread(target=forks) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print("done")
sys.stdin.readline()
"""
    with Program.python(source) as program, Trace(engine=engine, attach=[program.pid]) as trace:
        program.say("go")
        assert program.line() == "done"
        events = trace.finish()
    children = [args(events, row)[1] for row in rows(events, Call.task_new)]
    assert len([tgid for tgid in children if tgid != program.pid]) == 80
    assert_introduced(events)


def test_a_killed_target_ends_the_batches(engine: str) -> None:
    with Program.python("import signal; print('ready'); signal.pause()") as program:
        assert program.line() == "ready"
        with Trace(engine=engine, attach=[program.pid]) as trace:
            os.kill(program.pid, signal.SIGKILL)
            events = trace.join()
    (end,) = rows(events, Call.task_exit)
    assert args(events, end)[0] == signal.SIGKILL


def test_every_connection_of_a_busy_server_is_seen(engine: str) -> None:
    source = """
import socket, threading
s = socket.create_server(("127.0.0.1", 0), backlog=64)
print(s.getsockname()[1])
def serve(c):
    c.sendall(c.recv(100)); c.close()
while True:
    c, _ = s.accept()
    threading.Thread(target=serve, args=(c,)).start()
"""
    failed: list[bytes] = []

    def client(port: int) -> None:
        for _ in range(25):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"hello")
                answer = connection.recv(100)
                if answer != b"hello":
                    failed.append(answer)

    with Program.python(source) as program:
        port = int(program.line())
        with Trace(engine=engine, attach=[program.pid]) as trace:
            clients = [threading.Thread(target=client, args=(port,)) for _ in range(4)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
            trace.wait_for(lambda e: len(rows(e, Call.task_exit)) == 100, "not every thread ended")
            events = trace.finish()
        assert_left_alone(program.pid, os.sched_getaffinity(0))
    assert not failed
    # The last accept still waits: its result is 0 because it has none.
    assert len([row for row in rows(events, Call.accept4) if ret(events, row) > 0]) == 100
    for call in (Call.recvfrom, Call.sendto):
        assert [section(events, row, Section.PAYLOAD) for row in rows(events, call)] == [b"hello"] * 100
    assert len(rows(events, Call.close)) == 100
    assert_introduced(events)


def test_memory_is_read_anew_after_exec(engine: str) -> None:
    """The loop keeps the memory of a process open once it was read often; exec gives it another."""
    source = """
import os, sys
sys.stdin.readline()
for i in range(100): os.write(1, b"before\\n")
os.execv(sys.executable, ["python", "-Bc", "import os\\nfor i in range(100): os.write(1, b'after\\\\n')\\ninput()"])
"""
    with Program.python(source) as program, Trace(engine=engine, attach=[program.pid]) as trace:
        program.say("go")
        for expected in ["before"] * 100 + ["after"] * 100:
            assert program.line() == expected
        events = trace.finish()
    written = [section(events, row, Section.PAYLOAD) for row in rows(events, Call.write)]
    assert written == [b"before\n"] * 100 + [b"after\n"] * 100
