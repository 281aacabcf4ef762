"""Whatever the size, one result: sessions made in pieces of three rows, with every column in a file, are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.analysis import synthesise
from sockscope import storage
from sockscope.analysis.build import build_session
from sockscope.analysis.session import Grouping, Session
from sockscope.model import columns
from sockscope.model.calls import Call
from sockscope.model.columns import in_memory
from sockscope.pipeline.analyze import make_report
from tests.analysis.builders import Script
from tests.analysis.strategies import Kernel, Operation, operations
from tests.analysis.test_build import noise, noisy

COLUMNS = (
    "order",
    "effective_ns",
    "event_connection",
    "event_open_file",
    "event_descriptor",
    "event_table",
    "event_reason",
    "packet_flow",
    "socket_connection",
    "exchanges",
    "kernel",
    "kernel_connection",
)


@contextmanager
def small_pieces() -> Iterator[None]:
    """Three rows are a piece, and a file is made for every column."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "PIECE_ROWS", 3)
        patch.setattr(storage, "SPILL_BYTES", 0)
        yield


def assert_same(usual: Session, other: Session) -> None:
    for name in COLUMNS:
        ours, theirs = getattr(usual, name), getattr(other, name)
        assert ours.dtype == theirs.dtype, name
        assert np.array_equal(ours, theirs), name
    for name in ("descriptors", "open_files", "connections", "tables", "interests", "processes"):
        assert getattr(usual, name) == getattr(other, name), name
    assert usual.info == other.info


def built(script: Script, *, big: bool) -> Session:
    return build_session(
        info=script.info(),
        seed=script.seed(),
        events=script.events(),
        packets=script.packets(),
        sockets=script.sockets(),
        facts=script.facts(),
        columns=storage.allocate if big else in_memory,
    )


def compare(script: Script) -> None:
    usual = built(script, big=False)
    told = make_report(usual)
    with small_pieces():
        other = built(script, big=True)
        assert_same(usual, other)
        again = make_report(other)
        for name in ("connections", "findings", "skipped", "latency", "unassigned", "idle_words", "stops"):
            assert getattr(told, name) == getattr(again, name), name


@given(operations)
@settings(max_examples=60, deadline=None)
def test_any_history_in_small_pieces(history: list[Operation]) -> None:
    kernel = Kernel()
    kernel.run(history)
    compare(kernel.script)


@given(st.lists(noise, max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_noise_in_small_pieces(
    events: list[tuple[Call, int, tuple[int, int, int, int], int, int, int, int, int]],
) -> None:
    compare(noisy(events))


@given(operations, st.sets(st.integers(0, 60)))
@settings(max_examples=40, deadline=None)
def test_what_was_lost_is_inferred_alike(history: list[Operation], lost: set[int]) -> None:
    kernel = Kernel()
    kernel.run(history)
    script = kernel.script
    script._rows[:] = [row for at, row in enumerate(script._rows) if at not in lost]
    compare(script)


def test_a_busy_server_in_small_pieces() -> None:
    seed, events, packets, sockets, info = synthesise(4000, 100)
    usual = build_session(info=info, seed=seed, events=events, packets=packets, sockets=sockets)
    told = make_report(usual)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "PIECE_ROWS", 97)
        patch.setattr(storage, "SPILL_BYTES", 0)
        other = build_session(
            info=info, seed=seed, events=events, packets=packets, sockets=sockets, columns=storage.allocate
        )
        assert_same(usual, other)
        again = make_report(other)
    assert len(told.latency) == 1
    assert asdict(told.latency[0]) == asdict(again.latency[0])
    assert [row.summary for row in told.connections] == [row.summary for row in again.connections]
    assert told.findings == again.findings


@given(st.lists(st.integers(-2, 6), max_size=40))
def test_groups(ids: list[int]) -> None:
    table = np.array(ids, np.int32)
    order = np.random.default_rng(len(ids)).permutation(len(ids))[: len(ids) - len(ids) // 4]
    with small_pieces():
        groups = Grouping(table, order, storage.allocate)
    for one in range(-3, 8):
        assert groups.of(one).tolist() == [row for row in order.tolist() if ids[row] == one]
    rows, bounds = groups.spans(5)
    for one in range(5):
        assert rows[bounds[one] : bounds[one + 1]].tolist() == groups.of(one).tolist()
