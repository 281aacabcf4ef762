from __future__ import annotations

import ast

from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.narration.payload import hex_line, is_text, payload_words, plain, quote


def test_quoting_as_strace_does() -> None:
    assert quote(b'a"b\\\r\n\t\x00\x001\x1b\xff') == '"a\\"b\\\\\\r\\n\\t\\0\\0001\\33\\377"'
    assert quote(b"abc", more=True) == '"abc"...'
    assert quote(b"abcdef", limit=3) == '"abc"...'
    assert quote(b"") == '""'


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_a_quoted_payload_can_be_read_back(data: bytes) -> None:
    # C's escapes are Python's as well.
    assert ast.literal_eval("b" + quote(data, limit=100)) == data
    assert quote(data, limit=100).isprintable()


def test_text_or_hex() -> None:
    assert payload_words(b"+PONG\r\n", 7) == '7 bytes: "+PONG"'
    assert payload_words(b"one\r\ntwo\r\n", 10) == '10 bytes: "one"...'
    assert payload_words(b"cut", 900) == '900 bytes: "cut"...'
    assert payload_words(b"x", 1) == '1 byte: "x"'
    assert (
        payload_words(b"\x16\x03\x01" + bytes(20), 600)
        == "600 bytes: 16 03 01 00 00 00 00 00 00 00 00 00 00 00 00 00 …"
    )
    assert payload_words(b"", 12) == "12 bytes"
    assert hex_line(b"\x01\x02") == "01 02"
    assert plain(b"/a b") == "/a b"
    assert plain(b"\x1b[2J") == "\\33[2J"


def test_a_character_cut_by_the_prefix_is_still_text() -> None:
    assert is_text("naïve".encode()[:3])
    assert not is_text(b"\xff\xfe\xfd\xfc")
    assert not is_text(b"")


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 2000))
def test_never_raises(data: bytes, total: int) -> None:
    is_text(data)
    payload_words(data, total)
