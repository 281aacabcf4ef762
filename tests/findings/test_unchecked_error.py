"""unchecked-error: what failed, and what was done all the same."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.findings import Severity
from tests.analysis.builders import SOCK_DGRAM, SOCK_STREAM, Script, address
from tests.findings.conftest import Run

SLUG = "unchecked-error"
THERE = address("127.0.0.1", 4242)
MINUS_ONE = 0xFFFF_FFFF
EBADF, EPIPE, ECONNREFUSED, EINPROGRESS, EADDRINUSE, EMFILE, EINVAL = 9, 32, 111, 115, 98, 24, 22


def with_socket(kind: int = SOCK_STREAM) -> Script:
    script = Script().process(100)
    script.event(100, 100, Call.socket, 2, kind, ret=5)
    return script


def test_write_after_a_refused_connect(run: Run) -> None:
    script = Script().process(100)
    for _ in range(3):
        script.event(100, 100, Call.socket, 2, SOCK_STREAM, ret=5)
        script.event(100, 100, Call.connect, fd=5, ret=-ECONNREFUSED, sockaddr=THERE)
        script.event(100, 100, Call.sendto, 0, 10, fd=5, ret=-EPIPE)
        script.event(100, 100, Call.close, fd=5)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.count, finding.fd) == (Severity.WARNING, 3, 5)
    assert "127.0.0.1:4242" in finding.explanation


def test_listen_after_a_refused_bind(run: Run) -> None:
    script = with_socket()
    script.event(100, 100, Call.bind, fd=5, ret=-EADDRINUSE, sockaddr=THERE)
    script.event(100, 100, Call.listen, 16, fd=5)
    (finding,) = run(script.session(), SLUG)
    assert finding.severity is Severity.ERROR
    assert "the kernel chose" in finding.explanation


def test_accept_after_a_failed_listen(run: Run) -> None:
    script = with_socket()
    script.event(100, 100, Call.listen, 16, fd=5, ret=-EADDRINUSE)
    script.event(100, 100, Call.accept, fd=5, ret=-EINVAL)
    (finding,) = run(script.session(), SLUG)
    assert finding.title.startswith("accept after a failed listen")


def test_minus_one(run: Run) -> None:
    script = Script().process(100)
    script.event(100, 100, Call.socket, 2, SOCK_STREAM, ret=-EMFILE)
    script.event(100, 100, Call.connect, fd=MINUS_ONE, ret=-EBADF, sockaddr=THERE)
    (finding,) = run(script.session(), SLUG)
    assert "-1 used as a descriptor" in finding.title
    assert finding.fd is None


@pytest.mark.parametrize("ret", [0, -EINPROGRESS])
def test_a_connect_that_may_have_worked(run: Run, ret: int) -> None:
    script = with_socket()
    script.event(100, 100, Call.connect, fd=5, ret=-ECONNREFUSED, sockaddr=THERE)
    script.event(100, 100, Call.connect, fd=5, ret=ret, sockaddr=THERE)
    script.event(100, 100, Call.sendto, 0, 10, fd=5, ret=-EPIPE)
    assert not run(script.session(), SLUG)


def test_handled(run: Run) -> None:
    script = with_socket()
    script.event(100, 100, Call.connect, fd=5, ret=-ECONNREFUSED, sockaddr=THERE)
    script.event(100, 100, Call.close, fd=5)
    script.event(100, 100, Call.close, fd=MINUS_ONE, ret=-EBADF)
    assert not run(script.session(), SLUG)


def test_bound_at_the_second_attempt(run: Run) -> None:
    script = with_socket()
    script.event(100, 100, Call.bind, fd=5, ret=-EADDRINUSE, sockaddr=THERE)
    script.event(100, 100, Call.bind, fd=5, ret=0, sockaddr=address("127.0.0.1", 4243))
    script.event(100, 100, Call.listen, 16, fd=5)
    assert not run(script.session(), SLUG)


def test_datagrams_need_no_connect(run: Run) -> None:
    script = with_socket(SOCK_DGRAM)
    script.event(100, 100, Call.connect, fd=5, ret=-ECONNREFUSED, sockaddr=THERE)
    script.event(100, 100, Call.sendto, 0, 10, fd=5, ret=-ECONNREFUSED)
    assert not run(script.session(), SLUG)
