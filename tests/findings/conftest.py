"""What tests of rules share: a rule run over a session written by hand, and a client that comes in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Finding, Severity
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script, address

MS = 1_000_000
S = 1_000_000_000
SERVER = address("127.0.0.1", 80)

Run = Callable[..., list[Finding]]


@pytest.fixture
def run() -> Run:
    """`run(session, slug)`: that rule's findings, what is of no more than interest left out."""

    def run_one(session: Session, slug: str, *, least: Severity = Severity.WARNING) -> list[Finding]:
        findings, skips, _ = run_rules(session, select=[slug])
        assert not skips, skips
        return [finding for finding in findings if finding.severity >= least]

    return run_one


def server(*tids: int) -> Script:
    """Process 100 with a listener as fd 3."""
    script = Script(ports=(80,)).process(100, tids=tids or (100,)).seed_fd(100, 3, inode=3)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=3, owners=[(100, 3)])
    return script


def peer(number: int) -> Address:
    """The address of client `number`."""
    return address("127.0.0.1", 40000 + number)


def accept(
    script: Script, number: int, fd: int, *, tgid: int = 100, tid: int | None = None, at: int | None = None
) -> None:
    """Client `number` comes in, on the wire and by accept4."""
    script.handshake(peer(number), SERVER, at=at)
    script.event(tgid, tid or tgid, Call.accept4, fd=3, ret=fd, sockaddr=peer(number))


def ask(
    script: Script, number: int, fd: int, payload: bytes = b"hello\n", *, tgid: int = 100, tid: int | None = None
) -> int:
    """The client's bytes arrive and are read."""
    script.packet(peer(number), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1001, ack=5001, payload=payload)
    return script.event(tgid, tid or tgid, Call.recvfrom, 0, 4096, fd=fd, ret=len(payload), payload=payload)


def answer(script: Script, fd: int, payload: bytes = b"ok\n", *, tgid: int = 100, tid: int | None = None) -> int:
    """The program answers."""
    return script.event(tgid, tid or tgid, Call.sendto, 0, len(payload), fd=fd, ret=len(payload), payload=payload)


def leave(script: Script, number: int, *, sent: int = 6, at: int | None = None) -> None:
    """The client's FIN."""
    script.packet(peer(number), SERVER, TcpFlag.FIN | TcpFlag.ACK, seq=1001 + sent, ack=5001, at=at)


def told(script: Script, fd: int, *, tgid: int = 100, tid: int | None = None) -> int:
    """A read returns 0."""
    return script.event(tgid, tid or tgid, Call.recvfrom, 0, 4096, fd=fd, ret=0)


def wait(script: Script, *, tgid: int = 100, tid: int | None = None, at: int | None = None) -> int:
    """An epoll_wait that times out: the loop goes round."""
    return script.event(tgid, tid or tgid, Call.epoll_wait, 0, 64, 500, fd=4, ret=0, at=at)
