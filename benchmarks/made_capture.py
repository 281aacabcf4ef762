"""A large capture as loopback shows an HTTP server under load, made column by column.

Most connections are plain (handshake, up to four requests on it, both FINs); some lose a segment and get it again by
duplicate ACKs or a timeout, meet a full receiver, fall silent until keep-alives, are reset, or lack a FIN. Clients
use their ports again and again, as `wrk` with new connections does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_SYN, _ACK, _PSH, _FIN, _RST = 0x02, 0x10, 0x08, 0x01, 0x04
_CLIENT, _SERVER = 0, 1
_MSS = 1448
_REQUEST = b"GET /items?page=%d HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept: */*\r\nUser-Agent: made\r\n\r\n"
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: made\r\nContent-Type: text/plain\r\nContent-Length: 40\r\n\r\n" + b"x" * 39 + b"\n"
)
_PAGE = b"HTTP/1.1 200 OK\r\nServer: made\r\nContent-Type: text/html\r\nContent-Length: 2830\r\n\r\n".ljust(_MSS, b"p")
_BODIES = (b"", _REQUEST, _ANSWER, _PAGE, b"b" * _MSS, b"b", b"")
_NOTHING, _ASK, _TELL, _HEAD, _REST, _PROBE, _LOST = range(len(_BODIES))
"""What a packet carries. `_LOST`: a segment as `_REST`, which never came."""

PORT = 8080
_FIRST_PORT, _PORTS = 32_768, 28_232
_START_S = 1_700_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One packet of a play: µs after the one before; back: bytes that its sequence number lies below the next new."""

    wait_us: int
    side: int
    flags: int
    body: int = _NOTHING
    back: int = 0
    window: int = 512
    ack_back: int = 0
    """Bytes that it leaves unacknowledged of what the other side sent."""


def _exchange(wait_us: int = 60) -> list[_Step]:
    return [
        _Step(wait_us=wait_us, side=_CLIENT, flags=_PSH | _ACK, body=_ASK),
        _Step(wait_us=10, side=_SERVER, flags=_ACK),
        _Step(wait_us=150, side=_SERVER, flags=_PSH | _ACK, body=_TELL),
        _Step(wait_us=10, side=_CLIENT, flags=_ACK),
    ]


_OPEN = [
    _Step(wait_us=0, side=_CLIENT, flags=_SYN, window=65_495),
    _Step(wait_us=10, side=_SERVER, flags=_SYN | _ACK, window=65_483),
    _Step(wait_us=8, side=_CLIENT, flags=_ACK),
]
_CLOSE = [
    _Step(wait_us=40, side=_CLIENT, flags=_FIN | _ACK),
    _Step(wait_us=40, side=_SERVER, flags=_FIN | _ACK),
    _Step(wait_us=8, side=_CLIENT, flags=_ACK),
]
_ASKED = _exchange()[:2]


def _with_loss(wait_us: int, doubles: int) -> list[_Step]:
    """A page of which the middle is lost; `doubles` duplicate ACKs come before it is sent again."""
    return [
        *_ASKED,
        _Step(wait_us=200, side=_SERVER, flags=_ACK, body=_HEAD),
        _Step(wait_us=0, side=_SERVER, flags=_ACK, body=_LOST),
        *[
            step
            for _ in range(max(doubles, 1))
            for step in (
                _Step(wait_us=3, side=_SERVER, flags=_ACK, body=_REST),
                _Step(wait_us=5, side=_CLIENT, flags=_ACK, ack_back=_MSS),
            )
        ],
        _Step(wait_us=wait_us, side=_SERVER, flags=_PSH | _ACK, body=_REST, back=_MSS * (max(doubles, 1) + 1)),
        _Step(wait_us=10, side=_CLIENT, flags=_ACK),
    ]


_PLAYS: tuple[tuple[float, list[_Step]], ...] = (
    (0.46, [*_OPEN, *_exchange(), *_CLOSE]),
    (0.27, [*_OPEN, *_CLOSE]),
    (0.15, [*_OPEN, *_exchange() * 2, *_CLOSE]),
    (0.03, [*_OPEN, *_exchange() * 4, *_CLOSE]),
    (0.02, [*_OPEN, *_exchange(), _Step(wait_us=30, side=_CLIENT, flags=_RST | _ACK)]),
    (0.03, [*_OPEN, *_with_loss(30, 3), *_CLOSE]),
    (0.015, [*_OPEN, *_with_loss(203_000, 1), *_CLOSE]),
    (
        0.01,
        [
            *_OPEN,
            *_ASKED,
            _Step(wait_us=200, side=_SERVER, flags=_ACK, body=_HEAD),
            _Step(wait_us=10, side=_CLIENT, flags=_ACK, window=0),
            _Step(wait_us=210_000, side=_SERVER, flags=_ACK, back=1),
            _Step(wait_us=10, side=_CLIENT, flags=_ACK, window=0),
            _Step(wait_us=90_000, side=_CLIENT, flags=_ACK, window=256),
            _Step(wait_us=10, side=_SERVER, flags=_PSH | _ACK, body=_REST),
            _Step(wait_us=10, side=_CLIENT, flags=_ACK),
            *_CLOSE,
        ],
    ),
    (
        0.01,
        [
            *_OPEN,
            *_exchange(),
            *[
                _Step(wait_us=500_000, side=_SERVER, flags=_ACK, back=1),
                _Step(wait_us=8, side=_CLIENT, flags=_ACK),
            ]
            * 2,
            *_CLOSE,
        ],
    ),
    (0.005, [*_OPEN, *_exchange(), _CLOSE[0], _Step(wait_us=10, side=_SERVER, flags=_ACK)]),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Play:
    """A play's packets as columns; sequence numbers count from the sender's first."""

    wait_us: Ints
    side: Ints
    flags: Ints
    body: Ints
    seq: Ints
    ack: Ints
    window: Ints


def _columns(steps: list[_Step]) -> _Play:
    following = [0, 0]
    rows = []
    for step in steps:
        size = _MSS if step.body == _LOST else len(_BODIES[step.body])
        seq = following[step.side] - step.back
        following[step.side] += (size if not step.back or step.body == _NOTHING else 0) + bool(
            step.flags & (_SYN | _FIN)
        )
        if step.body == _LOST:
            continue
        seen = following[1 - step.side] if step.flags & _ACK else 0
        if step.ack_back:
            # What follows the hole is not acknowledged, however much of it there is.
            seen = 1 + len(_PAGE)
        rows.append((step.wait_us, step.side, step.flags, step.body, seq, seen, step.window))
    return _Play(**{n: np.array(c, np.int64) for n, c in zip(_Play.__slots__, zip(*rows, strict=True), strict=True)})


def make_capture(path: Path, connections: int) -> int:
    """Write a pcap file (Ethernet, µs); the number of packets."""
    random = np.random.default_rng(1)
    plays = [_columns(steps) for _, steps in _PLAYS]
    weights = np.array([weight for weight, _ in _PLAYS])
    which = random.choice(len(plays), connections, p=weights / weights.sum())
    begins_us = np.arange(connections) * 50
    pace = random.uniform(0.6, 3.0, connections)
    parts: dict[str, list[Ints]] = {}
    for number, play in enumerate(plays):
        mine = np.flatnonzero(which == number)
        count = len(play.side)
        # Timeouts are what they are; only work goes at its own pace.
        waits = np.where(play.wait_us < 10_000, play.wait_us[None, :] * pace[mine, None], play.wait_us[None, :])
        columns = {
            "connection": np.repeat(mine, count),
            "time_us": (begins_us[mine, None] + np.cumsum(waits, axis=1)).astype(np.int64).ravel(),
            **{
                name: np.tile(getattr(play, name), len(mine))
                for name in ("side", "flags", "body", "seq", "ack", "window")
            },
        }
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    table = {name: np.concatenate(columns) for name, columns in parts.items()}
    order = np.lexsort((table["seq"], table["connection"], table["time_us"]))
    table = {name: column[order] for name, column in table.items()}
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for low in range(0, len(order), 1 << 16):
            file.write(_packets({name: column[low : low + (1 << 16)] for name, column in table.items()}))
    return len(order)


def _packets(table: dict[str, Ints]) -> bytes:
    """pcap records of some packets."""
    count = len(table["side"])
    opening = (table["flags"] & _SYN) != 0
    header = np.where(opening, 40, 32)
    size = 14 + 20 + header + np.array([len(b) for b in _BODIES])[table["body"]]
    rows = np.zeros((count, 16 + 74), np.uint8)

    def put(at: int, values: Ints | int, dtype: str) -> None:
        column = np.ascontiguousarray(np.broadcast_to(np.asarray(values), count).astype(dtype))
        rows[:, at : at + column.itemsize] = column.view(np.uint8).reshape(count, -1)

    put(0, _START_S + table["time_us"] // 1_000_000, "<u4")
    put(4, table["time_us"] % 1_000_000, "<u4")
    put(8, size, "<u4")
    put(12, size, "<u4")
    put(16 + 12, 0x0800, ">u2")
    ip, tcp = 16 + 14, 16 + 34
    put(ip, 0x4500, ">u2")
    put(ip + 2, size - 14, ">u2")
    put(ip + 6, 0x4000, ">u2")
    put(ip + 8, 0x4006, ">u2")
    put(ip + 12, 0x7F000001, ">u4")
    put(ip + 16, 0x7F000001, ">u4")
    side, connection = table["side"], table["connection"]
    port = _FIRST_PORT + connection % _PORTS
    put(tcp, np.where(side == _CLIENT, port, PORT), ">u2")
    put(tcp + 2, np.where(side == _CLIENT, PORT, port), ">u2")
    first = connection * 2_654_435_761 + 1
    mine, other = np.where(side == _CLIENT, first, first * 3), np.where(side == _CLIENT, first * 3, first)
    put(tcp + 4, (mine + table["seq"]) % 2**32, ">u4")
    put(tcp + 8, np.where(table["flags"] & _ACK, (other + table["ack"]) % 2**32, 0), ">u4")
    put(tcp + 12, header << 2, "u1")
    put(tcp + 13, table["flags"], "u1")
    put(tcp + 14, table["window"], ">u2")
    put(tcp + 20, 0x0101080A, ">u4")
    put(tcp + 24, table["time_us"] // 1000 % 2**32, ">u4")
    options = struct.pack(">BBHBBBBBB", 2, 4, 65_495, 4, 2, 1, 3, 3, 7)
    rows[opening, tcp + 20 : tcp + 30] = np.frombuffer(options, np.uint8)
    rows[opening, tcp + 30 : tcp + 40] = np.frombuffer(bytes([8, 10, *range(8)]), np.uint8)

    begin = np.cumsum(16 + size) - (16 + size)
    out = np.zeros(int((16 + size).sum()), np.uint8)
    for length in (32, 40):
        some = np.flatnonzero(header == length)
        out[begin[some, None] + np.arange(50 + length)] = rows[some, : 50 + length]
    for number, body in enumerate(_BODIES):
        some = np.flatnonzero(table["body"] == number)
        if body:
            out[begin[some, None] + 82 + np.arange(len(body))] = np.frombuffer(body, np.uint8)
    return out.tobytes()
