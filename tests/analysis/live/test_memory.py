"""What the live view forgets changes nothing that it tells, and is really gone."""

from __future__ import annotations

from unittest.mock import PropertyMock, patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.live import live
from sockscope.analysis.live.live import LiveNarrator
from sockscope.analysis.live.memory import Forgetful, Forgetting
from sockscope.analysis.replay.order import replay_order
from sockscope.analysis.replay.replay import Replay
from sockscope.model.calls import Call
from sockscope.model.event_rows import subset
from sockscope.model.events import Events
from sockscope.model.live import LiveLine
from tests.analysis.builders import Script, address
from tests.analysis.strategies import ROOT, Kernel, Operation

operations = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 7), st.integers(0, 7), st.integers(0, 3)), max_size=100
)


def told(kernel: Kernel, events: Events, every: int, *, forgets: bool) -> list[LiveLine]:
    narrator = LiveNarrator(kernel.script.seed())
    lines: list[LiveLine] = []
    with (
        patch.object(Forgetting, "due", PropertyMock(return_value=forgets)),
        patch.object(live, "_REMEMBERED_NS", 0),
    ):
        for first in range(0, len(events), every):
            part = subset(events, np.arange(first, min(first + every, len(events))))
            lines.extend(narrator.feed(part, int(part.records["exit_ns"].max())).lines)
        lines.extend(narrator.finish().lines)
    return lines


@given(operations, st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_the_lines_are_the_same(history: list[Operation], every: int) -> None:
    kernel = Kernel()
    kernel.run(history)
    events = kernel.script.events()
    assert told(kernel, events, every, forgets=True) == told(kernel, events, every, forgets=False)


def test_the_last_copy_is_told_when_the_others_are_forgotten() -> None:
    kernel = Kernel()
    kernel.run([(0, 0, 0, 0), (2, 0, 3, 0), (4, 0, 4, 0), (0, 0, 0, 0), (4, 0, 3, 0), (4, 0, 3, 0)])
    lines = told(kernel, kernel.script.events(), 1, forgets=True)
    assert [line.text for line in lines][1:3] == ["dup(3) = 4", "close(4) = 0"]
    assert [line.words for line in lines][4:] == ["closes the last copy", ""]


@given(operations, st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_who_holds_what_is_the_same(history: list[Operation], every: int) -> None:
    kernel = Kernel()
    kernel.run(history)
    events = kernel.script.events()
    order, effective_ns = replay_order(events)
    replay = Replay(kernel.script.seed())
    forgetting = Forgetting(replay)
    for first in range(0, len(order), every):
        rows = order[first : first + every]
        replay.feed(events, rows, effective_ns=effective_ns)
        forgetting.forget(int(effective_ns[rows[-1]]))
    assert sorted(replay.task_table) == sorted(kernel.tables)
    same: dict[int, int] = {}
    for tid, table in kernel.tables.items():
        held = replay.tables[replay.task_table[tid]].live
        assert sorted(held) == sorted(table.fds)
        for fd, (file, cloexec) in table.fds.items():
            descriptor = replay.descriptors[held[fd]]
            assert descriptor.cloexec == cloexec
            assert same.setdefault(file.name, descriptor.open_file) == descriptor.open_file
    assert len(set(same.values())) == len(same)
    registered = {(epoll, fd, file) for epoll, of in replay.by_epoll.items() for fd, file in of}
    assert {(same[e], fd, same[f]) for e, fd, f in kernel.interests if e in same and f in same} == {
        one for one in registered if one[0] in same.values() and one[2] in same.values()
    }


def test_connections_that_are_over_are_gone() -> None:
    script = Script().process(ROOT)
    script.seed_fd(ROOT, 3)
    for number in range(200):
        script.fork(ROOT, 500 + number)
        script.event(500 + number, 500 + number, Call.accept4, 3, ret=9, sockaddr=address("10.0.0.9", 4000))
        script.event(500 + number, 500 + number, Call.close, 9)
        script.exit(500 + number)
    events = script.events()
    replay = Replay(script.seed())
    forgetting = Forgetting(replay)
    order, effective_ns = replay_order(events)
    replay.feed(events, order, effective_ns=effective_ns)
    forgetting.forget(int(effective_ns.max()) + 1)
    assert isinstance(replay.descriptors, Forgetful)
    assert isinstance(replay.tables, Forgetful)
    assert replay.descriptors.known_count == 1
    assert replay.tables.known_count == 1
    assert len(replay.tables) == 201
    assert list(replay.processes) == [ROOT]
    assert len(replay.open_files[replay.descriptors[0].open_file].descriptors) == 1
    assert not replay.last_closed
