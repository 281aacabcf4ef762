"""connect-not-completed: used after EINPROGRESS as if connected, or never asked."""

from __future__ import annotations

import pytest

from sockscope.findings.run import run_rules
from sockscope.model.calls import Call
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import EPOLLOUT, Script, address
from tests.findings.conftest import Run, S, server

SLUG = "connect-not-completed"
UPSTREAM = address("127.0.0.1", 8125)
LOCAL = address("127.0.0.1", 50000)
EINPROGRESS, EAGAIN, ENOTCONN, ECONNREFUSED, EPIPE = -115, -11, -107, -111, -32


def begun(script: Script | None = None, fd: int = 5, *, kind: int = 1) -> Script:
    script = script or server()
    script.event(100, 100, Call.socket, 2, kind | 0o4000, ret=fd)
    script.event(100, 100, Call.connect, fd=fd, ret=EINPROGRESS, sockaddr=UPSTREAM)
    return script


def send(script: Script, ret: int, fd: int = 5) -> int:
    return script.event(100, 100, Call.sendto, 0, 12, fd=fd, ret=ret)


def close(script: Script, fd: int = 5, *, at: int | None = None) -> Script:
    script.event(100, 100, Call.close, fd=fd, at=at)
    script.event(100, 100, Call.accept4, fd=3, ret=EAGAIN)
    return script


def refuse(script: Script) -> None:
    """The kernel binds a port, and the peer answers the SYN with RST."""
    script.packet(LOCAL, UPSTREAM, TcpFlag.SYN, seq=1, outgoing=True)
    script.packet(UPSTREAM, LOCAL, TcpFlag.RST | TcpFlag.ACK, ack=2)


def test_refused_and_used_again_and_again(run: Run) -> None:
    script = server()
    for fd in (5, 6):
        begun(script, fd)
        send(script, ECONNREFUSED, fd)
        send(script, EPIPE, fd)
        send(script, EPIPE, fd)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.CERTAIN)
    assert (finding.tgid, finding.fd, finding.count) == (100, 5, 2)
    assert "all 2 connects to 127.0.0.1:8125" in finding.explanation
    assert "sendto was called 1.0 ms later and failed (ECONNREFUSED)" in finding.explanation
    assert "6 calls failed in all" in finding.explanation
    assert "getsockopt(5, SOL_SOCKET, SO_ERROR)" in finding.remedy


def test_its_epipes_are_no_finding_of_their_own() -> None:
    script = begun()
    send(script, ECONNREFUSED)
    for _ in range(5):
        send(script, EPIPE)
    findings, _, _ = run_rules(script.ends(S).session(), select=[SLUG, "write-after-peer-close", "unchecked-error"])
    assert [finding.rule for finding in findings] == [SLUG]


@pytest.mark.parametrize("failed", [EAGAIN, ENOTCONN])
def test_given_up_under_way(run: Run, failed: int) -> None:
    script = begun()
    send(script, failed)
    (finding,) = run(close(script).ends(S).session(), SLUG)
    assert finding.severity is Severity.WARNING
    assert "only says that it is not done yet" in finding.explanation


def unnoticed() -> Script:
    script = begun()
    refuse(script)
    script.event(100, 100, Call.accept4, fd=3, ret=EAGAIN)
    return script


def test_refused_and_nobody_asked(run: Run) -> None:
    (finding,) = run(unnoticed().ends(5 * S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.ERROR, Confidence.LIKELY)
    assert "refused, and nobody noticed" in finding.title
    assert any("RST" in fact.text for fact in finding.evidence)


def silent(run: Run, script: Script, end: int = 5 * S) -> bool:
    return not run(script.ends(end).session(), SLUG, least=Severity.INFO)


def test_kept_for_a_moment(run: Run) -> None:
    assert silent(run, close(unnoticed()))


def test_it_asked(run: Run) -> None:
    script = unnoticed()
    script.event(100, 100, Call.getsockopt, 1, 4, fd=5, option=b"\x6f\0\0\0")
    assert silent(run, script)


def test_it_asked_by_another_connect(run: Run) -> None:
    script = unnoticed()
    script.event(100, 100, Call.connect, fd=5, ret=ECONNREFUSED, sockaddr=UPSTREAM)
    assert silent(run, script)


def test_a_wait_told_of_it(run: Run) -> None:
    script = begun()
    refuse(script)
    script.event(100, 100, Call.epoll_create1, ret=4)
    script.event(100, 100, Call.epoll_ctl, 1, 5, fd=4, epoll=[(EPOLLOUT, 5)])
    script.event(100, 100, Call.epoll_wait, 0, 64, 500, fd=4, ret=1, epoll=[(EPOLLOUT | 0x18, 5)])
    assert silent(run, script)


def test_one_write_tells_and_it_closes(run: Run) -> None:
    script = begun()
    script.event(100, 100, Call.poll, 0, 1, 500, ret=1, poll=[(5, 4, 4)])
    send(script, ECONNREFUSED)
    assert silent(run, close(script))


def test_tried_first_and_waited_then(run: Run) -> None:
    script = begun()
    send(script, EAGAIN)
    script.event(100, 100, Call.poll, 0, 1, 500, ret=1, poll=[(5, 4, 4)])
    send(script, 12)
    assert silent(run, close(script))


def test_given_up_after_a_wait(run: Run) -> None:
    script = begun()
    send(script, EAGAIN)
    script.event(100, 100, Call.poll, 0, 1, 500, ret=0, poll=[(5, 4, 0)], at=2 * S)
    assert silent(run, close(script))


def test_connected_at_once(run: Run) -> None:
    script = begun()
    send(script, 12)
    send(script, ECONNREFUSED)
    assert silent(run, close(script))


def test_a_blocking_connect_is_another_fault(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.socket, 2, 1, ret=5)
    script.event(100, 100, Call.connect, fd=5, ret=ECONNREFUSED, sockaddr=UPSTREAM)
    send(script, EPIPE)
    send(script, EPIPE)
    assert silent(run, script)


def test_datagrams(run: Run) -> None:
    script = begun(kind=2)
    send(script, ECONNREFUSED)
    send(script, ECONNREFUSED)
    assert silent(run, script)
