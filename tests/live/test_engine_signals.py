"""Signals arrive as if nobody watched, stops stay stops, an interrupted call is told as it was for the program."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from tests.sources.syscalls.ptrace_support import (
    ENGINES,
    Program,
    Trace,
    args,
    assert_left_alone,
    compile_c,
    flags,
    ret,
    rows,
    state,
    tracer_of,
    wait_until,
)

pytestmark = [pytest.mark.live, pytest.mark.parametrize("engine", ENGINES)]

EINTR = 4

COUNTS_SIGNALS = """
import signal, sys, time
count = 0
def on(n, f):
    global count
    count += 1
signal.signal(signal.SIGUSR1, on)
print("ready")
seen = 0
while True:
    signal.pause() if count == seen else None
    while seen < count:
        seen += 1
        print(seen)
"""


def test_every_signal_arrives_and_is_told_with_its_sender(engine: str) -> None:
    with Program.python(COUNTS_SIGNALS) as program:
        assert program.line() == "ready"
        with Trace(engine=engine, attach=[program.pid]) as trace:
            for number in range(1, 51):
                os.kill(program.pid, signal.SIGUSR1)
                assert program.line() == str(number)
            events = trace.finish()
        assert_left_alone(program.pid, os.sched_getaffinity(0))
        os.kill(program.pid, signal.SIGUSR1)
        assert program.line() == "51"
    told = [args(events, row)[:3] for row in rows(events, Call.task_signal)]
    assert told == [[signal.SIGUSR1, 0, os.getpid()]] * 50


def test_a_stop_lasts_until_sigcont(engine: str) -> None:
    with Program.python(COUNTS_SIGNALS) as program:
        assert program.line() == "ready"
        with Trace(engine=engine, attach=[program.pid]) as trace:
            os.kill(program.pid, signal.SIGSTOP)
            trace.wait_for(lambda e: bool(rows(e, Call.task_stop)), "no task_stop")
            os.kill(program.pid, signal.SIGUSR1)
            time.sleep(0.2)
            assert state(program.pid) in "tT"
            os.kill(program.pid, signal.SIGCONT)
            assert program.line() == "1"
            events = trace.finish()
        assert_left_alone(program.pid, os.sched_getaffinity(0))
    assert [args(events, row)[0] for row in rows(events, Call.task_stop)] == [signal.SIGSTOP]


@pytest.mark.parametrize("stopped", ["before the attach", "while attached"])
def test_a_stopped_target_is_left_stopped(engine: str, stopped: str) -> None:
    with Program.python(COUNTS_SIGNALS) as program:
        assert program.line() == "ready"
        if stopped == "before the attach":
            os.kill(program.pid, signal.SIGSTOP)
            wait_until(lambda: state(program.pid) == "T", "never stopped")
        with Trace(engine=engine, attach=[program.pid]) as trace:
            if stopped == "while attached":
                os.kill(program.pid, signal.SIGSTOP)
            # Only a tracer takes part in a stop that began before.
            if stopped == "while attached" or engine == "ptrace":
                trace.wait_for(lambda e: bool(rows(e, Call.task_stop)), "no task_stop")
        wait_until(lambda: state(program.pid) == "T", f"left in state {state(program.pid)}")
        assert tracer_of(program.pid) == 0
        os.kill(program.pid, signal.SIGCONT)
        os.kill(program.pid, signal.SIGUSR1)
        assert program.line() == "1"


RESTART_C = """
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static void on(int n) { (void)n; write(2, "", 0); }
int main(int n, char **v) {
    struct sigaction a = {.sa_handler = on, .sa_flags = n > 1 ? SA_RESTART : 0};
    struct sockaddr_in at = {AF_INET};
    socklen_t size = sizeof at;
    char go;
    int s = socket(AF_INET, SOCK_STREAM, 0), c;
    (void)v;
    sigaction(SIGUSR1, &a, 0);
    bind(s, (struct sockaddr *)&at, sizeof at);
    listen(s, 5);
    getsockname(s, (struct sockaddr *)&at, &size);
    setvbuf(stdout, 0, _IONBF, 0);
    printf("%d\\n", ntohs(at.sin_port));
    read(0, &go, 1);
    c = accept(s, 0, 0);
    puts(c < 0 ? strerror(errno) : "accepted");
    pause();
}
"""


@pytest.mark.parametrize("attached", ["before", "while blocked"])
@pytest.mark.parametrize("restarts", [True, False])
def test_an_interrupted_accept_is_one_event(engine: str, tmp_path: Path, restarts: bool, attached: str) -> None:
    """What the program saw: one call, restarted behind its back, or one EINTR. Never the kernel's ERESTARTSYS."""
    binary = compile_c(RESTART_C, tmp_path)
    with Program(binary, *(["restart"] if restarts else [])) as program:
        port = int(program.line())
        if attached == "while blocked":
            program.say("go")
        program.blocked_in("accept or read")
        with Trace(engine=engine, attach=[program.pid]) as trace:
            if attached == "before":
                program.say("go")
            time.sleep(0.2)
            os.kill(program.pid, signal.SIGUSR1)
            trace.wait_for(lambda e: bool(rows(e, Call.task_signal)), "no signal")
            if restarts:
                time.sleep(0.1)
                socket.create_connection(("127.0.0.1", port)).close()
            assert program.line() == ("accepted" if restarts else "Interrupted system call")
            events = trace.finish()
    (accept,) = rows(events, Call.accept)
    assert flags(events, accept) == (EventFlag.NO_ENTRY if attached == "while blocked" else EventFlag(0))
    assert (ret(events, accept) > 0) if restarts else (ret(events, accept) == -EINTR)
