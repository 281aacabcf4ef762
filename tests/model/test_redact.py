from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.model.calls import Call
from sockscope.model.events import Events, Section, unpack_sections
from sockscope.model.redact import redact, redact_events, redact_regions
from tests.analysis.hand import Made, table


@pytest.mark.parametrize(
    ("payload", "masked"),
    [
        (b"GET / HTTP/1.1\r\nAuthorization: Basic dTpw\r\nA: b\r\n", b"Authorization: **********\r\nA: b\r\n"),
        (b"x\r\nproxy-authorization:Bearer x\r\n", b"proxy-authorization:********\r\n"),
        (b"x\r\nCookie: a=1; b=2\r\n\r\n", b"Cookie: ********\r\n\r\n"),
        (b"x\r\nSet-Cookie: sid=1; Path=/\r\n\r\n", b"Set-Cookie: *************\r\n\r\n"),
        (b"x\r\nCookie: cut off by the pre", b"Cookie: ******************"),
        (b"GET /?user=a&password=hunter2&x=1 HTTP/1.1", b"/?user=a&password=*******&x=1 HTTP/1.1"),
        (b"GET /?access_token=abc HTTP/1.1", b"access_token=*** HTTP/1.1"),
        (b"api_key=k&passwd=p&secret=s", b"api_key=*&passwd=*&secret=*"),
        (b'{"password": "a\\"b", "n": 1}', b'{"password": "****", "n": 1}'),
        (b"*2\r\n$4\r\nAUTH\r\n$3\r\nabc\r\n*1\r\n$4\r\nPING\r\n", b"AUTH\r\n$3\r\n***\r\n*1\r\n$4\r\nPING\r\n"),
        (b"*3\r\n$4\r\nauth\r\n$1\r\nu\r\n$3\r\nabc\r\n", b"auth\r\n$1\r\n*\r\n$3\r\n***\r\n"),
        (b"AUTH hunter2\r\nPING\r\n", b"AUTH *******\r\nPING\r\n"),
    ],
)
def test_credentials_are_masked(payload: bytes, masked: bytes) -> None:
    assert redact(payload).endswith(masked)
    assert len(redact(payload)) == len(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"GET /index.html HTTP/1.1\r\nHost: a\r\n\r\n",
        b"the token of love",
        b"author authorised",
        b"\x16\x03\x01\x00",
    ],
)
def test_all_else_stays(payload: bytes) -> None:
    assert redact(payload) == payload


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_the_length_stays(payload: bytes) -> None:
    assert len(redact(payload)) == len(payload)


WORDS = [
    b"Cookie: ",
    b"password=",
    b"\r\n",
    b"&",
    b'"token":"',
    b"AUTH ",
    b"\r\nAUTH\r\n$3\r\n",
    b"abc",
    b"\x02\x00",
    b" ",
]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=8), min_size=1, max_size=8))
def test_a_table_is_masked_like_its_payloads_one_by_one(payloads: list[list[bytes]]) -> None:
    made = [
        Made(
            call=Call.read,
            ret=1,
            sections=((Section.SOCKADDR, b"Cookie: x"), (Section.PAYLOAD, b"".join(parts)), (Section.PATH, b"token=x")),
        )
        for parts in payloads
    ]
    events = redact_events(table(*made))
    for event, parts in enumerate(payloads):
        kinds = [(kind, data) for kind, _, data in unpack_sections(events.blob_of(event))]
        assert kinds == [
            (Section.SOCKADDR, b"Cookie: x"),
            (Section.PAYLOAD, redact(b"".join(parts))),
            (Section.PATH, b"token=x"),
        ]


def test_a_value_cut_by_the_prefix_does_not_spill_into_the_next_event() -> None:
    first = Made(call=Call.read, ret=99, sections=((Section.PAYLOAD, b"Cookie: abc"),))
    second = Made(call=Call.read, ret=99, sections=((Section.PAYLOAD, b"GET /?token=abc HTTP/1.1\r\n"),))
    events = redact_events(table(first, second))
    assert events.section(0, Section.PAYLOAD) == b"Cookie: ***"
    assert events.section(1, Section.PAYLOAD) == b"GET /?token=*** HTTP/1.1\r\n"


def test_a_blob_that_cannot_be_written_is_copied() -> None:
    made = table(Made(call=Call.read, ret=99, sections=((Section.PAYLOAD, b"Cookie: abc"),)))
    frozen = Events(records=made.records, blob=np.frombuffer(made.blob.tobytes(), np.uint8))
    assert redact_events(frozen).section(0, Section.PAYLOAD) == b"Cookie: ***"
    assert frozen.section(0, Section.PAYLOAD) == b"Cookie: abc"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_noise_in_the_blob_is_no_trouble(blobs: list[bytes]) -> None:
    events = table(*(Made(call=Call.read, raw_blob=blob) for blob in blobs))
    size = len(events.blob)
    assert len(redact_events(events).blob) == size


def test_regions_are_masked_and_nothing_beside_them() -> None:
    data = np.frombuffer(b"HEADERCookie: abcTRAIL", np.uint8).copy()
    redact_regions(data, np.array([6]), np.array([17]))
    assert data.tobytes() == b"HEADERCookie: ***TRAIL"
