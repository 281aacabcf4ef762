"""idle-without-keepalive: what lies idle, whether the kernel or the program would notice, and what is worth telling."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Section
from sockscope.model.facts import PROCESS_FACT_DTYPE, Facts
from sockscope.model.findings import Confidence, Finding, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpState
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, answer, ask, peer, server

SLUG = "idle-without-keepalive"
ON = [(Section.OPTION, struct.pack("<i", 1))]


def clients(script: Script, count: int = 10) -> Script:
    for number in range(count):
        accept(script, number, 10 + number)
        ask(script, number, 10 + number)
        answer(script, 10 + number)
    return script


def endless(script: Script) -> Script:
    script.event(100, 100, Call.epoll_wait, 0, 64, -1, fd=4, flags=EventFlag.ENTERED_ONLY)
    return script


def shown(script: Script, count: int = 10, *, idle_ms: int = 5500, at: int = 7000, **more: int) -> Script:
    script.snapshot(at=at * MS)
    columns = {
        "has_info": 1,
        "last_data_sent_ms": idle_ms,
        "last_data_recv_ms": idle_ms,
        "timer": 0,
        "send_q": 0,
        **more,
    }
    for number in range(count):
        end = [(100, 10 + number)]
        timer, send_q, has_info, sent, received = (
            columns[name] for name in ("timer", "send_q", "has_info", "last_data_sent_ms", "last_data_recv_ms")
        )
        script.socket_row(
            SERVER,
            peer(number),
            TcpState.ESTABLISHED,
            inode=50 + number,
            owners=end,
            timer=timer,
            send_q=send_q,
            has_info=has_info,
            last_data_sent_ms=sent,
            last_data_recv_ms=received,
        )
    return script


def idle(run: Run, script: Script) -> list[Finding]:
    return run(script.ends(7100 * MS).session(), SLUG, least=Severity.INFO)


def test_a_crowd_that_nobody_looks_after(run: Run) -> None:
    (finding,) = idle(run, shown(endless(clients(server()))))
    assert (finding.severity, finding.confidence, finding.count) == (Severity.INFO, Confidence.CERTAIN, 10)
    assert finding.tgid == 100
    assert finding.title == "10 connections idle for up to 5.50 s, without keep-alive or time limit"
    assert "epoll_wait without a time limit" in finding.explanation


def test_blocked_in_a_read(run: Run) -> None:
    """A thread a connection; there may be a timer among the others."""
    script = server(100, *range(200, 210))
    clients(script)
    for number in range(10):
        flags = EventFlag.ENTERED_ONLY
        script.event(100, 200 + number, Call.recvfrom, 0, 4096, fd=10 + number, flags=flags, at=900 * MS)
    (finding,) = idle(run, shown(script))
    assert finding.confidence is Confidence.LIKELY
    assert "waits in recvfrom" in finding.explanation


def test_out_of_descriptors_is_worse(run: Run) -> None:
    script = clients(server())
    script.event(100, 100, Call.accept4, fd=3, ret=-24)
    assert not idle(run, shown(endless(script)))


def test_what_a_leak_keeps_is_the_leak(run: Run) -> None:
    """Accepted one after the other, and never touched."""
    script = server()
    for number in range(30):
        accept(script, number, 10 + number, at=number * 50 * MS)
    session = shown(endless(script), 30).ends(7100 * MS).session()
    found, _, _ = run_rules(session, select=["fd-leak", SLUG])
    assert [finding.rule for finding in found] == ["fd-leak"]


def test_one_alone_after_a_minute(run: Run) -> None:
    assert not idle(run, shown(endless(clients(server(), 1)), 1, idle_ms=30_000))
    (finding,) = idle(run, shown(endless(clients(server(), 1)), 1, idle_ms=720_000))
    assert finding.title == "1 connection idle for up to 12 min, without keep-alive or time limit"


def test_from_before_the_attach(run: Run) -> None:
    script = server()
    for number in range(10):
        script.seed_fd(100, 10 + number, inode=50 + number)
    (finding,) = idle(run, shown(endless(script), idle_ms=90_000))
    assert finding.count == 10


def test_a_crowd_is_eight(run: Run) -> None:
    assert not idle(run, shown(endless(clients(server(), 7)), 7))


def test_the_kernel_looks_after_them(run: Run) -> None:
    assert not idle(run, shown(endless(clients(server())), timer=2))


@pytest.mark.parametrize("option", [(1, 9), (1, 20), (6, 18)], ids=["SO_KEEPALIVE", "SO_RCVTIMEO", "TCP_USER_TIMEOUT"])
@pytest.mark.parametrize("where", ["connections", "listener"])
def test_an_option_was_set(run: Run, option: tuple[int, int], where: str) -> None:
    script = server()
    if where == "listener":
        script.event(100, 100, Call.setsockopt, *option, fd=3, sections=ON)
    clients(script)
    if where == "connections":
        for number in range(10):
            script.event(100, 100, Call.setsockopt, *option, fd=10 + number, sections=ON)
    assert not idle(run, shown(endless(script)))


@pytest.mark.parametrize("limit", ["a wait", "a poll", "select", "timerfd", "an old timerfd", "SIGALRM", "a handler"])
def test_the_program_has_a_limit(run: Run, limit: str) -> None:
    script = server()
    if limit == "an old timerfd":
        script.seed_fd(100, 9, kind=FileKind.TIMERFD)
    clients(script)
    if limit == "a wait":
        script.event(100, 100, Call.epoll_wait, 0, 64, 500, fd=4)
    elif limit == "a poll":
        script.event(100, 100, Call.poll, 0x1000, 1, 500)
    elif limit == "select":
        script.event(100, 100, Call.select, 4, 0x1000, 0, 0, 0x2000)
    elif limit == "timerfd":
        script.event(100, 100, Call.timerfd_create, 1, 0, ret=9)
    elif limit == "SIGALRM":
        script.signal(100, 14)
    session = shown(endless(script)).ends(7100 * MS).session()
    if limit == "a handler":
        facts = np.zeros(1, PROCESS_FACT_DTYPE)
        facts["tgid"], facts["sig_caught"] = 100, 1 << 13
        session = replace(session, facts=Facts(processes=facts))
    assert not run(session, SLUG, least=Severity.INFO)


def test_looking_without_waiting_is_no_limit(run: Run) -> None:
    script = clients(server())
    script.event(100, 100, Call.poll, 0x1000, 1, 0)
    assert idle(run, shown(endless(script)))


def test_nobody_was_seen_to_wait(run: Run) -> None:
    assert not idle(run, shown(clients(server())))


def test_requests_that_are_worked_on(run: Run) -> None:
    script = clients(server())
    for number in range(10):
        ask(script, number, 10 + number)
    assert not idle(run, shown(endless(script)))


@pytest.mark.parametrize("more", [{"idle_ms": 1000}, {"last_data_sent_ms": 10}, {"send_q": 5}, {"has_info": 0}])
def test_not_idle(run: Run, more: dict[str, int]) -> None:
    assert not idle(run, shown(endless(clients(server())), **more))


def test_idle_to_the_exit_of_the_process(run: Run) -> None:
    """A launched server is ended with the watching."""
    script = shown(endless(clients(server())))
    script.signal(100, 15, at=7100 * MS)
    script.exit(100, status=15, at=7101 * MS)
    script.snapshot(at=7200 * MS)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.count == 10


def test_only_the_last_snapshot_counts(run: Run) -> None:
    script = shown(endless(clients(server())))
    script.snapshot(at=7050 * MS)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3)])
    assert not idle(run, script)


def test_the_programs_own_connections_are_not_judged(run: Run) -> None:
    script = server()
    for number in range(10):
        script.event(100, 100, Call.socket, 2, 1, ret=10 + number)
        script.event(100, 100, Call.connect, fd=10 + number, sockaddr=peer(number))
    assert not idle(run, shown(endless(script), at=int(7 * S / MS)))
