"""edge-triggered-read-not-drained: a full buffer and no further read, and what excuses it."""

from __future__ import annotations

import struct

import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Section
from sockscope.model.findings import Confidence, Severity
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import EPOLLET, EPOLLIN, Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, peer, server

SLUG = "edge-triggered-read-not-drained"
FOREVER = (1 << 64) - 1
EPOLLONESHOT = 1 << 30


def watching(events: int = EPOLLIN | EPOLLET, *tids: int) -> Script:
    """A client as fd 7 in the epoll set, whose 6000 bytes arrive at 0.1 s."""
    script = server(*tids).seed_fd(100, 4, kind=FileKind.EPOLL)
    accept(script, 0, 7)
    script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(events, 7)])
    comes(script, 6000, at=100 * MS)
    return script


def comes(script: Script, count: int, *, at: int, after: int = 0) -> None:
    script.packet(peer(0), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1001 + after, ack=5001, payload=b"x" * count, at=at)


def told(script: Script, *, at: int, timeout: int = FOREVER) -> None:
    script.event(100, 100, Call.epoll_wait, 0, 64, timeout, fd=4, ret=1, epoll=[(EPOLLIN, 7)], at=at)


def read(script: Script, *, at: int, ret: int = 4096, asked: int = 4096, tid: int = 100) -> None:
    script.event(100, tid, Call.recvfrom, 0, asked, fd=7, ret=ret, at=at)


def waits(script: Script, *, at: int, timeout: int = FOREVER) -> None:
    script.event(100, 100, Call.epoll_wait, 0, 64, timeout, fd=4, at=at, flags=EventFlag.ENTERED_ONLY)


def shown(script: Script, recv_q: int = 1904, *, at: int, send_q: int = 0) -> None:
    script.snapshot(at=at)
    script.socket_row(SERVER, peer(0), inode=70, recv_q=recv_q, send_q=send_q, owners=[(100, 7)])


def left(script: Script) -> Script:
    """One read of 4096, and back to the wait, to the end."""
    told(script, at=101 * MS)
    read(script, at=102 * MS)
    waits(script, at=104 * MS)
    shown(script, at=600 * MS)
    return script.ends(2 * S)


def woken(script: Script) -> Script:
    """One read of 4096; the next one only when the client has sent more."""
    told(script, at=101 * MS)
    read(script, at=102 * MS)
    comes(script, 10, at=800 * MS, after=6000)
    script.event(100, 100, Call.epoll_wait, 0, 64, FOREVER, fd=4, ret=1, epoll=[(1, 7)], at=104 * MS, took=697 * MS)
    read(script, at=802 * MS, ret=1914)
    waits(script, at=803 * MS)
    return script.ends(2 * S)


def test_the_rest_stays_to_the_end(run: Run) -> None:
    (finding,) = run(left(watching()).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.fd) == (Severity.ERROR, Confidence.LIKELY, 7)
    assert finding.connections == (0,)
    assert "1904 more were there and stayed for 1.90 s" in finding.explanation
    assert "The connection hangs so to the end" in finding.explanation


def test_it_goes_on_when_the_client_sends_more(run: Run) -> None:
    (finding,) = run(woken(watching()).session(), SLUG)
    assert finding.confidence is Confidence.CERTAIN
    assert "only when its client sent more, 698.0 ms later" in finding.explanation
    assert "1904 more" in finding.explanation


def test_registered_before_the_attach(run: Run) -> None:
    script = server().seed_fd(100, 4, kind=FileKind.EPOLL).seed_fd(100, 7, inode=70)
    script.seed_epoll(100, 4, 7, EPOLLIN | EPOLLET, inode=70)
    shown(script, 0, at=50 * MS)
    comes(script, 6000, at=100 * MS)
    (finding,) = run(left(script).session(), SLUG)
    assert "fdinfo shows it" in finding.explanation


def test_a_vector_that_was_filled(run: Run) -> None:
    script = watching()
    told(script, at=101 * MS)
    total = [(Section.IOV_TOTAL, struct.pack("<Q", 4096))]
    script.event(100, 100, Call.readv, 1000, 2, fd=7, ret=4096, at=102 * MS, sections=total)
    waits(script, at=104 * MS)
    shown(script, at=600 * MS)
    assert run(script.ends(2 * S).session(), SLUG)


def test_read_until_eagain(run: Run) -> None:
    script = watching()
    told(script, at=101 * MS)
    read(script, at=102 * MS)
    read(script, at=103 * MS, ret=1904)
    read(script, at=104 * MS, ret=-11)
    waits(script, at=105 * MS)
    shown(script, 0, at=600 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_a_short_read_is_an_end(run: Run) -> None:
    script = watching()
    told(script, at=101 * MS)
    read(script, at=102 * MS, ret=4000)
    waits(script, at=104 * MS)
    shown(script, at=600 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_a_buffer_filled_exactly(run: Run) -> None:
    script = watching()
    told(script, at=101 * MS)
    read(script, at=102 * MS, ret=6000, asked=6000)
    waits(script, at=104 * MS)
    shown(script, 0, at=600 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


@pytest.mark.parametrize("events", [EPOLLIN, EPOLLIN | EPOLLET | EPOLLONESHOT])
def test_other_registrations_tell_again(run: Run, events: int) -> None:
    assert not run(left(watching(events)).session(), SLUG, least=Severity.INFO)


def test_the_registration_is_renewed(run: Run) -> None:
    script = watching()
    script.event(100, 100, Call.epoll_ctl, 3, 7, fd=4, epoll=[(EPOLLIN | EPOLLET, 7)], at=103 * MS)
    assert not run(left(script).session(), SLUG, least=Severity.INFO)


def test_it_goes_on_by_itself(run: Run) -> None:
    script = watching()
    told(script, at=101 * MS)
    read(script, at=102 * MS)
    waits(script, at=104 * MS)
    shown(script, at=600 * MS)
    read(script, at=S, ret=1904)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_it_cannot_pass_on_what_it_has(run: Run) -> None:
    script = watching()
    script.event(100, 100, Call.sendto, 0, 9000, fd=8, ret=-11, at=103 * MS)
    accept(script, 1, 8, at=20 * MS)
    assert not run(left(script).session(), SLUG, least=Severity.INFO)


def test_its_answer_is_not_taken(run: Run) -> None:
    script = watching()
    told(script, at=101 * MS)
    read(script, at=102 * MS)
    waits(script, at=104 * MS)
    shown(script, at=600 * MS, send_q=900)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_a_process_of_several_threads_may_be_at_work(run: Run) -> None:
    assert not run(left(watching(EPOLLIN | EPOLLET, 100, 101)).session(), SLUG, least=Severity.INFO)


def test_a_wait_with_a_timeout_may_be_for_this_connection(run: Run) -> None:
    script = watching()
    told(script, at=101 * MS)
    read(script, at=102 * MS)
    waits(script, at=104 * MS, timeout=60_000)
    shown(script, at=600 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_the_answer_goes_out_in_the_meantime(run: Run) -> None:
    script = left(watching())
    script.event(100, 100, Call.sendto, 0, 9, fd=7, ret=9, at=S)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_a_look_ahead_takes_nothing(run: Run) -> None:
    script = watching()
    told(script, at=101 * MS)
    script.event(100, 100, Call.recvfrom, 0, 4096, 2, fd=7, ret=4096, at=102 * MS)
    waits(script, at=104 * MS)
    shown(script, 6000, at=600 * MS)
    assert not run(script.ends(2 * S).session(), SLUG, least=Severity.INFO)


def test_what_was_left_cannot_be_known() -> None:
    script = left(watching())
    script._packets.clear()
    script._sockets.clear()
    script._snapshot = -1
    script._epolls.clear()
    findings, skips, _ = run_rules(script.session(), select=[SLUG])
    assert not findings
    assert "whether anything was left is not known" in skips[0].reason
