"""eagain-dropped: bytes that were not taken and never sent, and reads taken for the end."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.findings import Confidence, Severity
from sockscope.model.tcp import TcpFlag
from tests.analysis.builders import EPOLLIN, EPOLLOUT, Script
from tests.findings.conftest import MS, SERVER, Run, S, accept, answer, ask, leave, peer, server

SLUG = "eagain-dropped"


def message(number: int) -> bytes:
    return b"message %06d " % number


def send(
    script: Script, number: int, *, ret: int | None = None, fd: int = 7, more: bytes = b"", took: int = 1000
) -> int:
    payload = message(number) + more
    return script.event(
        100, 100, Call.sendto, 0, 8192, fd=fd, ret=8192 if ret is None else ret, payload=payload, took=took
    )


def refused(script: Script, number: int, **more: int) -> int:
    return send(script, number, ret=-11, **more)  # type: ignore[arg-type]


def subscriber() -> Script:
    script = server()
    accept(script, 0, 7)
    send(script, 1)
    return script


def test_other_data_is_sent_instead(run: Run) -> None:
    script = subscriber()
    for number in (2, 3, 4):
        refused(script, number)
    send(script, 5)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert (finding.severity, finding.confidence) == (Severity.WARNING, Confidence.LIKELY)
    assert (finding.tgid, finding.fd, finding.count, finding.connections) == (100, 7, 1, (0,))
    assert "3 sends returned EAGAIN" in finding.explanation
    assert "24576 bytes, was never sent" in finding.explanation
    assert '("message 000002 …"); 3.0 ms later the next thing' in finding.explanation
    assert '("message 000005 …")' in finding.explanation


def test_closed_instead(run: Run) -> None:
    script = subscriber()
    refused(script, 2)
    script.event(100, 100, Call.close, fd=7)
    answer(script, 3)
    (finding,) = run(script.ends(S).session(), SLUG)
    assert "closed the connection" in finding.explanation


def silent(run: Run, script: Script) -> bool:
    return not run(script.ends(9 * S).session(), SLUG, least=Severity.INFO)


def test_sent_again(run: Run) -> None:
    script = subscriber()
    refused(script, 2)
    refused(script, 2)
    send(script, 2)
    send(script, 3)
    assert silent(run, script)


def test_sent_again_with_more_behind_it_or_in_parts(run: Run) -> None:
    script = subscriber()
    refused(script, 2)
    send(script, 2, more=message(3))
    refused(script, 4)
    script.event(100, 100, Call.sendto, 0, 7, fd=7, ret=7, payload=message(4)[:7])
    assert silent(run, script)


def test_queued_and_sent_behind_another(run: Run) -> None:
    """Of whole messages, which come first is the program's choice."""
    script = subscriber()
    refused(script, 2)
    send(script, 3)
    send(script, 2)
    assert silent(run, script)


def test_a_wait_tells_of_room_first(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.epoll_create1, ret=4)
    accept(script, 0, 7)
    script.event(100, 100, Call.epoll_ctl, 1, 7, fd=4, epoll=[(EPOLLIN | EPOLLOUT, 7)])
    send(script, 1)
    refused(script, 2)
    script.event(100, 100, Call.epoll_wait, 0, 64, 500, fd=4, ret=1, epoll=[(EPOLLOUT, 7)])
    send(script, 5)
    assert silent(run, script)


def test_it_waited_in_the_call(run: Run) -> None:
    """SO_SNDTIMEO."""
    script = subscriber()
    refused(script, 2, took=500 * MS)
    script.event(100, 100, Call.close, fd=7, at=S)
    answer(script, 3)
    assert silent(run, script)


def test_it_still_waits(run: Run) -> None:
    script = subscriber()
    refused(script, 2)
    assert silent(run, script)


def test_closed_after_a_while(run: Run) -> None:
    """A time limit for slow clients."""
    script = subscriber()
    refused(script, 2)
    script.event(100, 100, Call.close, fd=7, at=4 * S)
    assert silent(run, script)


def test_the_peer_had_left(run: Run) -> None:
    script = subscriber()
    refused(script, 2)
    leave(script, 0, sent=0)
    script.event(100, 100, Call.close, fd=7)
    assert silent(run, script)


def test_no_payload_no_judgement(run: Run) -> None:
    script = subscriber()
    script.event(100, 100, Call.sendto, 0, 8192, fd=7, ret=-11)
    send(script, 3)
    assert silent(run, script)
    script = subscriber()
    refused(script, 2)
    script.event(100, 100, Call.sendfile, 9, 0, 8192, fd=7, ret=8192)
    assert silent(run, script)


def test_a_datagram_socket(run: Run) -> None:
    script = server()
    script.event(100, 100, Call.socket, 2, 2, ret=7)
    script.event(100, 100, Call.connect, fd=7, sockaddr=peer(0))
    refused(script, 1)
    send(script, 2)
    assert silent(run, script)


# --- reads --------------------------------------------------------------------------------------------------


def read_too_early(script: Script, *, flags: int = 0, took: int = 1000) -> None:
    accept(script, 0, 7)
    script.event(100, 100, Call.recvfrom, 0, 4096, flags, fd=7, ret=-11, took=took)


def closes(script: Script, *, late: bool = True) -> Script:
    script.event(100, 100, Call.close, fd=7)
    script.event(100, 100, Call.accept4, fd=3, ret=-11)
    if late:
        script.packet(peer(0), SERVER, TcpFlag.PSH | TcpFlag.ACK, seq=1001, ack=5001, payload=b"hello\n")
    return script


@pytest.mark.parametrize("late", [True, False])
def test_a_read_taken_for_the_end(run: Run, late: bool) -> None:
    script = server()
    read_too_early(script)
    (finding,) = run(closes(script, late=late).ends(S).session(), SLUG)
    assert finding.severity is (Severity.ERROR if late else Severity.WARNING)
    assert ("On 1 of these the client's data came after that" in finding.explanation) == late


def test_it_looked_without_taking(run: Run) -> None:
    script = server()
    read_too_early(script, flags=2)
    assert silent(run, closes(script))


def test_the_read_had_a_time_limit(run: Run) -> None:
    script = server()
    read_too_early(script, took=300 * MS)
    script.now_ns += 300 * MS
    assert silent(run, closes(script))


def test_it_had_answered(run: Run) -> None:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    answer(script, 7)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, ret=-11)
    assert silent(run, closes(script))


def test_it_waited_for_more(run: Run) -> None:
    script = server()
    read_too_early(script)
    script.event(100, 100, Call.poll, 0, 1, 500, ret=0, poll=[(7, 1, 0)], at=2 * S)
    assert silent(run, closes(script))


def test_the_process_ends(run: Run) -> None:
    script = server()
    read_too_early(script)
    script.event(100, 100, Call.close, fd=7)
    script.exit(100)
    assert silent(run, script)


def test_by_io_uring_the_time_in_the_call_is_not_known(run: Run) -> None:
    script = subscriber()
    script.event(100, 100, Call.sendto, 0, 8192, fd=7, ret=-11, payload=message(2), flags=EventFlag.URING)
    send(script, 3)
    assert silent(run, script)
