"""Whatever a tracer lost or garbled, a session comes out, and what it says of itself agrees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.model.calls import KERNEL_EVENTS, Call
from sockscope.model.events import EventFlag, Unassigned
from sockscope.model.info import Target
from sockscope.model.seed import FileKind, Seed
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script, address
from tests.analysis.strategies import Kernel, Operation, operations

PEERS = [address("10.0.0.9", 40000 + n) for n in range(3)]
SERVER = address("10.0.0.1", 80)
calls = st.sampled_from(list(Call))
small = st.integers(-1, 9)
noise = st.tuples(
    calls,
    st.integers(100, 103),  # tid
    st.tuples(small, st.integers(-1, 5), small, st.sampled_from([0, 0o2000000, 2])),
    st.sampled_from([-115, -11, -9, -4, -1, 0, 1, 3, 4, 7]),
    st.sampled_from([0, 0, 0, EventFlag.ENTERED_ONLY, EventFlag.NO_ENTRY]),
    st.integers(0, 40),  # when
    st.integers(0, 9),  # how long
    st.integers(0, 15),  # which sections
)


def noisy(events: list[tuple[Call, int, tuple[int, int, int, int], int, int, int, int, int]]) -> Script:
    script = Script(ports=(80,)).process(100, tids=(100, 101)).process(102)
    script.seed_fd(100, 3, inode=11, open_file=1)
    script.seed_fd(102, 3, inode=11, open_file=1, at=20)
    script.seed_fd(102, 4, kind=FileKind.EPOLL, at=20)
    script.seed_epoll(102, 4, 3, 1, inode=11)
    for call, tid, args, ret, flags, when, took, sections in events:
        given_args = args
        if call == Call.task_new:
            given_args = (100 + args[0] % 6, 100 + args[1] % 6, (0, 0x400, 0x10F00)[args[2] % 3], 0)
        script.event(
            tid // 2 * 2 if tid < 102 else tid, tid, call, *given_args, ret=ret, flags=flags, at=when, took=took,
            sockaddr=PEERS[took % 3] if sections & 1 else None, control=[args[0], args[2]] if sections & 2 else None,
            pair=(args[0], args[2]) if sections & 4 else None, epoll=[(1, 2)] if sections & 8 else None,
        )  # fmt: skip
    script.handshake(PEERS[0], SERVER, at=5)
    script.packet(PEERS[1], SERVER, TcpFlag.FIN, at=9)
    script.snapshot(at=30)
    script.socket_row(address("0.0.0.0", 80), None, TcpState.LISTEN, inode=11, cookie=1)
    script.socket_row(SERVER, PEERS[0], cookie=2, inode=12, owners=[(100, 7), (102, 4)])
    script.socket_row(SERVER, PEERS[2], cookie=3)
    return script


def agrees_with_itself(session: Session) -> None:
    count = len(session.events)
    called = [row for row in range(count) if session.events.call(row) not in KERNEL_EVENTS]
    assert sorted(session.order.tolist()) == called
    # A change from a state to itself is none.
    assert {*session.kernel["event"].tolist()} <= {*range(count)} - {*called}
    assert session.kernel_connection.shape == session.kernel.shape
    assert session.kernel_connection.max(initial=-1) < len(session.connections)
    for column in (session.event_connection, session.event_open_file, session.event_descriptor, session.event_table):
        assert column.shape == (count,)
    assert session.event_call.tolist() == session.events.records["call"].tolist()
    assert session.event_connection.max(initial=-1) < len(session.connections)
    assert session.event_open_file.max(initial=-1) < len(session.open_files)
    assert ((session.event_connection >= 0) == (session.event_reason == Unassigned.ASSIGNED)).all()
    named = np.nonzero(session.event_descriptor >= 0)[0]
    for row in named.tolist():
        descriptor = session.descriptors[int(session.event_descriptor[row])]
        assert session.event_open_file[row] == descriptor.open_file
    for at, connection in enumerate(session.connections):
        assert connection.id == at
        assert connection.first_ns <= connection.last_ns
        if connection.open_file >= 0:
            assert session.open_files[connection.open_file].connection == at
    claimed = [(c.flow, c.local_side) for c in session.connections if c.flow >= 0]
    assert len(claimed) == len(set(claimed))
    for table in session.tables:
        for fd, number in table.live.items():
            assert (session.descriptors[number].table, session.descriptors[number].fd) == (table.id, fd)
            assert session.descriptors[number].closed_ns is None
    for file in session.open_files:
        held = any(session.descriptors[d].closed_ns is None for d in file.descriptors)
        assert not (held and file.released_ns is not None)
        assert file.in_flight >= 0


@given(st.lists(noise, max_size=40))
@settings(max_examples=400, deadline=None)
def test_noise_makes_a_session(
    events: list[tuple[Call, int, tuple[int, int, int, int], int, int, int, int, int]],
) -> None:
    agrees_with_itself(noisy(events).session())


@given(operations, st.sets(st.integers(0, 60)))
@settings(max_examples=150, deadline=None)
def test_lost_events_make_a_session(history: list[Operation], lost: set[int]) -> None:
    kernel = Kernel()
    kernel.run(history)
    script = kernel.script
    script._rows[:] = [row for at, row in enumerate(script._rows) if at not in lost]
    agrees_with_itself(script.session())


def test_a_launched_command_was_not_there_before() -> None:
    script = Script().process(100)
    script.event(100, 100, Call.read, 0, 0, fd=0, ret=1)
    script.event(100, 100, Call.read, 0, 0, fd=0, flags=EventFlag.ENTERED_ONLY)
    info = replace(script.info(), target=Target(command=("srv",), pids=(100,)))
    session = build_session(
        info=info, seed=Seed.empty(), events=script.events(), packets=script.packets(), sockets=script.sockets()
    )
    started = session.processes[100].started_ns
    assert started is not None
    assert info.started_ns <= started <= info.ended_ns
    assert script.session().processes[100].started_ns is None
