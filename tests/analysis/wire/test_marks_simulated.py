"""Marks against the truth: a simulated path loses and reorders, the sender sends again, both ends are looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.model.tcp import SegmentMark as Mark
from tests.analysis.wire.dialogue import MS, Wire

SIZE = 100
ONE_WAY = 5 * MS
ROUND_TRIP = 2 * ONE_WAY


@dataclass(frozen=True, slots=True)
class Sent:
    """One transmission: `arrives` is None where it is lost."""

    leaves: int
    arrives: int | None
    number: int
    again: bool


Fate = tuple[bool, int, bool]
"""Of one segment: lost; overtaken by how many ms; sent again though it arrived."""


def transmissions(fates: list[Fate]) -> list[Sent]:
    """A segment every ms; what is lost is sent again a round trip after its hole shows, as duplicate ACKs make one."""
    first = [
        Sent(
            leaves=number * MS,
            arrives=None if lost else number * MS + ONE_WAY + late * MS + 1000,
            number=number,
            again=False,
        )
        for number, (lost, late, _) in enumerate(fates)
    ]
    out = list(first)
    for one, (lost, _, needless) in zip(first, fates, strict=True):
        showed = [other.arrives for other in first[one.number + 1 :] if other.arrives is not None]
        if lost:
            leaves = (min(showed) if showed else one.leaves + 250 * MS) + ONE_WAY + 2000
        elif needless:
            leaves = one.leaves + 300 * MS
        else:
            continue
        out.append(Sent(leaves=leaves, arrives=leaves + ONE_WAY, number=one.number, again=True))
    return sorted(out, key=lambda sent: sent.leaves)


def acknowledgments(sent: list[Sent]) -> list[tuple[int, int]]:
    """(time at the receiver, bytes in order so far), one for each arrival."""
    arrived: set[int] = set()
    out = []
    for one in sorted((s for s in sent if s.arrives is not None), key=lambda s: s.arrives or 0):
        arrived.add(one.number)
        reached = 0
        while reached in arrived:
            reached += 1
        out.append((one.arrives or 0, reached * SIZE))
    return out


def seen(sent: list[Sent], *, at_receiver: bool) -> tuple[Wire, list[Sent]]:
    """The capture of one end; and the transmissions in it, in its order."""
    data = [(s.arrives if at_receiver else s.leaves, s) for s in sent]
    acks = [(when if at_receiver else when + ONE_WAY, reached) for when, reached in acknowledgments(sent)]
    lines: list[tuple[int, int, Sent | int]] = [(when, 0, one) for when, one in data if when is not None]
    lines += [(when + 10, 1, reached) for when, reached in acks]
    wire = Wire()
    began = 20 * MS
    wire.say(0, "S", after_ms=1).say(1, "SA", ack=1, after_ms=0 if at_receiver else 10)
    wire.say(0, "A", at=1, ack=1, after_ms=10 if at_receiver else 0)
    order = []
    for when, _, what in sorted(lines, key=lambda line: line[:2]):
        wire.now = began + when
        if isinstance(what, Sent):
            order.append(what)
            wire.say(0, "PA", at=1 + what.number * SIZE, ack=1, size=SIZE, after_ms=0, window=60000)
        else:
            wire.say(1, "A", at=1, ack=1 + what, after_ms=0, window=60000)
    return wire, order


def data_marks(wire: Wire) -> list[Mark]:
    tables, records = wire.tables(), wire.packets().records
    assert wire.facts()["handshake_rtt_ns"] == ROUND_TRIP
    assert not (tables.packet_marks & np.uint16(Mark.ACKED_UNSEEN)).any()
    return [Mark(mark) for mark in tables.packet_marks[records["payload_bytes"] > 0].tolist()]


fates = st.lists(
    st.tuples(st.sampled_from([False, False, False, True]), st.sampled_from([0, 0, 0, 3, 7]), st.booleans()),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(fates=fates)
def test_the_senders_end_sees_what_is_sent_again(fates: list[Fate]) -> None:
    wire, order = seen(transmissions(fates), at_receiver=False)
    for mark, sent in zip(data_marks(wire), order, strict=True):
        assert bool(mark & Mark.RETRANSMISSION) == sent.again
        assert not mark & (Mark.OUT_OF_ORDER | Mark.LOST_BEFORE)


@settings(max_examples=150, deadline=None)
@given(fates=fates)
def test_the_receivers_end_tells_what_was_overtaken_from_what_was_lost(fates: list[Fate]) -> None:
    wire, order = seen(transmissions(fates), at_receiver=True)
    highest = -1
    for mark, sent in zip(data_marks(wire), order, strict=True):
        passed = sent.number <= highest
        assert bool(mark & Mark.OUT_OF_ORDER) == (passed and not sent.again)
        assert bool(mark & Mark.RETRANSMISSION) == (passed and sent.again)
        assert bool(mark & Mark.LOST_BEFORE) == (sent.number > highest + 1)
        highest = max(highest, sent.number)


@settings(max_examples=100, deadline=None)
@given(fates=fates)
def test_what_was_acknowledged_before_is_spurious(fates: list[Fate]) -> None:
    """Sent again though it had arrived, long after everything was acknowledged."""
    sent = transmissions(fates)
    wire, order = seen(sent, at_receiver=False)
    acks = [(when + ONE_WAY, reached) for when, reached in acknowledgments(sent)]
    for mark, one in zip(data_marks(wire), order, strict=True):
        told = [reached for when, reached in acks if when + 10 < one.leaves]
        acknowledged = bool(told) and told[-1] >= (one.number + 1) * SIZE
        assert bool(mark & Mark.SPURIOUS_RETRANSMISSION) == (one.again and acknowledged)
