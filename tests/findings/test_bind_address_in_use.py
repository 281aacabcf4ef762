"""bind-address-in-use: a listener that lives, connections that linger, programs that cope."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import TcpState
from tests.analysis.builders import SOCK_STREAM, Script, address, unix_address
from tests.findings.conftest import MS, Run, S, peer

SLUG = "bind-address-in-use"
WANTED = address("127.0.0.1", 8080)
EADDRINUSE = 98


def starting(*, reuse: bool = False) -> Script:
    script = Script(ports=(8080,)).process(100)
    script.event(100, 100, Call.socket, 2, SOCK_STREAM, ret=3)
    if reuse:
        script.event(100, 100, Call.setsockopt, 1, 2, fd=3, option=b"\1\0\0\0")
    return script


def bind(script: Script, at: Address = WANTED, *, ret: int = -EADDRINUSE, fd: int = 3) -> int:
    return script.event(100, 100, Call.bind, fd=fd, ret=ret, sockaddr=at)


def test_time_wait_without_the_option(run: Run) -> None:
    script = starting()
    for _ in range(3):
        bind(script)
    script.snapshot(at=S)
    script.socket_row(WANTED, peer(1), TcpState.TIME_WAIT)
    script.socket_row(WANTED, peer(2), TcpState.TIME_WAIT)
    (finding,) = run(script.session(), SLUG)
    assert (finding.severity, finding.confidence, finding.count) == (Severity.ERROR, Confidence.CERTAIN, 3)
    assert "2 sockets in TIME_WAIT" in finding.explanation
    assert "SO_REUSEADDR was not set" in finding.explanation
    assert "before bind" in finding.remedy


def test_a_listener_elsewhere_is_named(run: Run) -> None:
    script = starting(reuse=True)
    bind(script)
    script.snapshot(at=S)
    script.socket_row(WANTED, None, TcpState.LISTEN, inode=77, owners=[(555, 6)])
    (finding,) = run(script.session(), SLUG)
    assert finding.holder is not None
    assert (finding.holder.tgid, finding.holder.fd) == (555, 6)
    assert "process 555 (fd 6)" in finding.title


def test_a_listener_of_the_target_is_named(run: Run) -> None:
    script = starting().process(200, comm="old")
    script.seed_fd(200, 5, inode=9)
    script.snapshot(at=0)
    script.socket_row(WANTED, None, TcpState.LISTEN, inode=9, owners=[(200, 5)])
    bind(script)
    (finding,) = run(script.session(), SLUG)
    assert finding.holder is not None
    assert (finding.holder.tgid, finding.holder.comm, finding.holder.fd) == (200, "old", 5)


def test_nothing_seen_is_only_likely(run: Run) -> None:
    script = starting()
    bind(script)
    (finding,) = run(script.session(), SLUG)
    assert finding.confidence is Confidence.LIKELY


def test_a_later_attempt_works(run: Run) -> None:
    script = starting()
    bind(script)
    bind(script, ret=0)
    session = script.session()
    assert not run(session, SLUG)
    (finding,) = run(session, SLUG, least=Severity.INFO)
    assert "It got the address" in finding.explanation


def test_another_port_instead(run: Run) -> None:
    script = starting()
    bind(script)
    bind(script, address("127.0.0.1", 8081), ret=0)
    (finding,) = run(script.session(), SLUG, least=Severity.INFO)
    assert finding.severity is Severity.INFO
    assert "8081 instead" in finding.explanation


def test_both_families_are_covered_already(run: Run) -> None:
    script = Script().process(100)
    script.event(100, 100, Call.socket, 10, SOCK_STREAM, ret=3)
    bind(script, address("::", 8080), ret=0)
    script.event(100, 100, Call.listen, 16, fd=3)
    script.event(100, 100, Call.socket, 2, SOCK_STREAM, ret=4)
    bind(script, address("0.0.0.0", 8080), fd=4)
    assert not run(script.session(), SLUG)


def test_unix_socket_file_left_behind(run: Run) -> None:
    script = Script().process(100)
    script.event(100, 100, Call.socket, 1, SOCK_STREAM, ret=3)
    bind(script, unix_address("/run/app.sock"))
    (finding,) = run(script.session(), SLUG)
    assert "Remove the socket file" in finding.remedy
    assert finding.evidence[0].time_ns < script.info().started_ns + 10 * MS
