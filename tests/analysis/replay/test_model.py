"""Replay against a small kernel: any history, the same descriptors; fed at once or in pieces."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.replay.order import replay_order
from sockscope.analysis.replay.replay import Replay
from sockscope.model.events import Events
from tests.analysis.strategies import Kernel, Operation, operations


def played(history: list[Operation]) -> tuple[Kernel, Events, Replay]:
    kernel = Kernel()
    kernel.run(history)
    events = kernel.script.events()
    order, effective_ns = replay_order(events)
    replay = Replay(kernel.script.seed())
    replay.feed(events, order, effective_ns=effective_ns)
    return kernel, events, replay


@given(operations)
@settings(max_examples=300, deadline=None)
def test_every_number_names_the_file_it_names_in_the_kernel(history: list[Operation]) -> None:
    kernel, _, replay = played(history)
    assert sorted(replay.task_table) == sorted(kernel.tables)
    same: dict[int, int] = {}
    for tid, table in kernel.tables.items():
        live = replay.tables[replay.task_table[tid]].live
        assert sorted(live) == sorted(table.fds)
        for fd, (file, cloexec) in table.fds.items():
            descriptor = replay.descriptors[live[fd]]
            assert descriptor.cloexec == cloexec
            assert same.setdefault(file.name, descriptor.open_file) == descriptor.open_file
    assert len(set(same.values())) == len(same)


@given(operations)
@settings(max_examples=200, deadline=None)
def test_files_end_when_nothing_holds_them(history: list[Operation]) -> None:
    kernel, _, replay = played(history)
    assert len(replay.open_files) == len(kernel.files)
    for ours, theirs in zip(replay.open_files, kernel.files, strict=True):
        live = [d for d in ours.descriptors if replay.descriptors[d].closed_ns is None]
        assert len(live) == theirs.holders == replay.holder_count[ours.id]
        assert ours.in_flight == theirs.in_flight
        assert (ours.released_ns is not None) == theirs.released
    registered = {(i.epoll, i.fd, i.open_file) for i in replay.interests if i.removed_ns is None}
    assert registered == kernel.interests


@given(operations)
@settings(max_examples=150, deadline=None)
def test_one_open_descriptor_a_number(history: list[Operation]) -> None:
    _, _, replay = played(history)
    open_now = [(d.table, d.fd) for d in replay.descriptors if d.closed_ns is None]
    assert len(open_now) == len(set(open_now))
    live = {(t.id, fd): d for t in replay.tables for fd, d in t.live.items()}
    assert live == {(d.table, d.fd): d.id for d in replay.descriptors if d.closed_ns is None}
    by_number: dict[tuple[int, int], int] = {}
    for d in replay.descriptors:
        # Generations of one number follow one another.
        assert by_number.get((d.table, d.fd), -1) <= d.opened_ns
        by_number[(d.table, d.fd)] = d.closed_ns if d.closed_ns is not None else 1 << 62


@given(operations, st.lists(st.integers(0, 80), max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_pieces_make_the_whole_and_row_order_does_not_matter(
    history: list[Operation], cuts: list[int], random: st.DataObject
) -> None:
    kernel, events, whole = played(history)
    rows = list(range(len(events)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    mixed = Events(records=events.records[np.array(rows, np.int64)], blob=events.blob)
    order, effective_ns = replay_order(mixed)
    pieces = Replay(kernel.script.seed())
    for piece in np.split(order, sorted(c for c in cuts if c <= len(order))):
        pieces.feed(mixed, piece, effective_ns=effective_ns)
    # Event ids differ with the rows; everything else is the same.
    assert [(d.table, d.fd, d.open_file, d.how, d.opened_ns, d.closed_ns, d.ended) for d in pieces.descriptors] == [
        (d.table, d.fd, d.open_file, d.how, d.opened_ns, d.closed_ns, d.ended) for d in whole.descriptors
    ]
    assert [(f.kind, f.in_flight, f.released_ns, f.descriptors) for f in pieces.open_files] == [
        (f.kind, f.in_flight, f.released_ns, f.descriptors) for f in whole.open_files
    ]
    assert pieces.task_table == whole.task_table
    assert {t: (p.parent, p.tids, p.exited_ns) for t, p in pieces.processes.items()} == {
        t: (p.parent, p.tids, p.exited_ns) for t, p in whole.processes.items()
    }
