"""Replay order: what frees a number comes at its entry, what needs it at its return."""

from __future__ import annotations

from sockscope.analysis.replay.order import replay_order, times_of_effect
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from tests.analysis.builders import START_NS, Script


def order_of(script: Script) -> list[int]:
    return [int(row) for row in replay_order(script.events())[0]]


def test_close_counts_before_the_accept_that_returns_its_number_first() -> None:
    script = Script()
    accept = script.event(1, 2, Call.accept4, fd=3, ret=7, at=100, took=50)
    close = script.event(1, 1, Call.close, fd=7, at=120, took=100)
    assert order_of(script) == [close, accept]


def test_a_read_counts_when_it_returns() -> None:
    script = Script()
    read = script.event(1, 1, Call.read, fd=7, ret=1, at=100, took=500)
    write = script.event(1, 2, Call.write, fd=8, ret=1, at=200, took=10)
    assert order_of(script) == [write, read]


def test_no_entry_counts_at_its_return_and_no_return_at_its_entry() -> None:
    script = Script()
    blocked = script.event(1, 1, Call.close, fd=7, at=100, took=900, flags=EventFlag.NO_ENTRY)
    waiting = script.event(1, 2, Call.accept4, fd=3, at=500, flags=EventFlag.ENTERED_ONLY)
    order, effective = replay_order(script.events())
    assert order.tolist() == [waiting, blocked]
    assert effective.tolist() == [START_NS + 1000, START_NS + 500]


def test_a_child_is_born_before_it_does_anything() -> None:
    script = Script()
    first = script.event(2, 2, Call.close, fd=7, at=90, took=5)
    born = script.fork(1, 2, at=100)
    order, effective = replay_order(script.events())
    assert order.tolist() == [born, first]
    assert effective[born] == effective[first] == START_NS + 90
    assert times_of_effect(script.events(), order).tolist() == [START_NS + 90] * 2


def test_a_tid_that_comes_again_keeps_its_lives_apart() -> None:
    script = Script()
    rows = [
        script.event(2, 2, Call.close, fd=7, at=10),
        script.exit(2, at=20),
        script.event(2, 2, Call.close, fd=8, at=95),
        script.fork(1, 2, at=100),
    ]
    assert order_of(script) == [rows[0], rows[1], rows[3], rows[2]]


def test_birth_at_the_very_time_of_the_first_event() -> None:
    script = Script()
    first = script.event(2, 2, Call.close, fd=7, at=100)
    born = script.fork(1, 2, at=100)
    assert order_of(script) == [born, first]


def test_descriptors_are_handed_over_before_they_are_received() -> None:
    script = Script()
    sent = script.event(1, 1, Call.sendmsg, fd=4, ret=1, at=100, took=100, control=[7])
    received = script.event(2, 2, Call.recvmsg, fd=5, ret=1, at=50, took=80, control=[9])
    assert order_of(script) == [sent, received]


def test_ties_keep_row_order() -> None:
    script = Script()
    rows = [script.event(1, 1, Call.socket, 2, 1, ret=n, at=100) for n in range(5)]
    assert order_of(script) == rows
