"""A connection's life in sentences."""

from __future__ import annotations

from sockscope.analysis.narration.story import Life
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script, address
from tests.analysis.narration.test_timeline import CLIENT, REQUEST, SERVER, handed_over, only, threaded_server

MS = 1_000_000


def told(session: Session) -> list[str]:
    return Life(session)(only(session)).split(". ")


def test_accepted_served_by_a_thread_and_closed() -> None:
    came, served, ended = told(threaded_server().session())
    assert came.startswith("A client came, and python3[77] accepted it as fd 7 at +0.00")
    assert came.endswith("after the handshake")
    assert served.startswith(f"python3[77/812] read {len(REQUEST)} bytes")
    assert served.endswith("22 bytes in 2 writes")
    assert ended.startswith("This side ended first (FIN); python3[77/812] closed it at +0.0")


def test_handed_on() -> None:
    sentences = told(handed_over().session())
    assert sentences[1] == "It was handed to worker[101] by SCM_RIGHTS, which has it as fd 9"
    assert sentences[2] == "worker[101] read from it, and has written nothing"
    assert sentences[3].startswith("worker[101] closed the last copy at +0.0")


def test_nobody_accepted_it() -> None:
    script = Script(ports=(8080,)).process(33).seed_fd(33, 3, inode=11)
    script.handshake(CLIENT, SERVER)
    script.packet(CLIENT, SERVER, TcpFlag.FIN | TcpFlag.ACK, seq=1001, ack=5001)
    script.snapshot()
    script.socket_row(SERVER, state=TcpState.LISTEN, inode=11, owners=((33, 3),))
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, recv_q=1)
    assert told(script.session())[0] == "No process has accepted it: it waits in the listener's queue"


def test_a_greeting_answers_nothing() -> None:
    script = Script(ports=(8080,)).process(33).seed_fd(33, 3, inode=11)
    script.event(33, 33, Call.accept4, 0, 0, 0, fd=3, ret=7, sockaddr=CLIENT)
    script.event(33, 33, Call.sendto, 0, 2, fd=7, ret=2, payload=b"hi")
    script.event(33, 33, Call.recvfrom, 0, 64, fd=7, ret=4, payload=b"work")
    script.event(33, 33, Call.sendto, 0, 4, fd=7, ret=4, payload=b"done")
    text = Life(script.session())(only(script.session()))
    assert "read 4 bytes, and answered 999 µs later: 4 bytes in 1 write" in text


def test_a_client() -> None:
    script = Script().process(33)
    script.event(33, 33, Call.socket, 2, 1, 0, ret=8)
    script.event(33, 33, Call.connect, fd=8, sockaddr=address("10.0.0.1", 5432))
    session = script.session()
    assert Life(session)(0).startswith("server[33] connected to 10.0.0.1:5432 at +0.00")
