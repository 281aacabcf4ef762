"""What a tracer interrupts by attaching is marked as its own doing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from tests.sources.syscalls.ptrace_support import (
    Program,
    Trace,
    assert_left_alone,
    compile_c,
    flags,
    ret,
    rows,
)

pytestmark = pytest.mark.live

EINTR = 4


EPOLL_C = """
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
int main(void) {
    struct epoll_event e;
    int fd = epoll_create1(0);
    setvbuf(stdout, 0, _IONBF, 0);
    puts("ready");
    while (epoll_wait(fd, &e, 1, -1) < 0) puts(errno == EINTR ? "EINTR" : "other");
}
"""


def test_an_idle_server_sees_the_attach_and_not_the_detach(tmp_path: Path) -> None:
    """epoll_wait returns EINTR when a tracer interrupts it (signal(7)); once, marked, is what cannot be avoided."""
    with Program(compile_c(EPOLL_C, tmp_path)) as program:
        assert program.line() == "ready"
        program.blocked_in("epoll_wait")
        with Trace(attach=[program.pid]) as trace:
            assert program.line() == "EINTR"
            program.blocked_in("epoll_wait")
            events = trace.finish()
        assert_left_alone(program.pid, os.sched_getaffinity(0))
        program.process.terminate()
        assert program.process.stdout is not None
        assert program.process.stdout.read() == ""
    first, second = rows(events, Call.epoll_wait)
    assert flags(events, first) == EventFlag.NO_ENTRY | EventFlag.TRACER_EINTR
    assert ret(events, first) == -EINTR
    assert int(events.records[first]["enter_ns"]) == -1
    assert flags(events, second) == EventFlag.ENTERED_ONLY
    assert int(events.records[second]["exit_ns"]) == -1


def test_recv_with_a_timeout_is_interrupted_once_and_marked(tmp_path: Path) -> None:
    source = """
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
int main(void) {
    int s[2]; char c; struct timeval t = {60, 0};
    socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    setvbuf(stdout, 0, _IONBF, 0);
    puts("ready");
    while (recv(s[0], &c, 1, 0) < 0) puts(errno == EINTR ? "EINTR" : "other");
}
"""
    with Program(compile_c(source, tmp_path)) as program:
        assert program.line() == "ready"
        program.blocked_in("recv")
        with Trace(attach=[program.pid]) as trace:
            assert program.line() == "EINTR"
            events = trace.finish()
    assert flags(events, rows(events, Call.recvfrom)[0]) == EventFlag.NO_ENTRY | EventFlag.TRACER_EINTR
