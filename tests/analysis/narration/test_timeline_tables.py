"""Many timelines at once are what each is alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.narration import timeline as module
from sockscope.analysis.narration.describe import describe, words
from sockscope.analysis.narration.http1 import Direction, Http1State, Standings, narrate
from sockscope.analysis.narration.timeline import Timelines
from sockscope.analysis.narration.timeline_calls import argument_counts
from sockscope.analysis.session import Grouping, Session
from sockscope.model.calls import FIRST_TASK_EVENT, Call
from sockscope.model.events import Section
from sockscope.model.report import TimelineTable
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import EPOLLET, EPOLLIN, Script, address
from tests.analysis.hand import Made, table
from tests.analysis.narration.test_http1 import PAYLOADS
from tests.analysis.narration.told import timeline

SERVER = address("127.0.0.1", 8080)
P, A, F = TcpFlag.PSH, TcpFlag.ACK, TcpFlag.FIN
BASE, LISTENER_DATA = 0x7F00_0000_0000, 0x7F00_0000_1000


def client(number: int) -> Address:
    return address("127.0.0.1", 40_000 + number)


def busy_server(connections: int) -> Script:
    """One event loop: every third client says nothing, numbers and epoll_data are used again, states are told."""
    script = Script(ports=(8080,)).process(100, comm="loop").seed_fd(100, 3, inode=11)
    script.event(100, 100, Call.epoll_create1, 0, ret=4)
    script.event(100, 100, Call.epoll_ctl, 1, 3, 0, fd=4, epoll=[(EPOLLIN, LISTENER_DATA)])
    for number in range(connections):
        peer, fd = client(number), 7 + number % 3
        data, request = BASE + fd, b"GET /%d HTTP/1.1\r\n\r\n" % (number % 4)
        script.handshake(peer, SERVER)
        states = (TcpState.LISTEN, TcpState.SYN_RECV, TcpState.ESTABLISHED)
        script.states(SERVER, peer, *states, at=script.now_ns, step=1000)
        waked = [(EPOLLIN, LISTENER_DATA)]
        script.event(100, 100, Call.epoll_wait, 0, 8, -1, fd=4, ret=1, epoll=waked)
        script.event(100, 100, Call.accept4, 1, 1, 0, fd=3, ret=fd, sockaddr=peer)
        wanted = [(EPOLLIN | EPOLLET, data)]
        script.event(100, 100, Call.epoll_ctl, 1, fd, 0, fd=4, epoll=wanted)
        script.snapshot(at=script.now_ns)
        script.socket_row(SERVER, peer, inode=1000 + number, owners=((100, fd),))
        if number % 3:
            script.packet(peer, SERVER, P | A, seq=1001, ack=5001, payload=request)
            script.event(100, 100, Call.epoll_wait, 0, 8, -1, fd=4, ret=1, epoll=[(EPOLLIN, data)])
            script.event(100, 100, Call.recvfrom, 4096, 8192, 0, fd=fd, ret=len(request), payload=request)
            script.event(100, 100, Call.recvfrom, 4096, 8192, 0, fd=fd, ret=-11)
            script.event(100, 100, Call.sendto, 4096, 9, 0, fd=fd, ret=9, payload=b"HTTP/1.1 ")
        script.packet(SERVER, peer, F | A, seq=5001, ack=1001)
        script.event(100, 100, Call.close, fd=fd)
    return script


@pytest.fixture(scope="module")
def session() -> Session:
    return busy_server(14).session()


@pytest.mark.parametrize("together", [1, 3, 512])
@pytest.mark.parametrize("rows_together", [1, 40, 1 << 15])
def test_many_are_what_each_is_alone(
    session: Session, together: int, rows_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = list(range(len(session.connections)))
    limits = [(3, 200, 6)[number % 3] for number in every]
    alone = [timeline(session, number, limit=limit) for number, limit in zip(every, limits, strict=True)]
    assert {len(items) for items in alone[2::3]} == {6}
    assert len({item.words for items in alone for item in items}) > 15
    monkeypatch.setattr(module, "_TOGETHER", together)
    monkeypatch.setattr(module, "_ROWS_TOGETHER", rows_together)
    timelines = Timelines(session)
    assert [made.items() for made in timelines.tables(every, limits)] == alone
    # And again, with all that was learnt; in any order, and twice.
    mixed = [*reversed(every), 0]
    again = timelines.tables(mixed, [limits[number] for number in mixed])
    assert [made.items() for made in again] == [alone[number] for number in mixed]


def test_what_is_remembered_is_bounded(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [made.items() for made in Timelines(session).tables(range(14), [200] * 14)]
    monkeypatch.setattr(module, "_TOGETHER", 1)
    monkeypatch.setattr("sockscope.analysis.narration.timeline_calls._REMEMBERED", 2)
    monkeypatch.setattr("sockscope.analysis.narration.timeline_wire._REMEMBERED", 2)
    assert [made.items() for made in Timelines(session).tables(range(14), [200] * 14)] == whole


@pytest.mark.parametrize("most", [0, 300])
def test_so_are_its_bytes_within_what_is_told_together(
    session: Session, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [made.items() for made in Timelines(session).tables(range(14), [200] * 14)]
    monkeypatch.setattr("sockscope.analysis.narration.timeline_calls._REMEMBERED_BYTES", most)
    monkeypatch.setattr("sockscope.analysis.narration.timeline_wire._REMEMBERED_BYTES", most)
    timelines = Timelines(session)
    assert [made.items() for made in timelines.tables(range(14), [200] * 14)] == whole
    assert timelines._calls is not None
    assert sum(map(len, timelines._calls._alike)) <= max(most, 200)
    assert sum(len(payload) for _, payload, _ in timelines._packets._told) <= max(most, 50)


def test_a_table_of_items_gives_them_back(session: Session) -> None:
    items = timeline(session, 1)
    assert TimelineTable.of_items(items).items() == items
    assert TimelineTable.of_items([]).items() == []


CALLS = [call for call in Call if Call.unknown < call < FIRST_TASK_EVENT and argument_counts()[call] < 6]


@settings(max_examples=300, deadline=None)
@given(
    call=st.sampled_from(CALLS),
    args=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6),
    noise=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6),
    ret=st.integers(-600, 100),
    flags=st.integers(0, 63),
    sections=st.lists(st.tuples(st.sampled_from(Section), st.binary(max_size=40)), max_size=3),
)
def test_arguments_beyond_a_calls_own_tell_nothing(
    call: Call, args: list[int], noise: list[int], ret: int, flags: int, sections: list[tuple[Section, bytes]]
) -> None:
    count = int(argument_counts()[call])
    made = [
        table(Made(call=call, args=tuple(given), ret=ret, flags=flags, sections=tuple(sections)))
        for given in (args, args[:count] + noise[count:])
    ]
    assert describe(made[0], 0) == describe(made[1], 0)
    assert words(made[0], 0) == words(made[1], 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Direction), PAYLOADS), max_size=8))
def test_a_standing_is_brought_on_as_if_never_put_down(steps: list[tuple[Direction, bytes]]) -> None:
    state, standings, number = Http1State(), Standings(), 0
    for direction, prefix in steps:
        taken = standings.state(number)
        assert narrate(direction, prefix, len(prefix), taken) == narrate(direction, prefix, len(prefix), state)
        number = standings.number(taken)
        assert standings.state(number) == state
    assert standings.state(0) == Http1State()


@given(st.lists(st.integers(-1, 9), max_size=40), st.lists(st.integers(-1, 11), max_size=8))
def test_rows_of_several_ids(ids: list[int], wanted: list[int]) -> None:
    grouping = Grouping(np.array(ids, np.int64), np.arange(len(ids))[::-1].copy())
    place, rows = grouping.of_each(np.array(wanted, np.int64))
    assert grouping.counts(np.array(wanted, np.int64)).tolist() == [len(grouping.of(one)) for one in wanted]
    expected = [(at, row) for at, one in enumerate(wanted) for row in grouping.of(one).tolist()]
    assert list(zip(place.tolist(), rows.tolist(), strict=True)) == expected
