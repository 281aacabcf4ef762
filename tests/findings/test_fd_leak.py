"""fd-leak: sockets that are made all the time, and never closed or used again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sockscope.findings import descriptor_exhaustion, fd_leak
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.facts import PROCESS_FACT_DTYPE, Facts
from sockscope.model.findings import Confidence, Severity
from tests.analysis.builders import Script, address
from tests.findings.conftest import MS, Run, S, accept, answer, ask, server

SLUG = "fd-leak"
BACKEND = address("127.0.0.1", 5000)
SOCK_STREAM, SOCK_DGRAM = 1, 2


def connect(script: Script, fd: int, *, at: int) -> None:
    script.event(100, 100, Call.socket, 2, SOCK_STREAM, ret=fd, at=at)
    script.event(100, 100, Call.connect, fd=fd, sockaddr=BACKEND)
    script.event(100, 100, Call.sendto, 0, 2, fd=fd, ret=2)
    script.event(100, 100, Call.recvfrom, 0, 64, fd=fd, ret=3)


def serving(script: Script, each: Callable[[int, int], None], *, count: int = 60, every: int = 100 * MS) -> Script:
    """A client asks again and again; `each(number, time)` is what the program does for it."""
    accept(script, 0, 7)
    for number in range(count):
        at = S + number * every
        ask(script, 0, 7)
        each(number, at)
        answer(script, 7)
    return script


def leaking() -> Script:
    script = server()
    return serving(script, lambda number, at: connect(script, 10 + number, at=at)).ends(8 * S)


def limited(script: Script, nofile: int) -> Facts:
    rows = np.zeros(1, PROCESS_FACT_DTYPE)
    rows["tgid"], rows["nofile"] = 100, nofile
    return Facts(processes=rows)


def test_connections_that_nobody_closes(run: Run) -> None:
    (finding,) = run(leaking().session(), SLUG)
    assert (finding.tgid, finding.fd, finding.count, len(finding.connections)) == (100, 10, 60, 60)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)
    assert "made 60 connections to 127.0.0.1:5000 since +1.000 s and closed none of them" in finding.explanation
    assert "10.2 more a second" in finding.title
    assert "its limit is not known" in finding.explanation


@pytest.mark.parametrize(
    ("nofile", "severity", "when"),
    [
        (1024, Severity.ERROR, "62 of 1024 descriptors open: at this pace the limit is reached in 95 s"),
        (1 << 21, Severity.WARNING, "2 days"),
    ],
)
def test_the_limit(run: Run, nofile: int, severity: Severity, when: str) -> None:
    script = leaking()
    session = script.session()
    session.facts = limited(script, nofile)
    (finding,) = run(session, SLUG)
    assert finding.severity is severity
    assert when in finding.explanation


def test_exhaustion_is_its_consequence() -> None:
    script = leaking()
    for _ in range(5):
        script.event(100, 100, Call.socket, 2, SOCK_STREAM, ret=-24)
    findings, _, _ = run_rules(script.ends(9 * S).session(), modules=[fd_leak, descriptor_exhaustion])
    (finding,) = findings
    assert (finding.rule, finding.severity) == (SLUG, Severity.ERROR)
    assert [one.rule for one in finding.consequences] == ["descriptor-exhaustion"]


def test_sockets_that_nothing_is_done_with(run: Run) -> None:
    script = server()

    def each(number: int, at: int) -> None:
        script.event(100, 100, Call.socket, 2, SOCK_DGRAM, ret=10 + number, at=at)

    (finding,) = run(serving(script, each).ends(8 * S).session(), SLUG)
    assert finding.confidence is Confidence.CERTAIN
    assert "sockets (IPv4 datagram) that nothing was done with" in finding.title
    assert not finding.connections


def test_accepted_and_never_touched(run: Run) -> None:
    script = server()

    def each(number: int, at: int) -> None:
        accept(script, 1 + number, 10 + number, at=at)

    (finding,) = run(serving(script, each).ends(8 * S).session(), SLUG)
    assert "accepted on 127.0.0.1:80 and never touched" in finding.title


def silent(run: Run, script: Script, end: int = 8 * S) -> bool:
    return not run(script.ends(end).session(), SLUG, least=Severity.INFO)


def test_closed(run: Run) -> None:
    script = server()

    def each(number: int, at: int) -> None:
        connect(script, 10, at=at)
        script.event(100, 100, Call.close, fd=10)

    assert silent(run, serving(script, each))


def test_a_pool_that_is_filled_and_used(run: Run) -> None:
    script = server()

    def each(number: int, at: int) -> None:
        if number < 30:
            connect(script, 10 + number, at=at)
        else:
            script.event(100, 100, Call.sendto, 0, 2, fd=10 + number % 30, ret=2, at=at)

    assert silent(run, serving(script, each))


def test_a_pool_that_is_filled_while_it_serves(run: Run) -> None:
    """It grows to the end of the session, and what is there comes back into use."""
    script = server()

    def each(number: int, at: int) -> None:
        connect(script, 10 + number, at=at)
        if number >= 20:
            script.event(100, 100, Call.sendto, 0, 2, fd=number - 10, ret=2)

    assert silent(run, serving(script, each))


def test_a_pool_that_is_filled_at_the_start(run: Run) -> None:
    script = server()
    for number in range(40):
        connect(script, 10 + number, at=number * 50 * MS)
    assert silent(run, script, 10 * S)


def test_watched_connections(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.epoll_create1, ret=4)

    def each(number: int, at: int) -> None:
        connect(script, 10 + number, at=at)
        script.event(100, 100, Call.epoll_ctl, 1, 10 + number, fd=4, epoll=[(1, 10 + number)])
        script.event(100, 100, Call.epoll_wait, 0, 64, 0, fd=4)

    assert silent(run, serving(script, each))


def test_accepted_and_used(run: Run) -> None:
    """Clients that stay: a stream of events whose thread sleeps."""
    script = server()

    def each(number: int, at: int) -> None:
        accept(script, 1 + number, 10 + number, at=at)
        answer(script, 10 + number)

    assert silent(run, serving(script, each))


def test_few(run: Run) -> None:
    script = server()
    assert silent(run, serving(script, lambda number, at: connect(script, 10 + number, at=at), count=15, every=S // 2))


def test_the_oldest_give_way(run: Run) -> None:
    """A server with a limit, whose clients say nothing: it closes one for each that comes."""
    script = server()

    def each(number: int, at: int) -> None:
        accept(script, 1 + number, 10 + number % 30, at=at)
        if number >= 29:
            script.event(100, 100, Call.close, fd=10 + (number + 1) % 30)

    assert silent(run, serving(script, each))


def test_watched_until_the_process_ended(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.epoll_create1, ret=4)

    def each(number: int, at: int) -> None:
        accept(script, 1 + number, 10 + number, at=at)
        script.event(100, 100, Call.epoll_ctl, 1, 10 + number, fd=4, epoll=[(1, 10 + number)])
        script.event(100, 100, Call.epoll_wait, 0, 64, 0, fd=4)

    serving(script, each)
    script.signal(100, 15, at=9 * S)
    script.exit(100, status=15)
    assert silent(run, script, 10 * S)


def test_threads_that_read_them(run: Run) -> None:
    script = server(*range(100, 200))

    def each(number: int, at: int) -> None:
        connect(script, 10 + number, at=at)
        script.event(100, 101 + number, Call.recvfrom, 0, 64, fd=10 + number, flags=EventFlag.ENTERED_ONLY)

    assert silent(run, serving(script, each))


def test_what_close_wait_leak_tells(run: Run) -> None:
    session = leaking().session()
    every = frozenset(connection.id for connection in session.connections)
    assert not list(fd_leak.check(session, every))
