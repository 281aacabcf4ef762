from __future__ import annotations

import pytest

from sockscope.analysis.narration.summary import summarise, summarise_all
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script, address

SERVER = address("127.0.0.1", 8080)
CLIENT = address("127.0.0.1", 40112)
P = TcpFlag.PSH | TcpFlag.ACK


def server() -> Script:
    script = Script(ports=(8080,)).process(77, comm="python3").seed_fd(77, 3, inode=11)
    script.snapshot(at=0)
    script.socket_row(SERVER, state=TcpState.LISTEN, inode=11, owners=((77, 3),))
    script.event(77, 77, Call.accept4, 1, 1, 0, fd=3, ret=7, sockaddr=CLIENT)
    return script


def read(script: Script, payload: bytes, *, peer: Address | None = None) -> None:
    script.event(77, 77, Call.recvfrom, 4096, 8192, 0, fd=7, ret=len(payload), payload=payload, sockaddr=peer)


def write(script: Script, payload: bytes, ret: int = 0) -> None:
    script.event(77, 77, Call.sendto, 4096, len(payload), 0, fd=7, ret=ret or len(payload), payload=payload)


def only(session: Session) -> str:
    (found,) = [c.id for c in session.connections if c.peer == CLIENT]
    return summarise(session, found)


def test_requests_and_answers() -> None:
    script = server()
    read(script, b"GET /index.html HTTP/1.1\r\n")
    write(script, b"HTTP/1.1 200 OK\r\n")
    write(script, b"abc", ret=598)
    read(script, b"GET /x HTTP/1.1\r\n", peer=CLIENT)
    write(script, b"HTTP/1.1 404 Not Found\r\n\r\n")
    for _ in range(4):
        read(script, b"POST /y HTTP/1.1\r\n")
    assert only(script.session()) == "GET /index.html → 200, 615 bytes; GET /x → 404, 26 bytes; POST /y → no answer ×4"


def test_what_is_not_http() -> None:
    script = server()
    read(script, b"*1\r\n$4\r\nPING\r\n")
    write(script, b"+PONG\r\n", ret=1310)
    assert only(script.session()) == "in 14 bytes, out 1 310 bytes"


def test_redis_get_is_not_http() -> None:
    script = server()
    read(script, b"GET key\r\n")
    assert only(script.session()) == "in 9 bytes, out 0 bytes"


def test_nothing_moved() -> None:
    assert only(server().session()) == ""


@pytest.mark.parametrize(
    ("payloads", "expected"),
    [
        ([(b"GET /a HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n")], "GET /a → 200; still open"),
        ([(b"hello", b"world!")], "in 5 bytes, out 6 bytes; still open"),
    ],
)
def test_from_packets_alone(payloads: list[tuple[bytes, bytes]], expected: str) -> None:
    script = Script(ports=(8080,))
    script.handshake(CLIENT, SERVER)
    seq, ack = 1001, 5001
    for came, went in payloads:
        script.packet(CLIENT, SERVER, P, seq=seq, ack=ack, payload=came)
        script.packet(SERVER, CLIENT, P, seq=ack, ack=seq + len(came), payload=went)
    session = script.session()
    assert [summarise(session, c.id) for c in session.connections] == [expected]


def test_equal_neighbours_are_told_once() -> None:
    script = server()
    for target in (b"/a", b"/a", b"/b", b"/b", b"/b", b"/a", b"/c", b"/d"):
        read(script, b"GET " + target + b" HTTP/1.1\r\nX: " + target * 3)
        write(script, b"HTTP/1.1 200 OK\r\n\r\n")
    assert only(script.session()) == (
        "GET /a → 200, 19 bytes ×2; GET /b → 200, 19 bytes ×3; GET /a → 200, 19 bytes; and 2 more requests"
    )


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (b"HTTP/1.1 404 No\r\n\r\n", "GET / → 200, 19 bytes; GET / → 404, 19 bytes"),
        (b"HTTP/1.1 200 Good\r\n\r\n", "GET / → 200, 19 bytes; GET / → 200, 21 bytes"),
        (b"", "GET / → 200, 19 bytes; GET / → no answer"),
    ],
)
def test_other_answers_are_told_apart(second: bytes, expected: str) -> None:
    script = server()
    for answer in (b"HTTP/1.1 200 OK\r\n\r\n", second):
        read(script, b"GET / HTTP/1.1\r\n\r\n")
        if answer:
            write(script, answer)
    assert only(script.session()) == expected


def test_many_connections_at_once_tell_their_own() -> None:
    script = Script(ports=(8080,)).process(77, comm="python3").seed_fd(77, 3, inode=11)
    peers = [address("127.0.0.1", 40000 + i) for i in range(5)]
    for fd, peer in enumerate(peers, 7):
        script.event(77, 77, Call.accept4, 1, 1, 0, fd=3, ret=fd, sockaddr=peer)
    # Interleaved, the third silent, the fourth not HTTP.
    for fd, payload in ((7, b"GET /0 "), (8, b"GET /1 "), (10, b"\x16\x03\x01\x00\x01abc"), (11, b"GET /4 ")):
        payload += b"" if fd == 10 else b"HTTP/1.1\r\n"
        script.event(77, 77, Call.read, 4096, 8192, 0, fd=fd, ret=len(payload), payload=payload)
    for fd in (11, 8, 7):
        head = b"HTTP/1.0 20%d OK\r\n" % (fd - 7)
        script.event(77, 77, Call.write, 4096, len(head), 0, fd=fd, ret=len(head), payload=head)
    session = script.session()
    lines = dict(zip((c.peer for c in session.connections), summarise_all(session), strict=True))
    assert [lines[peer] for peer in peers] == [
        "GET /0 → 200, 17 bytes",
        "GET /1 → 201, 17 bytes",
        "",
        "in 8 bytes, out 0 bytes",
        "GET /4 → 204, 17 bytes",
    ]


def test_a_request_sent_again_on_the_wire_counts_once() -> None:
    script = Script(ports=(8080,))
    script.handshake(CLIENT, SERVER)
    for _ in range(3):
        script.packet(CLIENT, SERVER, P, seq=1001, ack=5001, payload=b"GET /a HTTP/1.1\r\n\r\n")
    script.packet(SERVER, CLIENT, P, seq=5001, ack=1020, payload=b"HTTP/1.1 200 OK\r\n\r\n")
    assert summarise_all(script.session()) == ["GET /a → 200; still open"]


@pytest.mark.parametrize(
    ("flags", "sender", "expected"),
    [
        (TcpFlag.FIN | TcpFlag.ACK, CLIENT, "the client closed, the server did not"),
        (TcpFlag.FIN | TcpFlag.ACK, SERVER, "the server closed, the client did not"),
        (TcpFlag.RST, CLIENT, "reset by the client"),
        (TcpFlag.RST, SERVER, "reset by the server"),
    ],
)
def test_how_it_ended_on_the_wire(flags: TcpFlag, sender: Address, expected: str) -> None:
    script = Script(ports=(8080,))
    script.handshake(CLIENT, SERVER)
    seq, ack = (1001, 5001) if sender == CLIENT else (5001, 1001)
    script.packet(sender, SERVER if sender == CLIENT else CLIENT, flags, seq=seq, ack=ack)
    assert summarise_all(script.session()) == [expected]


def test_of_one_side_alone_nothing_is_said_of_the_other() -> None:
    request = b"GET /a HTTP/1.1\r\n\r\n"
    script = Script(ports=(8080,))
    script.packet(CLIENT, SERVER, P, seq=1001, ack=5001, payload=request)
    script.packet(CLIENT, SERVER, TcpFlag.FIN | TcpFlag.ACK, seq=1001 + len(request), ack=5020)
    assert summarise_all(script.session()) == ["GET /a; only the client's packets were captured"]
    script = Script(ports=(8080,))
    script.packet(SERVER, CLIENT, P, seq=5001, ack=1020, payload=b"hello")
    assert summarise_all(script.session()) == ["out 5 bytes; only the server's packets were captured"]


def test_the_server_of_connections_that_began_before_the_capture() -> None:
    """Without the asked port: whoever has several connections, and who was seen to take one."""
    script = Script(engine="")
    for port in (40_000, 40_001):
        client = Address.inet(CLIENT.packed, port)
        script.packet(SERVER, client, P, seq=5001, ack=1001, payload=b"hello")
        script.packet(client, SERVER, P, seq=1001, ack=5006, payload=b"hi")
    session = script.session()
    assert [connection.local for connection in session.connections] == [SERVER, SERVER]
    assert [(c.read_bytes, c.written_bytes) for c in session.connections] == [(2, 5), (2, 5)]


def test_nothing_at_all() -> None:
    assert summarise_all(Script(ports=(8080,)).session()) == []
