"""Raw answers of sock_diag: where they end, what is doubted, what is refused."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from sockscope.errors import CannotObserveError
from sockscope.sources.sockets import netlink
from sockscope.sources.sockets.fd_scan import LIBRARY
from sockscope.sources.sockets.netlink import Query

pytestmark = pytest.mark.skipif(not os.path.exists(LIBRARY), reason="not compiled: python hatch_build.py")

SEQUENCE, PORT = 0x12345678, 4242
HEADER = struct.Struct("<IHHII")


def message(kind: int, payload: bytes, *, flags: int = 2, sequence: int = SEQUENCE, port: int = PORT) -> bytes:
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, port) + payload


SOCKETS = message(20, b"x" * 72) * 3
DONE = message(3, struct.pack("<i", 0))


def received(*datagrams: bytes) -> tuple[bytes, int, int]:
    """What one receive gives when these datagrams wait (and then none)."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sending, receiving:
        receiving.setblocking(False)
        for datagram in datagrams:
            sending.send(datagram)
        view, last, reason = netlink._receive(receiving, SEQUENCE, PORT)
        return bytes(view), last, reason


def end(data: bytes, last: int = 0) -> tuple[bool, bool]:
    return netlink._end(Query.TCP4, memoryview(data), last, (SEQUENCE, PORT))


@pytest.mark.parametrize("tail", [[DONE], [SOCKETS + DONE]])
def test_it_receives_to_the_end_and_no_further(tail: list[bytes]) -> None:
    data, last, reason = received(SOCKETS, SOCKETS, *tail, b"not ours")
    assert data == SOCKETS * 2 + b"".join(tail)
    assert last == len(SOCKETS) * 2
    assert reason == 0
    assert end(data, last) == (True, False)


def test_another_questions_end_is_not_ours() -> None:
    other = message(3, struct.pack("<i", 0), sequence=1)
    data, last, reason = received(SOCKETS, other, SOCKETS)
    assert data == SOCKETS + other + SOCKETS
    assert reason == errno.EAGAIN
    assert end(data, last) == (False, False)
    assert end(message(3, struct.pack("<i", 0), port=1)) == (False, False)


def test_a_doubted_dump() -> None:
    data, last, _ = received(SOCKETS, message(3, struct.pack("<i", 0), flags=0x12))
    assert end(data, last) == (True, True)


@pytest.mark.parametrize("kind", [2, 3])
def test_a_refusal(kind: int) -> None:
    refusal = message(kind, struct.pack("<i", -errno.ENOENT))
    data, last, _ = received(SOCKETS, refusal, SOCKETS)
    assert data == SOCKETS + refusal
    with pytest.raises(CannotObserveError, match="gives no list of TCP4 sockets: No such file") as caught:
        end(data, last)
    assert caught.value.help_text == "modprobe tcp_diag"


def test_nothing_and_noise() -> None:
    assert received() == (b"", 0, errno.EAGAIN)
    assert end(b"") == (False, False)
    data, last, _ = received(b"", b"x", b"y" * 19)
    assert data == b"x" + b"y" * 19
    assert end(data, last) == (False, False)


def test_what_was_not_asked_is_not_taken() -> None:
    with netlink.Ahead((), tcp_info=False) as ahead:
        assert ahead.take(Query.TCP4, netlink.request(Query.TCP4)) == []


@pytest.mark.live
def test_an_answer_is_taken_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        inode = os.fstat(server.fileno()).st_ino
        with netlink.Ahead((Query.TCP4,), tcp_info=False) as ahead:
            body = netlink.request(Query.TCP4, tcp_info=False)
            assert ahead.take(Query.TCP4, netlink.request(Query.TCP4, tcp_info=True)) == []
            ((view, doubted),) = ahead.take(Query.TCP4, body)
            assert not doubted
            assert struct.pack("<I", inode) in bytes(view)
            assert ahead.take(Query.TCP4, body) == []
