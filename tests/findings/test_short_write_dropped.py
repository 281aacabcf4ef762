"""short-write-dropped: the rest that never came, and the rest that came by another way."""

from __future__ import annotations

import struct

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import UNSEEN_POINTER, Section
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, ask, leave, peer, server

SLUG = "short-write-dropped"
BUFFER = 0x7000_0000
ASKED, TAKEN = 100_000, 30_000
LEFT = ASKED - TAKEN


def short() -> Script:
    """100 000 bytes were given, 30 000 taken."""
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    send(script, BUFFER, ASKED, TAKEN)
    return script


def send(script: Script, buffer: int, asked: int, taken: int) -> None:
    script.event(100, 100, Call.sendto, buffer, asked, fd=7, ret=taken)


def close(script: Script) -> Script:
    script.event(100, 100, Call.close, fd=7)
    return script.ends(4 * S)


def test_closed(run: Run) -> None:
    (finding,) = run(close(short()).session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 1)
    assert f"{LEFT} bytes were never sent" in finding.explanation
    assert finding.fd == 7


def test_shut_down(run: Run) -> None:
    script = short()
    script.event(100, 100, Call.shutdown, 1, fd=7)
    assert run(script.ends(4 * S).session(), SLUG)


def test_vectors(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    total = [(Section.IOV_TOTAL, struct.pack("<Q", ASKED))]
    script.event(100, 100, Call.writev, BUFFER, 2, fd=7, ret=TAKEN, payload=b"HTTP/1.1 200", sections=total)
    (finding,) = run(close(script).session(), SLUG)
    assert f"{ASKED} bytes" in finding.explanation


def test_buffer_filled_anew(run: Run) -> None:
    """A relay: it reads into the same buffer and sends that, whatever was left in it."""
    script = short()
    script.event(100, 100, Call.read, BUFFER, 4096, fd=9, ret=4096)
    send(script, BUFFER, 4096, 4096)
    (finding,) = run(script.ends(4 * S).session(), SLUG)
    assert "the same buffer" in finding.title


def test_buffers_whose_address_is_not_known_are_not_taken_for_one(run: Run) -> None:
    """strace prints what lies in a buffer, not where it is; here the rest comes while another client is read."""
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    send(script, UNSEEN_POINTER, ASKED, TAKEN)
    script.event(100, 100, Call.read, UNSEEN_POINTER, 4096, fd=9, ret=4096)
    send(script, UNSEEN_POINTER, LEFT, LEFT)
    assert not run(close(script).session(), SLUG)


@pytest.mark.parametrize("way", ["offset", "copy", "pieces", "writev", "sendfile"])
def test_the_rest_comes(run: Run, way: str) -> None:
    script = short()
    if way == "offset":
        send(script, BUFFER + TAKEN, LEFT, LEFT)
    elif way == "copy":
        send(script, BUFFER + 10_000_000, LEFT, LEFT)
    elif way == "pieces":
        send(script, BUFFER + 10_000_000, 40_000, 40_000)
        send(script, BUFFER + 10_040_000, 40_000, 40_000)
    elif way == "writev":
        total = [(Section.IOV_TOTAL, struct.pack("<Q", LEFT + 500))]
        script.event(100, 100, Call.writev, BUFFER + 9, 2, fd=7, ret=LEFT + 500, sections=total)
    else:
        script.event(100, 100, Call.sendfile, 9, 0, LEFT, fd=7, ret=LEFT)
    assert not run(close(script).session(), SLUG)


@pytest.mark.parametrize("end", ["eof", "reset", "fin", "full", "exit", "failed", "hang-up"])
def test_nobody_to_send_to(run: Run, end: str) -> None:
    script = short()
    if end == "eof":
        script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, ret=0)
    elif end == "reset":
        script.packet(peer(0), SERVER, TcpFlag.RST, seq=1007)
    elif end == "fin":
        leave(script, 0)
    elif end == "full":
        send(script, BUFFER + TAKEN, LEFT, -11)
    elif end == "failed":
        send(script, BUFFER + TAKEN, LEFT, -104)
    elif end == "hang-up":
        script.event(100, 100, Call.poll, 0, 1, 100, ret=1, poll=[(7, 4, 0x10)])
    if end == "exit":
        script.exit(100)
        assert not run(script.ends(4 * S).session(), SLUG)
        return
    assert not run(close(script).session(), SLUG)


def test_a_time_limit_for_slow_clients(run: Run) -> None:
    """Closed after 3 s in which the buffer stayed full."""
    script = short()
    script.snapshot(at=S)
    script.socket_row(SERVER, peer(0), TcpState.ESTABLISHED, inode=70, send_q=20_000, owners=[(100, 7)])
    script.event(100, 100, Call.close, fd=7, at=3 * S)
    assert not run(script.ends(4 * S).session(), SLUG)


@pytest.mark.parametrize("send_q", [0, 20_000])
def test_forgotten(run: Run, send_q: int) -> None:
    script = short()
    script.snapshot(at=500 * MS)
    script.socket_row(SERVER, peer(0), TcpState.ESTABLISHED, inode=70, send_q=send_q, owners=[(100, 7)])
    script.event(100, 100, Call.epoll_wait, fd=4, at=S)
    found = run(script.ends(4 * S).session(), SLUG)
    assert [f.confidence for f in found] == ([] if send_q else [Confidence.LIKELY])


@pytest.mark.parametrize("by", ["poll", "select", "epoll"])
@pytest.mark.parametrize("room", [False, True])
def test_waited_in_vain_for_room(run: Run, by: str, room: bool) -> None:
    """A client that takes nothing is given up after a while; one for which there was room is not."""
    script = short()
    out = 4
    if by == "poll":
        script.event(100, 100, Call.poll, 0, 1, 300, ret=int(room), poll=[(7, out, out if room else 0)], took=300 * MS)
    elif by == "select":
        sets = [(Section.FDSETS_IN, bytes(8) + b"\x80" + bytes(7) + bytes(8))]
        sets += [(Section.FDSETS, bytes(8) + (b"\x80" if room else b"\0") + bytes(7) + bytes(8))]
        script.event(100, 100, Call.select, 8, ret=int(room), sections=sets, took=300 * MS)
    else:
        script.event(100, 100, Call.epoll_create1, ret=4)
        script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(out, 7)])
        ready = [(out, 7)] if room else []
        script.event(100, 100, Call.epoll_wait, 0, 64, 300, fd=4, ret=int(room), epoll=ready, took=300 * MS)
    script.now_ns += 300 * MS
    assert bool(run(close(script).session(), SLUG)) == room


def test_waited_for_something_else(run: Run) -> None:
    script = short()
    script.event(100, 100, Call.poll, 0, 1, 300, ret=0, poll=[(3, 1, 0)], took=300 * MS)
    script.now_ns += 300 * MS
    assert run(close(script).session(), SLUG)
