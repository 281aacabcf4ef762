"""That the comparison with tshark can fail: of each difference that is explained one is made, and then told wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sockscope.model.packets import Packets
from sockscope.model.tcp import SegmentMark as Mark
from tests.analysis.wire.dialogue import Wire
from tests.live.mark_differences import Differences, Retold
from tests.live.tshark_marks import Compared, tshark, wire_of
from tests.live.written_packets import write_packets

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark"),
]


def begun(wire: Wire) -> Wire:
    wire.say(0, "S", scale=0).say(1, "SA", ack=1, scale=0, after_ms=10)
    return wire.say(0, "A", at=1, ack=1)


def closed_window(wire: Wire) -> None:
    begun(wire).say(0, "PA", at=1, ack=1, size=500).say(1, "A", at=1, ack=501, window=0)
    for _ in range(2):
        wire.say(0, "A", at=500, ack=1, after_ms=300).say(1, "A", at=1, ack=501, window=0)
    wire.say(1, "A", at=1, ack=501).say(0, "PA", at=501, ack=1, size=100)


def seen_before(wire: Wire) -> None:
    begun(wire).say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=101, ack=1, size=100)
    wire.say(0, "PA", at=1, ack=1, size=100).say(1, "A", at=1, ack=201)


def age_of_the_hole(wire: Wire) -> None:
    begun(wire).say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=201, ack=1, size=100)
    for at in (301, 401):
        wire.say(0, "PA", at=at, ack=1, size=100, after_ms=9)
    wire.say(0, "PA", at=101, ack=1, size=100).say(1, "A", at=1, ack=501)
    wire.say(0, "PA", at=601, ack=1, size=100)
    for _ in range(2):
        wire.say(1, "A", at=1, ack=501)
    wire.say(0, "PA", at=501, ack=1, size=100).say(1, "A", at=1, ack=701)


def later_hole(wire: Wire) -> None:
    begun(wire)
    for at in (1, 101, 201, 301):
        wire.say(0, "PA", at=at, ack=1, size=100)
    for _ in range(3):
        wire.say(1, "A", at=1, ack=101, after_ms=5)
    wire.say(0, "PA", at=101, ack=1, size=100).say(0, "PA", at=301, ack=1, size=100)
    wire.say(1, "A", at=1, ack=401)


def once_a_hole(wire: Wire) -> None:
    begun(wire).say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=201, ack=1, size=100)
    wire.say(1, "A", at=1, ack=301).say(0, "PA", at=301, ack=1, size=100).say(1, "A", at=1, ack=501)
    for at in (501, 601):
        wire.say(0, "PA", at=at, ack=1, size=100)
    wire.say(1, "A", at=1, ack=701).say(1, "A", at=1, ack=701).say(0, "A", at=701, ack=101)


def counter_below_zero(wire: Wire) -> None:
    begun(wire).say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=101, ack=1, size=100)
    wire.say(1, "A", at=1, ack=101).say(0, "A", at=201, ack=301).say(0, "PA", at=101, ack=301, size=100, after_ms=12)
    wire.say(1, "PA", at=301, ack=201, size=100)


def first_keep_alive(wire: Wire) -> None:
    for _ in range(2):
        wire.say(0, "A", at=500, ack=301).say(1, "A", at=301, ack=501, after_ms=900)
    wire.say(0, "PA", at=501, ack=301, size=100).say(1, "A", at=301, ack=601)


def one_side_captured(wire: Wire) -> None:
    for at in (1, 101):
        wire.say(0, "PA", at=at, ack=1, size=100).say(0, "A", at=at + 100, ack=1)


def another_connection(wire: Wire) -> None:
    wire.say(0, "PA", at=1, ack=1, size=100).say(1, "A", at=1, ack=101).say(1, "PA", at=1, ack=101, size=300)
    wire.isn = [700_000, 900_000]
    wire.say(1, "SA", ack=1, scale=0).say(0, "A", at=1, ack=1).say(0, "PA", at=1, ack=1, size=100)
    wire.say(1, "A", at=1, ack=101)


def before_the_syn(wire: Wire) -> None:
    wire.say(0, "S", scale=0).say(1, "A", at=4_000_000, ack=3_000_000)
    wire.say(0, "R", at=3_000_000).say(0, "S", scale=0, after_ms=1000).say(1, "SA", ack=1, scale=0)
    wire.say(0, "A", at=1, ack=1).say(0, "PA", at=1, ack=1, size=100).say(1, "A", at=1, ack=101)


def acknowledged_first(wire: Wire) -> None:
    begun(wire).say(1, "A", at=1, ack=101, after_ms=9).say(0, "PA", at=1, ack=1, size=100, after_ms=0.01)
    wire.say(0, "PA", at=101, ack=1, size=100).say(1, "A", at=1, ack=201)


def after_a_reset(wire: Wire) -> None:
    begun(wire).say(0, "PA", at=1, ack=1, size=100).say(1, "PA", at=1, ack=101, size=50)
    wire.say(0, "RA", at=101, ack=51).say(0, "A", at=101, ack=51).say(1, "R", at=51)


def simultaneous_open(wire: Wire) -> None:
    wire.say(0, "S", scale=0).say(1, "S", scale=0).say(0, "SA", ack=1, scale=0, after_ms=9)
    wire.say(1, "SA", ack=1, scale=0).say(0, "PA", at=1, ack=1, size=100).say(1, "A", at=1, ack=101)


def one_byte_again(wire: Wire) -> None:
    begun(wire).say(0, "PA", at=1, ack=1, size=1).say(1, "A", at=1, ack=1).say(
        0, "PA", at=1, ack=1, size=1, after_ms=250
    )
    wire.say(1, "A", at=1, ack=1).say(1, "A", at=1, ack=2)


SCENES: dict[str, tuple[Callable[[Wire], None], tuple[int, ...]]] = {
    "closed-window": (closed_window, (6, 7, 8, 9)),
    "seen-before": (seen_before, (6,)),
    "age-of-the-hole": (age_of_the_hole, (8, 13)),
    "later-hole": (later_hole, (12,)),
    "once-a-hole": (once_a_hole, (11, 13)),
    "counter-below-zero": (counter_below_zero, (8,)),
    "first-keep-alive": (first_keep_alive, (1, 2, 3, 4, 5, 6)),
    "one-side-captured": (one_side_captured, (2, 4)),
    "another-connection": (another_connection, (4, 5, 7)),
    "before-the-syn": (before_the_syn, (2, 5)),
    "acknowledged-first": (acknowledged_first, (5,)),
    "after-a-reset": (after_a_reset, (7,)),
    "simultaneous-open": (simultaneous_open, (3, 4)),
    "one-byte-again": (one_byte_again, (6, 7)),
}
"""What is made, and which of its packets, from 1 on, tshark calls something else."""


PAGE = Path(__file__).parents[2] / "docs" / "wire.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """All scenes, one after another, seen by both.

    Attributes:
        first: scene → its first row.
    """

    compared: Compared
    retold: Retold
    first: dict[str, int]

    def differences(self, flow: int, marks: npt.NDArray[np.uint16] | None = None) -> dict[int, str]:
        """Row → names, of one flow, with other marks than ours."""
        wire = self.compared.wire
        told = replace(self.compared, wire=wire if marks is None else replace(wire, packet_marks=marks))
        return {frame - 1: names for frame, names in Differences(told, self.retold).each(flow)}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    records, first, count = list[npt.NDArray[np.void]](), {}, 0
    for number, (name, (scene, _)) in enumerate(SCENES.items()):
        wire = Wire(client=f"10.0.{number}.1")
        scene(wire)
        first[name] = count
        records.append(wire.packets().records)
        count += len(wire.rows)
    made = Packets(records=np.concatenate(records), raw=np.zeros(0, np.uint8))
    file = tmp_path_factory.mktemp("scenes") / "scenes.pcap"
    write_packets(file, made.records)
    compared = Compared(packets=made, wire=wire_of(made), told=tshark(file))
    retold = Differences(compared).retold(list(range(len(compared.wire.flows))))
    return Played(compared=compared, retold=retold, first=first)


def test_each_difference_of_the_page_is_made() -> None:
    assert sorted(re.findall(r"^`([a-z-]+)`$", PAGE.read_text("utf-8"), re.MULTILINE)) == sorted(SCENES)


@pytest.mark.parametrize("name", SCENES)
def test_a_difference_has_its_name(played: Played, name: str) -> None:
    rows = [played.first[name] + frame - 1 for frame in SCENES[name][1]]
    (flow,) = {int(played.compared.wire.packet_flow[row]) for row in rows}
    found = played.differences(flow)
    assert list(found) == rows
    assert all(name in names.split() for names in found.values())


@pytest.mark.parametrize("name", SCENES)
def test_a_wrong_mark_is_not_explained(played: Played, name: str) -> None:
    """Each mark of each packet of the flow, one at a time."""
    wire = played.compared.wire
    flow = wire.packet_flow[played.first[name] + SCENES[name][1][0] - 1]
    for row in np.flatnonzero(wire.packet_flow == flow).tolist():
        for mark in Mark:
            wrong = wire.packet_marks.copy()
            wrong[row] ^= mark
            assert played.differences(int(flow), wrong).get(row) == "", (row - played.first[name] + 1, mark)


@pytest.mark.parametrize("name", SCENES)
def test_what_tshark_says_instead_is_wrong_too(played: Played, name: str) -> None:
    for frame in SCENES[name][1]:
        row = played.first[name] + frame - 1
        theirs = played.compared.wire.packet_marks.copy()
        theirs[row] = played.compared.told.marks[row]
        assert played.differences(int(played.compared.wire.packet_flow[row]), theirs).get(row) == "", frame
