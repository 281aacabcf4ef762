"""sock_diag answers made by hand."""

from __future__ import annotations

import socket
import struct

import numpy as np

from sockscope.sources.sockets.decode import Words

SOCK_DIAG = 20


def message(body: bytes, kind: int = SOCK_DIAG, flags: int = 2) -> bytes:
    raw = struct.pack("<IHHII", 16 + len(body), kind, flags, 7, 9) + body
    return raw + b"\0" * (-len(raw) % 4)


def attribute(kind: int, data: bytes) -> bytes:
    raw = struct.pack("<HH", 4 + len(data), kind) + data
    return raw + b"\0" * (-len(raw) % 4)


def tcp_info(*, rtt: int = 0, cwnd: int = 0, received: int = 0, size: int = 240) -> bytes:
    data = bytearray(240)
    struct.pack_into("<I", data, 68, rtt)
    struct.pack_into("<I", data, 80, cwnd)
    struct.pack_into("<Q", data, 128, received)
    return bytes(data[:size])


def inet(
    *,
    family: int = 2,
    state: int = 1,
    local: str = "127.0.0.1",
    local_port: int = 80,
    peer: str = "127.0.0.1",
    peer_port: int = 40000,
    cookie: int = 1,
    queues: tuple[int, int] = (0, 0),
    inode: int = 5,
    attributes: bytes = b"",
) -> bytes:
    def key(text: str) -> bytes:
        kind = socket.AF_INET6 if ":" in text else socket.AF_INET
        return socket.inet_pton(kind, text).ljust(16, b"\0")

    body = struct.pack("<BBBB", family, state, 0, 0)
    body += struct.pack("!HH", local_port, peer_port) + key(local) + key(peer)
    body += struct.pack("<IQ", 0, cookie) + struct.pack("<IIIII", 0, *queues, 1000, inode)
    return message(body + attributes)


def unix(*, kind: int = 1, state: int = 1, inode: int = 5, cookie: int = 3, attributes: bytes = b"") -> bytes:
    return message(struct.pack("<BBBBIQ", 1, kind, state, 0, inode, cookie) + attributes)


def words(raw: bytes) -> Words:
    return np.frombuffer(raw[: len(raw) & ~3], np.uint32)
