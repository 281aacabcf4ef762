from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.narration.http1 import Direction, Http1State, narrate, tell

IN, OUT = Direction.RECEIVED, Direction.SENT


def told(*steps: tuple[Direction, bytes, int] | tuple[Direction, bytes]) -> list[str]:
    """A dialogue on one connection; where a total is missing, the prefix is the whole."""
    state = Http1State()
    return [tell(step[0], step[1], step[2] if len(step) == 3 else len(step[1]), state) for step in steps]


def test_flasks_several_sends() -> None:
    assert told(
        (IN, b"GET /index.html HTTP/1.1\r\nHost: localhost", 78),
        (OUT, b"HTTP/1.1 200 OK\r\n"),
        (OUT, b"Server: Werkzeug\r\nContent-Length: 12\r\n\r\n"),
        (OUT, b"Hello, world"),
        (IN, b"GET /nope HTTP/1.1\r\n\r\n"),
    ) == [
        "request GET /index.html HTTP/1.1 (78 bytes)",
        "status line 200 OK (17 bytes)",
        "2 headers (40 bytes)",
        "body 12 bytes",
        "request GET /nope HTTP/1.1 (22 bytes)",
    ]


def test_a_head_longer_than_the_prefix_then_its_body() -> None:
    assert told(
        (OUT, b"HTTP/1.0 404 NOT FOUND\r\nServer: We", 154),
        (OUT, b"<!doctype html>", 207),
    ) == ["status line and headers 404 NOT FOUND (154 bytes)", "body 207 bytes"]


def test_a_whole_response_in_one_send() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    assert told((OUT, response)) == ["status line and headers 200 OK, 1 header and 5 bytes of body (43 bytes)"]


def test_headers_line_by_line() -> None:
    assert told(
        (OUT, b"HTTP/1.1 204 No Content\r\n"),
        (OUT, b"A: b\r\n"),
        (OUT, b"\r\n"),
        (OUT, b"HTTP/1.1 200 OK\r\n"),
    ) == [
        "status line 204 No Content (25 bytes)",
        "1 header (6 bytes)",
        "end of headers (2 bytes)",
        "status line 200 OK (17 bytes)",
    ]


def test_chunks() -> None:
    assert told(
        (OUT, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (OUT, b"5\r\nhello\r\n"),
        (OUT, b"400\r\naaaa", 1024 + 7),
        (OUT, b"3\r\nabc\r\n2\r\nde\r\n"),
        (OUT, b"0\r\n\r\n"),
        (OUT, b"HTTP/1.1 200 OK\r\n"),
    ) == [
        "status line and headers 200 OK, 1 header (47 bytes)",
        "chunk of 5 bytes (10 bytes)",
        "chunk of 1024 bytes (1031 bytes)",
        "2 chunks (15 bytes)",
        "last chunk (5 bytes)",
        "status line 200 OK (17 bytes)",
    ]


def test_a_body_that_looks_like_a_request_is_a_body() -> None:
    assert told(
        (IN, b"POST / HTTP/1.1\r\nContent-Length: 20\r\n\r\n"),
        (IN, b"GET / HTTP/1.1\r\n\r\n.."),
        (IN, b"GET / HTTP/1.1\r\n\r\n"),
    ) == [
        "request POST / HTTP/1.1 (39 bytes)",
        "body 20 bytes",
        "request GET / HTTP/1.1 (18 bytes)",
    ]


def test_no_body_follows_the_answer_to_head() -> None:
    assert told(
        (IN, b"HEAD / HTTP/1.1\r\n\r\n"),
        (OUT, b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"),
        (OUT, b"HTTP/1.1 200 OK\r\n\r\n"),
    )[2].startswith("status line and headers 200 OK")


def test_a_request_line_longer_than_the_prefix() -> None:
    assert told((IN, b"GET /a/very/long/path", 4000)) == ["request GET /a/very/long/path… (4000 bytes)"]


@pytest.mark.parametrize(
    "payload", [b"*1\r\n$4\r\nPING\r\n", b"\x16\x03\x01\x02\x00", b"SELECT 1", b"PRI * HTTP/2.0\r\n", b"x"]
)
def test_other_protocols_are_left_alone(payload: bytes) -> None:
    assert told((IN, payload)) == [""]


def test_control_characters_of_the_peer_are_escaped() -> None:
    assert told((IN, b"GET /\x1b[31m HTTP/1.1\r\n\r\n")) == ["request GET /\\33[31m HTTP/1.1 (23 bytes)"]


PARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"HEAD /",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 304\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999999999\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n",
        b"ffffffffffffffff\r\n",
        b"\n",
        b"x",
    ]
)
PAYLOADS = st.one_of(st.binary(max_size=40), st.lists(PARTS, max_size=6).map(b"".join))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Direction), PAYLOADS, st.integers(-5, 2000)), max_size=10))
def test_never_raises_and_never_counts_more_than_there_was(steps: list[tuple[Direction, bytes, int]]) -> None:
    state = Http1State()
    for direction, prefix, extra in steps:
        total = len(prefix) + extra
        piece = narrate(direction, prefix, total, state)
        assert piece is None or 0 <= piece.body_bytes <= max(total, 0)
