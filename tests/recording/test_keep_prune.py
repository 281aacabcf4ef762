"""What pruning leaves says the same of every moment of the window as the whole history, and no more than it must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.replay.order import replay_order
from sockscope.analysis.replay.replay import Replay
from sockscope.model.calls import Call
from sockscope.model.event_rows import subset
from sockscope.model.events import Events
from sockscope.model.seed import Seed
from sockscope.recording.keep_prune import Known, worth_keeping
from tests.analysis.builders import SOCK_STREAM, Script, address
from tests.analysis.strategies import ROOT, Kernel, Operation

operations = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 7), st.integers(0, 7), st.integers(0, 3)), max_size=120
)
cuts = st.lists(st.floats(0, 1), min_size=1, max_size=4)
UNSHARE = 9


def pruned(events: Events, ends: list[int], seed: Seed) -> Events:
    """The events left after passes over those that ended by each of these times."""
    known = Known.of(seed)
    for end in sorted(ends):
        old = events.records["exit_ns"] <= end
        kept = np.ones(len(events), np.bool_)
        rows = np.flatnonzero(old)
        kept[rows] = worth_keeping(subset(events, rows), known)
        events = subset(events, np.flatnonzero(kept))
    return events


def state(events: Events, until: int, seed: Seed) -> object:
    """Who holds what at a moment: by thread and number, which file (by its birth), and what is watched."""
    part = subset(events, np.flatnonzero(events.records["exit_ns"] <= until))
    order, effective_ns = replay_order(part)
    replay = Replay(seed)
    replay.feed(part, order, effective_ns=effective_ns)
    files = replay.open_files
    # Open files are told apart by birth and first number.
    name = {
        file.id: (file.created_ns, replay.descriptors[file.descriptors[0]].fd if file.descriptors else -1)
        for file in files
    }
    tables = {
        tid: {
            fd: (name[(d := replay.descriptors[at]).open_file], d.cloexec, d.how, files[d.open_file].kind)
            for fd, at in replay.tables[table].live.items()
        }
        for tid, table in replay.task_table.items()
    }
    sharing = {
        (tid, other)
        for tid, table in replay.task_table.items()
        for other, same in replay.task_table.items()
        if tid < other and table == same
    }
    interests = {(name[i.epoll], i.fd, name[i.open_file], i.events) for i in replay.interests if i.removed_ns is None}
    held = {name[file.id]: (len(live), file.in_flight) for file in files if (live := _live(replay, file.descriptors))}
    alive = {tgid: sorted(p.tids) for tgid, p in replay.processes.items() if p.exited_ns is None}
    return tables, sharing, interests, held, alive


def _live(replay: Replay, descriptors: list[int]) -> list[int]:
    return [d for d in descriptors if replay.descriptors[d].closed_ns is None]


def agrees(history: list[Operation], where: list[float]) -> None:
    kernel = Kernel()
    kernel.run(history)
    events, seed = kernel.script.events(), kernel.script.seed()
    if not len(events):
        return
    times = np.sort(events.records["exit_ns"])
    ends = [int(times[round(at * (len(times) - 1))]) for at in where]
    left = pruned(events, ends, seed)
    window = times[times >= max(ends)]
    for moment in {int(window[0]), int(window[len(window) // 2]), int(window[-1])}:
        assert state(left, moment, seed) == state(events, moment, seed)


@given(operations, cuts)
@settings(max_examples=250, deadline=None)
def test_the_window_is_told_as_by_the_whole_history(history: list[Operation], where: list[float]) -> None:
    agrees(history, where)


@given(operations, cuts)
@settings(max_examples=250, deadline=None)
def test_also_where_no_table_is_ever_shared(history: list[Operation], where: list[float]) -> None:
    """An unshare stops pruning for the process: without any, more goes."""
    agrees([one for one in history if one[0] != UNSHARE and not (one[0] == 10 and one[3] == 3)], where)


def left_of(script: Script) -> list[str]:
    events = script.events()
    kept = worth_keeping(events, Known.of(script.seed()))
    for _ in range(4):
        events = subset(events, np.flatnonzero(kept))
        kept = worth_keeping(events, Known.of(script.seed()))
    return [Call(call).name for call in events.records["call"][kept].tolist()]


def server() -> Script:
    script = Script().process(ROOT)
    script.seed_fd(ROOT, 3)
    return script


def connection(script: Script, tgid: int, fd: int, tid: int | None = None) -> None:
    who = tgid if tid is None else tid
    script.event(tgid, who, Call.accept4, 3, ret=fd, sockaddr=address("10.0.0.9", 4000))
    script.event(tgid, who, Call.setsockopt, fd, 6, 1)
    script.event(tgid, who, Call.epoll_ctl, 4, 1, fd, epoll=[(1, fd)])
    script.event(tgid, who, Call.recvfrom, fd, ret=5)
    script.event(tgid, who, Call.epoll_ctl, 4, 3, fd, epoll=[(1, fd)])
    script.event(tgid, who, Call.epoll_ctl, 4, 2, fd)
    script.event(tgid, who, Call.shutdown, fd, 1)
    script.event(tgid, who, Call.close, fd)


def test_connections_that_are_over_leave_nothing() -> None:
    script = server()
    for number in range(50):
        connection(script, ROOT, 7 + number % 3)
    assert left_of(script) == []


def test_of_one_that_lives_all_that_counts_is_left_once() -> None:
    script = server()
    script.event(ROOT, ROOT, Call.accept4, 3, ret=7)
    for _ in range(20):
        script.event(ROOT, ROOT, Call.epoll_ctl, 4, 3, 7, epoll=[(1, 7)])
        script.event(ROOT, ROOT, Call.setsockopt, 7, 6, 12)
        script.event(ROOT, ROOT, Call.getsockopt, 7, 1, 4)
        script.event(ROOT, ROOT, Call.recvfrom, 7, ret=9)
        script.event(ROOT, ROOT, Call.write, 7, ret=9)
        script.event(ROOT, ROOT, Call.wait4, ret=-10)
    assert left_of(script) == ["accept4", "epoll_ctl", "setsockopt", "getsockopt", "recvfrom", "write"]


def test_a_fork_a_request_leaves_nothing_once_the_child_has_ended() -> None:
    script = server()
    for child in range(500, 540):
        script.event(ROOT, ROOT, Call.accept, 3, ret=7)
        script.fork(ROOT, child)
        script.event(ROOT, ROOT, Call.close, 7)
        script.event(child, child, Call.close, 3)
        script.event(child, child, Call.socket, 2, SOCK_STREAM, ret=3)
        script.exit(child)
        script.event(ROOT, ROOT, Call.wait4, ret=child)
    assert left_of(script) == []


def test_a_child_that_lives_keeps_what_it_was_given() -> None:
    script = server()
    script.event(ROOT, ROOT, Call.accept, 3, ret=7)
    script.fork(ROOT, 500)
    script.event(ROOT, ROOT, Call.close, 7)
    connection(script, ROOT, 7)
    assert left_of(script) == ["accept", "task_new", "close"]


def test_a_pid_that_comes_again_is_another_process() -> None:
    script = server()
    script.fork(ROOT, 500)
    script.event(500, 500, Call.socket, 2, SOCK_STREAM, ret=8)
    script.exit(500)
    script.fork(ROOT, 500)
    script.event(500, 500, Call.socket, 2, SOCK_STREAM, ret=9)
    assert left_of(script) == ["task_new", "socket"]


def test_threads_that_come_and_go_leave_what_they_opened() -> None:
    script = server()
    for tid in range(600, 640):
        script.thread(ROOT, tid)
        connection(script, ROOT, 9, tid)
        if tid == 610:
            script.event(ROOT, tid, Call.accept, 3, ret=20)
        script.exit(ROOT, tid)
    assert left_of(script) == ["task_new", "accept", "task_exit"]


def test_handed_over_connections_leave_nothing_once_closed() -> None:
    script = server()
    script.event(ROOT, ROOT, Call.socketpair, 1, SOCK_STREAM, pair=(5, 6))
    script.fork(ROOT, 500)
    for number in range(30):
        script.event(ROOT, ROOT, Call.accept, 3, ret=9)
        script.event(ROOT, ROOT, Call.sendmsg, 5, ret=1, control=[9])
        script.event(ROOT, ROOT, Call.close, 9)
        script.event(500, 500, Call.recvmsg, 6, ret=1, control=[12])
        if number != 10:
            script.event(500, 500, Call.close, 12)
        else:
            script.event(500, 500, Call.dup, 12, ret=13)
            script.event(500, 500, Call.close, 12)
    left = left_of(script)
    assert left == ["socketpair", "task_new", "accept", "sendmsg", "close", "recvmsg", "dup", "close"]


def test_what_its_giver_still_holds_keeps_the_story_of_the_gift() -> None:
    script = server()
    script.event(ROOT, ROOT, Call.socketpair, 1, SOCK_STREAM, pair=(5, 6))
    script.fork(ROOT, 500)
    script.event(ROOT, ROOT, Call.accept, 3, ret=9)
    for _ in range(50):
        script.event(ROOT, ROOT, Call.sendmsg, 5, ret=1, control=[9])
        script.event(500, 500, Call.recvmsg, 6, ret=1, control=[12])
        script.event(500, 500, Call.close, 12)
    left = left_of(script)
    assert left == ["socketpair", "task_new", "accept", *["sendmsg", "recvmsg", "close"] * 4]


def test_numbers_whose_opening_is_not_traced_leave_one_close() -> None:
    script = server()
    for _ in range(30):
        script.event(ROOT, ROOT, Call.close, 9)
    assert left_of(script) == ["close"]


@pytest.mark.parametrize("call", [Call.connect, Call.bind, Call.accept, Call.setsockopt, Call.fcntl])
def test_failed_calls_go(call: Call) -> None:
    script = server()
    script.event(ROOT, ROOT, Call.socket, 2, SOCK_STREAM, ret=9)
    script.event(ROOT, ROOT, call, 9, ret=-98)
    assert left_of(script) == ["socket"]


def test_a_number_from_the_parent_that_a_child_replaced_and_closed_is_told_closed() -> None:
    """Found by chance: dup2 over an inherited number, then its close."""
    agrees([(5, 0, 0, 0), (3, 1, 1, 0), (4, 1, 0, 0)], [1.0])
