"""Events to descriptors and connections, in bulk."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.analysis.build import build_session
from sockscope.analysis.replay import assign
from sockscope.analysis.replay.assign import Intervals
from sockscope.model.calls import Call
from sockscope.model.descriptors import Ended, How
from sockscope.model.events import EventFlag, Unassigned
from sockscope.model.seed import FileKind
from tests.analysis.builders import SOCK_STREAM, Script, address

A, B = 100, 200
CLIENT = address("10.0.0.9", 40000)
OTHER = address("10.0.0.9", 40001)

spans = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=20)


@given(spans, spans, st.booleans())
def test_intervals_find_the_last_begun(made: list[tuple[int, int]], asked: list[tuple[int, int]], huge: bool) -> None:
    scale = 1 << 58 if huge else 1  # too long for a composite key: by rank instead
    groups = np.array([g for g, _ in made], np.int64)
    starts = np.array([s * scale for _, s in made], np.int64)
    found = Intervals(groups, starts).find(
        np.array([g for g, _ in asked], np.int64), np.array([t * scale for _, t in asked], np.int64)
    )
    for (group, when), row in zip(asked, found.tolist(), strict=True):
        begun = [(s, at) for at, (g, s) in enumerate(made) if g == group and s <= when]
        assert row == (max(begun)[1] if begun else -1)


def serving() -> Script:
    script = Script(ports=(80,)).process(A)
    script.seed_fd(A, 3, inode=11)
    return script


def test_a_number_used_again_is_another_connection() -> None:
    script = serving()
    rows = []
    for peer in (CLIENT, OTHER):
        rows.append(script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=peer))
        rows.append(script.event(A, A, Call.recvfrom, 7, 0, 100, ret=10))
        rows.append(script.event(A, A, Call.setsockopt, fd=7))
        rows.append(script.event(A, A, Call.close, fd=7))
    session = script.session()
    assert session.event_connection.tolist() == [0] * 4 + [1] * 4
    assert session.event_open_file.tolist() == [0, 1, 1, 1, 0, 2, 2, 2]
    assert session.events_of(1).tolist() == rows[4:]
    assert [c.peer for c in session.connections] == [CLIENT, OTHER]


def test_a_blocked_read_belongs_to_what_it_was_called_on() -> None:
    script = serving()
    script.thread(A, 101)
    script.event(A, A, Call.accept, fd=3, ret=7, at=2_000_000, sockaddr=CLIENT)
    read = script.event(A, 101, Call.recvfrom, 7, 0, 100, ret=0, at=3_000_000, took=5_000_000)
    script.event(A, A, Call.close, fd=7, at=4_000_000)
    script.event(A, A, Call.accept, fd=3, ret=7, at=5_000_000, sockaddr=OTHER)
    session = script.session()
    assert session.event_connection[read] == 0
    assert session.connections[0].eof_event == read


def test_blocked_at_attach() -> None:
    script = serving()
    script.event(A, A, Call.accept, fd=3, ret=7, at=2_000_000, sockaddr=CLIENT)
    read = script.event(A, A, Call.recvfrom, 7, 0, 100, ret=5, at=3_000_000, flags=EventFlag.NO_ENTRY)
    assert script.session().event_connection[read] == 0


def test_reasons() -> None:
    script = serving()
    script.seed_fd(A, 4, kind=FileKind.EPOLL)
    script.seed_fd(A, 5, kind=FileKind.PIPE)
    script.event(A, A, Call.bind, fd=3, sockaddr=address("10.0.0.1", 80))
    script.event(A, A, Call.listen, fd=3)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=6)
    expected = {
        script.event(A, A, Call.epoll_wait, 4, ret=1): Unassigned.WAIT,
        script.event(A, A, Call.poll, ret=1): Unassigned.WAIT,
        script.event(A, A, Call.write, fd=5, ret=1): Unassigned.OTHER_FILE,
        script.event(A, A, Call.accept4, fd=3, ret=-11): Unassigned.LISTENER,
        script.event(A, A, Call.setsockopt, fd=3): Unassigned.LISTENER,
        script.event(A, A, Call.setsockopt, fd=6): Unassigned.UNCONNECTED,
        script.event(A, A, Call.read, fd=99, ret=-9): Unassigned.BAD_FD,
        script.event(A, A, Call.read, fd=98, ret=-11): Unassigned.UNKNOWN_FD,
        script.event(A, A, Call.read, fd=97, ret=5): Unassigned.UNKNOWN_FD,
        script.event(A, A, Call.kill, 1, 15): Unassigned.NOT_A_DESCRIPTOR_CALL,
        script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT): Unassigned.ASSIGNED,
    }
    session = script.session()
    assert {row: Unassigned(int(session.event_reason[row])) for row in expected} == expected
    assert (session.event_connection >= 0).sum() == 1


def test_two_processes_with_the_same_number() -> None:
    script = serving().process(B, ppid=A)
    script.seed_fd(B, 3, inode=11)
    script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=CLIENT)
    script.event(B, B, Call.accept, fd=3, ret=7, sockaddr=OTHER)
    mine = script.event(A, A, Call.sendto, fd=7, ret=5)
    theirs = script.event(B, B, Call.sendto, fd=7, ret=6)
    session = script.session()
    assert session.event_connection[[mine, theirs]].tolist() == [0, 1]
    assert [c.written_bytes for c in session.connections] == [5, 6]
    assert [c.owners for c in session.connections] == [[(A, 7)], [(B, 7)]]


def test_after_unshare_each_has_its_own_table() -> None:
    script = serving()
    script.thread(A, 101)
    script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=CLIENT)
    script.event(A, 101, Call.unshare, 0x400)
    script.event(A, A, Call.close, fd=7)
    script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=OTHER)
    old = script.event(A, 101, Call.sendto, fd=7, ret=1)
    new = script.event(A, A, Call.sendto, fd=7, ret=1)
    assert script.session().event_connection[[old, new]].tolist() == [0, 1]


def test_a_child_uses_what_it_inherited() -> None:
    script = serving()
    script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=CLIENT)
    script.fork(A, B)
    script.event(A, A, Call.close, fd=7)
    sent = script.event(B, B, Call.write, fd=7, ret=100)
    session = script.session()
    assert session.event_connection[sent] == 0
    assert session.connections[0].owners == [(B, 7)]
    assert session.holders_of(session.connections[0].open_file)[0].how == How.FORK


def test_unseen_descriptors_are_inferred_one_a_gap() -> None:
    script = serving()
    before = script.event(A, A, Call.recvfrom, 9, 0, 10, ret=5)
    script.event(A, A, Call.accept, fd=3, ret=9, sockaddr=CLIENT)
    script.event(A, A, Call.close, fd=9)
    after = [script.event(A, A, Call.read, fd=9, ret=5) for _ in range(2)]
    session = script.session()
    first, last = (session.descriptors[int(session.event_descriptor[row])] for row in (before, after[0]))
    assert (first.how, first.ended) == (How.INFERRED, Ended.REUSED)
    assert (last.how, last.closed_ns) == (How.INFERRED, None)
    assert session.event_descriptor[after[0]] == session.event_descriptor[after[1]]
    assert session.open_files[first.open_file].kind == FileKind.SOCKET
    assert session.tables[0].live[9] == last.id


def test_epoll_ctl_belongs_to_the_connection_it_registers() -> None:
    script = serving()
    script.event(A, A, Call.epoll_create1, ret=4)
    script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=CLIENT)
    added = script.event(A, A, Call.epoll_ctl, 4, 1, 7, epoll=[(1, 7)])
    session = script.session()
    assert session.event_connection[added] == 0
    assert session.open_files[int(session.event_open_file[added])].kind == FileKind.EPOLL


def test_splice_into_a_socket() -> None:
    script = serving()
    script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=CLIENT)
    script.event(A, A, Call.pipe2, pair=(8, 9))
    moved = script.event(A, A, Call.splice, 8, 0, 7, ret=4096)
    assert script.session().event_connection[moved] == 0


def test_bytes_moved() -> None:
    script = Script()
    script.event(A, A, Call.recvfrom, 7, 0, 100, 2, ret=10)  # MSG_PEEK
    script.event(A, A, Call.recvfrom, 7, 0, 100, ret=10)
    script.event(A, A, Call.recvfrom, 7, 0, 100, ret=-11)
    script.event(A, A, Call.sendfile, 7, 8, 0, 100, ret=60)
    script.event(A, A, Call.write, 7, flags=EventFlag.ENTERED_ONLY)
    taken, put = assign.moved_bytes(script.events())
    assert taken.tolist() == [0, 10, 0, 0, 0]
    assert put.tolist() == [0, 0, 0, 60, 0]


def test_a_call_under_way_before_the_attach_that_never_returned() -> None:
    script = serving()
    script.event(A, A, Call.accept4, 0, 0, 0, fd=3, ret=7, sockaddr=CLIENT)
    script.event(A, A, Call.accept4, 0, 0, 0, fd=3, flags=EventFlag.ENTERED_ONLY)
    events = script.events()
    events.records["enter_ns"][1] = events.records["exit_ns"][1] = -1
    session = build_session(
        info=script.info(), seed=script.seed(), events=events, packets=script.packets(), sockets=script.sockets()
    )
    assert session.event_reason[1] == Unassigned.LISTENER
