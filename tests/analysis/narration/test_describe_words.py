from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.describe_words import duration, ready_fds, timeout_of, words
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Section
from tests.analysis.hand import LOOPBACK, Made, sockaddr_in, table

CLIENT = (Section.SOCKADDR, sockaddr_in(LOOPBACK, 40112))
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            Made(call=Call.accept4, args=(3, 1, 1), ret=7, sections=(CLIENT,)),
            "a client connected from 127.0.0.1:40112; its descriptor is 7",
        ),
        (Made(call=Call.accept, args=(3,), ret=-errno.EAGAIN), "nobody else waits to be accepted (EAGAIN)"),
        (
            Made(call=Call.recvfrom, args=(7, 1, 8192), ret=len(REQUEST), sections=((Section.PAYLOAD, REQUEST),)),
            f"read {len(REQUEST)} bytes: request GET / HTTP/1.1",
        ),
        (
            Made(call=Call.read, args=(7, 1, 8192), ret=0),
            "told end of stream: the peer closed its sending half",
        ),
        (Made(call=Call.read, args=(7, 1, 8192), ret=-errno.EAGAIN), "nothing to read yet (EAGAIN)"),
        (Made(call=Call.poll, args=(1, 1, 500)), "waited 500 ms for an event, none came"),
        (Made(call=Call.epoll_wait, args=(5, 1, 512, 0)), "looked for events without waiting, there were none"),
        (
            Made(
                call=Call.sendto,
                args=(7, 1, len(RESPONSE)),
                ret=len(RESPONSE),
                sections=((Section.PAYLOAD, RESPONSE),),
            ),
            f"sent {len(RESPONSE)} bytes: status line and headers 200 OK, 3 headers",
        ),
        (
            Made(call=Call.sendto, args=(7, 1, 1000), ret=10, sections=((Section.PAYLOAD, b"x" * 10),)),
            'sent 10 bytes: "xxxxxxxxxx"; only 10 of 1000 bytes were taken',
        ),
        (
            Made(
                call=Call.epoll_wait,
                args=(5, 1, 512, -1),
                ret=1,
                sections=((Section.EPOLL_EVENTS, struct.pack("<IQ", 0x2001, 7)),),
            ),
            "woken: descriptor 7 is readable, the peer closed its sending half",
        ),
        (Made(call=Call.close, args=(7,)), ""),
        (Made(call=Call.clone, args=(0x1200011,), ret=812), "started process 812"),
        (Made(call=Call.fork, ret=812), "started process 812"),
        (
            Made(call=Call.clone3, ret=812, sections=((Section.CLONE_ARGS, struct.pack("<8Q", 0x3D0F00, *[0] * 7)),)),
            "started thread 812",
        ),
        (
            Made(call=Call.recvfrom, args=(7, 1, 64), ret=0, sections=(CLIENT,)),
            "read an empty datagram",
        ),
        (
            Made(call=Call.bind, args=(3,), sections=((Section.SOCKADDR, sockaddr_in(LOOPBACK, 0)),)),
            "took a free port at 127.0.0.1",
        ),
        (Made(call=Call.task_exit, tid=78), "the thread ended"),
        (
            Made(call=Call.setsockopt, args=(7, 1, 13, 1, 8), sections=((Section.OPTION, struct.pack("<ii", 1, 0)),)),
            "close will reset the connection (RST)",
        ),
        (
            Made(call=Call.epoll_wait, args=(5,), ret=-errno.EINTR, flags=EventFlag.TRACER_EINTR),
            "interrupted by the attach, not a fault of the program",
        ),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_words(made: Made, expected: str) -> None:
    assert words(table(made), 0) == expected


def test_what_a_wait_reported() -> None:
    poll = Made(call=Call.poll, ret=1, sections=((Section.POLLFDS, struct.pack("<ihhihh", 3, 1, 0, 4, 1, 1)),))
    assert ready_fds(View.of(table(poll), 0)) == [(4, 1)]
    select = Made(call=Call.select, args=(5,), ret=2, sections=((Section.FDSETS, struct.pack("<3Q", 16, 16, 0)),))
    assert ready_fds(View.of(table(select), 0)) == [(4, 5)]


def test_time_limits() -> None:
    assert timeout_of(View.of(table(Made(call=Call.epoll_wait, args=(5, 1, 1, -1))), 0)) is None
    limit = (Section.TIMEOUT, struct.pack("<qq", 1, 5))
    assert timeout_of(View.of(table(Made(call=Call.ppoll, args=(1, 1, 9), sections=(limit,))), 0)) == 1_000_000_005
    assert (
        timeout_of(View.of(table(Made(call=Call.select, args=(1, 0, 0, 0, 9), sections=(limit,))), 0)) == 1_000_005_000
    )


def test_durations() -> None:
    assert [duration(n) for n in (5, 12_000, 500_000_000, 2_500_000_000, 90_000_000_000)] == [
        "5 ns",
        "12 µs",
        "500 ms",
        "2.5 s",
        "90 s",
    ]


@settings(max_examples=300, deadline=None)
@given(
    call=st.sampled_from(Call),
    args=st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
    ret=st.integers(-600, 2**40),
    flags=st.integers(0, 63),
    sections=st.lists(st.tuples(st.sampled_from(Section), st.binary(max_size=80)), max_size=4),
)
def test_never_raises(
    call: Call, args: tuple[int, ...], ret: int, flags: int, sections: list[tuple[Section, bytes]]
) -> None:
    words(table(Made(call=call, args=args, ret=ret, flags=flags, sections=tuple(sections))), 0)
