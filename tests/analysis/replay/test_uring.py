"""Calls through an io_uring mean what the syscalls mean, at their completion, beside what their thread does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.analysis.live.live import LiveNarrator
from sockscope.analysis.narration.idle import idle_words
from sockscope.analysis.session import Session
from sockscope.findings.shared.accept_queue import doing_at
from sockscope.model.calls import Call
from sockscope.model.descriptors import Ended, How
from sockscope.model.events import EventFlag
from sockscope.model.report import Lane
from tests.analysis.builders import START_NS, Script, address
from tests.analysis.narration.told import timeline

MS = 1_000_000
URING = EventFlag.URING
PENDING = EventFlag.URING | EventFlag.ENTERED_ONLY
PEER = address("10.0.0.9", 4000)
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def ring(script: Script | None = None) -> Script:
    """Thread 100 with a listener and a ring; it sits in io_uring_enter most of the time."""
    script = script or Script(ports=(80,)).process(100)
    script.event(100, 100, Call.socket, 2, 1, ret=3, at=0)
    script.event(100, 100, Call.bind, fd=3, sockaddr=address("10.0.0.1", 80), at=1000)
    script.event(100, 100, Call.listen, 5, fd=3, at=2000)
    script.event(100, 100, Call.io_uring_setup, 8, ret=4, at=3000)
    return script


def serve(script: Script, fd: int, at: int, *, submitted: int) -> None:
    """One request, by a multishot accept and multishot receives asked for long before."""
    script.event(100, 100, Call.accept, fd=3, ret=fd, sockaddr=PEER, at=submitted, took=at - submitted, flags=URING)
    for number in range(2):
        done = at + (number + 1) * MS
        script.event(
            100, 100, Call.recvfrom, 0, 4096, fd=fd, ret=len(REQUEST), payload=REQUEST, at=at + 1000,
            took=done - at - 1000, flags=URING,
        )  # fmt: skip
    script.event(100, 100, Call.sendto, 0, 5, fd=fd, ret=5, payload=b"hello", at=at + 3 * MS, flags=URING)


def test_accepted_used_and_closed_at_completion() -> None:
    script = ring()
    serve(script, 7, 10 * MS, submitted=4000)
    # Linked behind the answer: submitted with it, done after it.
    close = script.event(100, 100, Call.close, fd=7, at=13 * MS, took=5 * MS, flags=URING)
    session = script.session()
    (connection,) = session.connections
    assert (connection.read_bytes, connection.written_bytes, connection.peer) == (2 * len(REQUEST), 5, PEER)
    descriptor = next(d for d in session.descriptors if d.fd == 7)
    assert (descriptor.how, descriptor.opened_ns) == (How.ACCEPT, START_NS + 10 * MS)
    assert (descriptor.ended, descriptor.closed_ns) == (Ended.CLOSE, START_NS + 18 * MS)
    assert session.events_of(connection.id)[-1] == close


def test_the_number_given_out_again_by_another_thread_is_not_closed() -> None:
    """The close is told a little after it was done: by then accept may have returned the number again."""
    script = ring()
    serve(script, 7, 10 * MS, submitted=4000)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=address("10.0.0.9", 4001), at=20 * MS)
    script.event(100, 100, Call.close, fd=7, at=19 * MS, took=2 * MS, flags=URING)
    session = script.session()
    first, second = [d for d in session.descriptors if d.fd == 7]
    assert first.ended is Ended.REUSED
    assert second.closed_ns is None


def test_a_close_that_was_not_done_closes_nothing() -> None:
    script = ring()
    serve(script, 7, 10 * MS, submitted=4000)
    script.event(100, 100, Call.close, fd=7, at=20 * MS, flags=PENDING)
    session = script.session()
    assert session.connections[0].owners == [(100, 7)]


def test_what_completes_after_its_thread_does_not_bring_it_back() -> None:
    script = ring()
    script.thread(100, 101)
    script.event(100, 101, Call.recvfrom, 0, 10, fd=3, ret=-125, at=20 * MS, took=20 * MS, flags=URING)
    script.exit(100, 101, at=25 * MS)
    script.exit(100, at=30 * MS)
    script.event(100, 101, Call.accept, fd=3, ret=-125, at=20 * MS, took=20 * MS, flags=URING)
    session = script.session()
    assert sorted(session.processes) == [100]
    assert session.processes[100].exited_ns == START_NS + 30 * MS
    assert all(d.closed_ns is not None for d in session.descriptors)


def test_a_thread_that_polls_the_queue_uses_its_processs_numbers() -> None:
    script = ring()
    script.event(100, 999, Call.accept, fd=3, ret=7, sockaddr=PEER, at=10 * MS, flags=URING)
    script.event(100, 999, Call.recvfrom, 0, 10, fd=7, ret=5, at=11 * MS, flags=URING)
    session = script.session()
    assert session.connections[0].read_bytes == 5
    assert len(session.tables) == 1
    assert session.processes[100].tids == {100}


def test_the_timeline_puts_it_where_it_was_done_and_says_so() -> None:
    script = ring()
    serve(script, 7, 10 * MS, submitted=4000)
    script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, at=14 * MS, flags=PENDING)
    items = [item for item in timeline(script.session(), 0) if item.lane is Lane.SYSCALL]
    assert [(item.name, (item.time_ns - START_NS) // MS, item.duration_ns) for item in items] == [
        ("accept", 10, 0),
        ("recvfrom", 11, 0),
        ("recvfrom", 12, 0),
        ("sendto", 13, 0),
        ("recvfrom", 14, -1),
    ]
    assert items[0].words == "a client connected from 10.0.0.9:4000; its descriptor is 7 (io_uring)"
    assert items[1].words.endswith("request GET / HTTP/1.1 (io_uring)")
    assert items[4].words == "asked for, not done yet (io_uring)"


def test_a_read_into_a_buffer_of_the_kernels_choice_reads_the_end() -> None:
    script = ring()
    serve(script, 7, 10 * MS, submitted=4000)
    end = script.event(100, 100, Call.recvfrom, 0, 0, fd=7, ret=0, at=14 * MS, flags=URING)
    session = script.session()
    assert session.connections[0].eof_event == end
    assert timeline(session, 0)[-1].words == "told end of stream: the peer closed its sending half (io_uring)"


def resting() -> Session:
    script = ring()
    script.event(100, 100, Call.io_uring_enter, 0, 1, 1, fd=4, at=5 * MS, flags=EventFlag.ENTERED_ONLY)
    script.event(100, 100, Call.accept, fd=3, at=6 * MS, flags=PENDING)
    return script.ends(900 * MS).session()


def test_a_thread_rests_in_its_own_call_not_in_the_rings() -> None:
    assert idle_words(resting()) == ("server[100]: blocked in io_uring_enter(4)",)


def test_what_a_thread_is_in_is_no_request_of_the_ring() -> None:
    session = resting()
    event, blocked = doing_at(session, 100, START_NS + 100 * MS)
    assert (session.events.call(event), blocked) == (Call.io_uring_enter, True)


def test_the_live_view_tells_it_when_it_is_done() -> None:
    script = ring()
    serve(script, 7, 10 * MS, submitted=4000)
    lines = LiveNarrator(script.seed()).feed(script.events(), 1 << 62).lines
    accept = next(line for line in lines if line.text.startswith("accept("))
    assert (accept.time_ns, accept.duration_ns, accept.connection) == (START_NS + 10 * MS, 0, "10.0.0.9:4000")
    assert accept.words.endswith("(io_uring)")


@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([Call.accept, Call.recvfrom, Call.sendto, Call.close, Call.connect, Call.socket]),
            st.integers(3, 9), st.integers(-130, 9), st.integers(0, 50), st.integers(0, 50),
            st.sampled_from([URING, PENDING, EventFlag(0)]), st.sampled_from([100, 101, 999]),
        ),
        max_size=25,
    )
)  # fmt: skip
def test_any_requests_make_a_session(requests: list[tuple[Call, int, int, int, int, EventFlag, int]]) -> None:
    script = ring()
    script.thread(100, 101)
    for call, fd, ret, at, took, flags, tid in requests:
        own = 100 if tid == 999 and not flags else tid
        script.event(100, own, call, fd=fd, ret=ret, at=(5 + at) * MS, took=took * MS, flags=flags)
    session = script.session()
    assert sorted(session.processes) == [100]
    assert sorted(session.order.tolist()) == list(range(len(session.events)))
    for connection in session.connections:
        times = [item.time_ns for item in timeline(session, connection.id)]
        assert times == sorted(times)


@pytest.mark.parametrize("flags", [URING, EventFlag(0)])
def test_replay_in_pieces_is_replay_at_once(flags: EventFlag) -> None:
    script = ring()
    serve(script, 7, 10 * MS, submitted=4000)
    script.event(100, 100, Call.close, fd=7, at=20 * MS, took=MS, flags=flags)
    narrator = LiveNarrator(script.seed())
    events = script.events()
    texts = [line.text for line in narrator.feed(events, START_NS + 11 * MS).lines]
    texts += [line.text for line in narrator.finish().lines]
    assert texts == [line.text for line in LiveNarrator(script.seed()).feed(events, 1 << 62).lines]
