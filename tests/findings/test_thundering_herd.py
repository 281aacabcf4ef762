"""thundering-herd: found, the twin and what looks like one are silent, numbers in the text."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpState
from tests.analysis.builders import EPOLLIN, Script
from tests.findings.conftest import SERVER, Run, peer

SLUG = "thundering-herd"
EAGAIN = -11


def workers(count: int) -> Script:
    """Processes from 100 on that have one listener as fd 3 and an epoll each as fd 4."""
    script = Script(ports=(80,))
    for tgid in range(100, 100 + count):
        script.process(tgid).seed_fd(tgid, 3, inode=3, open_file=1).seed_fd(tgid, 4, kind=FileKind.EPOLL)
        script.seed_epoll(tgid, 4, 3, EPOLLIN, inode=3)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3)])
    return script


def wake(script: Script, tgid: int, *, ready: int = 3) -> None:
    script.event(tgid, tgid, Call.epoll_wait, 0, 64, 0xFFFFFFFF, fd=4, ret=1, epoll=[(EPOLLIN, ready)])


def take(script: Script, tgid: int, number: int) -> None:
    script.event(tgid, tgid, Call.accept4, fd=3, ret=7, sockaddr=peer(number))
    script.event(tgid, tgid, Call.close, fd=7)


def vain(script: Script, tgid: int) -> None:
    script.event(tgid, tgid, Call.accept4, fd=3, ret=EAGAIN)


def herd(count: int, clients: int, *, hurried: bool = False) -> Script:
    script = workers(count)
    for client in range(clients):
        everybody = list(range(100, 100 + count))
        if hurried:
            script.now_ns = max(script.now_ns - 10_000_000, 0)
        for tgid in everybody:
            wake(script, tgid)
        take(script, everybody[client % count], client)
        for tgid in everybody:
            if tgid != everybody[client % count]:
                vain(script, tgid)
    return script


def test_five_of_six_find_nothing(run: Run) -> None:
    (finding,) = run(herd(6, 20).session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO
    assert finding.count == 100
    assert (finding.tgid, finding.fd) == (100, 3)
    assert "100 of 120 wake-ups" in finding.title
    assert "5.0 wake-ups in vain for each of 20 connections" in finding.explanation
    assert "EPOLLEXCLUSIVE" in finding.remedy
    assert "takes the connection" in finding.evidence[0].text


def test_a_thousand_a_second_cost_something(run: Run) -> None:
    (finding,) = run(herd(6, 200, hurried=True).session(), SLUG)
    assert finding.severity is Severity.WARNING


def test_two_workers_are_of_interest_only(run: Run) -> None:
    session = herd(2, 60).session()
    assert run(session, SLUG) == []
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO
    assert "60 of 120 wake-ups" in finding.title


def test_many_workers_and_few_clients(run: Run) -> None:
    script = workers(6)
    for client in range(20):
        script.now_ns += 1_000_000_000
        for tgid in range(100, 106):
            wake(script, tgid)
        take(script, 100, client)
        for tgid in range(101, 106):
            vain(script, tgid)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO
    assert "At 5 a second that costs little" in finding.explanation


def test_a_few_are_not_worth_a_word(run: Run) -> None:
    assert run(herd(6, 8).session(), SLUG, least=Severity.INFO) == []


def test_the_last_eagain_of_a_loop_that_took_one(run: Run) -> None:
    script = workers(6)
    for client in range(120):
        wake(script, 100 + client % 6)
        take(script, 100 + client % 6, client)
        vain(script, 100 + client % 6)
    assert run(script.session(), SLUG, least=Severity.INFO) == []


def test_who_tries_at_every_turn_and_nobody_took_it(run: Run) -> None:
    script = workers(2)
    for turn in range(200):
        wake(script, 100 + turn % 2, ready=9)
        vain(script, 100 + turn % 2)
    assert run(script.session(), SLUG, least=Severity.INFO) == []


def test_one_thread_alone_is_no_herd(run: Run) -> None:
    script = workers(1)
    for client in range(100):
        wake(script, 100)
        vain(script, 100)
        wake(script, 100)
        take(script, 100, client)
    assert run(script.session(), SLUG, least=Severity.INFO) == []


def test_poll_gets_another_remedy(run: Run) -> None:
    script = workers(4)
    for client in range(30):
        for tgid in range(100, 104):
            script.event(tgid, tgid, Call.poll, 4096, 1, 500, ret=1, poll=[(3, 1, 1)])
        take(script, 100, client)
        for tgid in range(101, 104):
            vain(script, tgid)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.remedy.startswith("poll and select wake everybody")
