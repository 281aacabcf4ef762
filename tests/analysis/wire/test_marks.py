"""What each segment is, one scenario a test: side 0 asks, side 1 answers; numbers count from the SYNs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.wire.flows import build_wire
from sockscope.model.packets import PACKET_DTYPE, Packets
from sockscope.model.tcp import SegmentMark
from tests.analysis.wire.dialogue import Wire

LOST, UNSEEN, DUPLICATE = "bytes before it not seen", "acknowledges bytes not seen", "duplicate ACK"
FAST, SPURIOUS, TIMEOUT = (f"retransmission ({kind})" for kind in ("fast", "spurious", "after a timeout"))


def begun(first: int = 1000, scale: int = 0) -> Wire:
    wire = Wire(first=first)
    wire.say(0, "S", scale=scale).say(1, "SA", ack=1, scale=scale)
    return wire.say(0, "A", at=1, ack=1)


def rest(wire: Wire) -> list[str]:
    """After the handshake."""
    told = wire.told()
    assert told[:3] == ["", "", ""]
    return told[3:]


@pytest.mark.parametrize("first", [1000, 2**32 - 150, 2**31 - 150])
def test_a_smooth_connection_has_no_marks(first: int) -> None:
    wire = begun(first).say(0, "PA", at=1, ack=1, size=100).say(1, "PA", at=1, ack=101, size=200)
    wire.say(0, "A", at=101, ack=201).say(0, "FA", at=101, ack=201).say(1, "FA", at=201, ack=102)
    wire.say(0, "A", at=102, ack=202)
    assert not any(rest(wire))


def test_the_last_segment_is_sent_again_by_the_timer() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=1, ack=1, size=100, after_ms=210)
    assert rest(wire) == ["", TIMEOUT]
    assert wire.facts()["rtos"].tolist() == [1, 0]


def test_a_syn_is_sent_again_by_the_timer() -> None:
    wire = Wire().say(0, "S").say(0, "S", after_ms=1000).say(1, "SA", ack=1).say(0, "A", at=1, ack=1)
    assert wire.told() == ["", TIMEOUT, "", ""]
    # The round trip of a SYN that was sent again counts from the last (Karn).
    assert wire.facts()["handshake_rtt_ns"] == 2_000_000


@pytest.mark.parametrize("first", [1000, 2**32 - 250])
def test_duplicate_acks_make_the_sender_fast(first: int) -> None:
    wire = begun(first)
    for at in (1, 101, 201, 301):
        wire.say(0, "PA", at=at, ack=1, size=100, after_ms=0.1)
    wire.say(1, "A", at=1, ack=101)
    for _ in range(3):
        wire.say(1, "A", at=1, ack=101, after_ms=0.1)
    wire.say(0, "PA", at=101, ack=1, size=100, after_ms=0.1).say(1, "A", at=1, ack=401)
    assert rest(wire) == ["", "", "", "", "", DUPLICATE, DUPLICATE, DUPLICATE, FAST, ""]


def test_the_receivers_end_sees_the_hole_and_what_fills_it() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=201, ack=1, size=100).say(1, "A", at=1, ack=101)
    for _ in range(2):
        wire.say(1, "A", at=1, ack=101)
    wire.say(0, "PA", at=101, ack=1, size=100, after_ms=5).say(1, "A", at=1, ack=301)
    assert rest(wire) == ["", LOST, "", DUPLICATE, DUPLICATE, FAST, ""]


def test_what_was_acknowledged_is_sent_again_in_vain() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=100).say(1, "A", at=1, ack=101)
    wire.say(0, "PA", at=1, ack=1, size=100, after_ms=300)
    assert rest(wire) == ["", "", SPURIOUS]


def test_overtaken_is_not_sent_again() -> None:
    wire = begun().say(0, "PA", at=101, ack=1, size=100).say(0, "PA", at=1, ack=1, size=100, after_ms=0.5)
    assert rest(wire) == [LOST, "out of order"]


def test_what_fills_a_hole_after_a_round_trip_was_sent_again() -> None:
    wire = begun().say(0, "PA", at=101, ack=1, size=100).say(0, "PA", at=1, ack=1, size=100, after_ms=4)
    assert rest(wire) == [LOST, "retransmission"]


def test_old_bytes_with_new_ones_behind() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=51, ack=1, size=100)
    wire.say(0, "PA", at=151, ack=1, size=10)
    assert rest(wire) == ["", "retransmission", ""]


def test_a_fin_takes_a_number_and_is_sent_again() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=9).say(0, "FA", at=10, ack=1).say(0, "FA", at=10, ack=1, after_ms=250)
    assert rest(wire.say(1, "A", at=1, ack=11)) == ["", "", TIMEOUT, ""]


def test_data_in_the_syn() -> None:
    """TCP Fast Open: the SYN brings 20 bytes, the server acknowledges them."""
    wire = Wire().say(0, "S", size=20).say(1, "SA", ack=21).say(0, "A", at=21, ack=1).say(0, "PA", at=21, ack=1, size=5)
    assert not any(wire.told())
    assert wire.flow().payload_bytes == (25, 0)


def test_data_in_the_syn_that_was_not_taken_is_sent_again() -> None:
    wire = Wire().say(0, "S", size=20).say(1, "SA", ack=1).say(0, "PA", at=1, ack=1, size=20)
    assert wire.told() == ["", "", "retransmission"]


def test_a_window_closes_is_probed_and_opens() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=500).say(1, "A", at=1, ack=501, window=0)
    wire.say(0, "A", at=500, ack=1, after_ms=200).say(1, "A", at=1, ack=501, window=0)  # Linux: next - 1, no byte
    wire.say(0, "PA", at=501, ack=1, size=1, after_ms=400).say(1, "A", at=1, ack=501, window=0)  # BSD: a byte beyond
    wire.say(1, "A", at=1, ack=501, window=400).say(0, "PA", at=501, ack=1, size=10)
    assert rest(wire) == [
        "window full",
        "zero window",
        "zero window probe",
        "zero window, answers the probe",
        "zero window probe",
        "zero window, answers the probe",
        "window update",
        "",
    ]
    assert wire.flow().zero_window_count == (0, 3)


def test_a_probe_meets_the_news_of_the_open_window() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=500).say(1, "A", at=1, ack=501, window=0)
    wire.say(0, "A", at=500, ack=1, after_ms=200).say(1, "A", at=1, ack=501).say(1, "A", at=1, ack=501)
    assert rest(wire)[2:] == ["zero window probe", "window update", "answers the probe"]


@pytest.mark.parametrize(("scale", "full"), [(0, True), (1, False), (-1, True)])
def test_whether_a_window_is_full_depends_on_its_scale(scale: int, full: bool) -> None:
    wire = begun(scale=scale).say(0, "PA", at=1, ack=1, size=500)
    # The SYN-ACK's window is never scaled; the next one's is.
    wire.say(1, "A", at=1, ack=501).say(0, "PA", at=501, ack=1, size=500)
    assert rest(wire) == ["window full", "", "window full" if full else ""]


def test_an_unknown_scale_tells_of_no_full_window() -> None:
    wire = Wire().say(1, "A", at=1, ack=1).say(0, "PA", at=1, ack=1, size=500)
    assert wire.told() == ["", ""]


@pytest.mark.parametrize("size", [0, 1])
def test_keep_alives_and_their_answers(size: int) -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=10).say(1, "A", at=1, ack=11)
    for _ in range(2):
        wire.say(0, "A", at=10, ack=1, size=size, after_ms=1000).say(1, "A", at=1, ack=11)
    assert rest(wire) == ["", ""] + ["keep-alive", "answers the keep-alive"] * 2
    assert wire.facts()["keep_alives"].tolist() == [2, 0]


def test_one_byte_that_nobody_acknowledged_is_no_keep_alive() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=1).say(0, "PA", at=1, ack=1, size=1, after_ms=250)
    assert rest(wire) == ["", TIMEOUT]


def test_a_capture_of_an_idle_connection_begins_with_a_keep_alive() -> None:
    wire = Wire().say(0, "A", at=499, ack=80).say(1, "A", at=80, ack=500)
    wire.say(0, "A", at=499, ack=80, after_ms=1000).say(1, "A", at=80, ack=500).say(0, "PA", at=500, ack=80, size=5)
    assert wire.told() == ["keep-alive", "", "keep-alive", "answers the keep-alive", ""]
    assert wire.facts()["began_before"]


@pytest.mark.parametrize(("flags", "size"), [("PA", 1), ("FA", 0)])
def test_an_ack_before_the_first_byte_is_no_keep_alive(flags: str, size: int) -> None:
    wire = Wire().say(0, "A", at=500, ack=301).say(0, flags, at=500, ack=301, size=size).say(1, "A", at=301, ack=501)
    assert wire.told() == ["", "", ""]


def test_bytes_that_were_not_captured_are_told_of_once() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=201, ack=1, size=100)
    wire.say(1, "A", at=1, ack=101).say(1, "A", at=1, ack=301).say(0, "PA", at=401, ack=1, size=100)
    wire.say(1, "A", at=1, ack=501).say(1, "A", at=1, ack=601)
    assert rest(wire) == ["", LOST, "", UNSEEN, LOST, UNSEEN, UNSEEN]


def test_one_side_alone_has_no_duplicate_acks() -> None:
    wire = Wire().say(0, "A", at=1, ack=1).say(0, "A", at=1, ack=1).say(0, "A", at=1, ack=1, window=600)
    assert wire.told() == ["", "", "window update"]
    assert wire.facts()["seen_sides"] == 1


def test_ports_used_again() -> None:
    wire = begun().say(1, "FA", at=1, ack=1).say(0, "FA", at=1, ack=2).say(1, "A", at=2, ack=2)
    wire.isn = [900_000, 77]
    wire.handshake()
    assert wire.told()[6] == "ports used again"
    assert wire.tables().flow_facts["port_reused"].tolist() == [0, 1]


def test_a_challenge_ack_belongs_to_the_connection_before() -> None:
    """RFC 5961 section 4: the old connection answers the SYN, is reset, and the SYN is sent again."""
    wire = Wire().say(0, "S").say(1, "A", at=9_000_000, ack=77_000).say(0, "R", at=77_000)
    wire.say(0, "S", after_ms=1000).say(1, "SA", ack=1).say(0, "A", at=1, ack=1)
    assert wire.told() == ["", "", "", TIMEOUT, "", ""]


def test_resets_have_no_marks_and_a_sender() -> None:
    wire = begun().say(1, "RA", at=900, ack=77, window=0)
    assert rest(wire) == [""]
    assert wire.facts()["reset_side"] == 1


def test_both_open_at_once() -> None:
    wire = Wire().say(0, "S").say(1, "S").say(0, "SA", ack=1).say(1, "SA", ack=1)
    assert not any(wire.told())
    assert wire.facts()["simultaneous_open"]
    assert wire.flow().established_ns is None
    wire.say(0, "PA", at=1, ack=1, size=10)
    assert wire.flow().established_ns == wire.now
    assert wire.facts()["handshake_rtt_ns"] == wire.now - 1_000_000


def test_both_open_at_once_on_a_path_that_doubles() -> None:
    wire = Wire().say(0, "S").say(1, "S").say(0, "SA", ack=1).say(1, "S").say(1, "SA", ack=1)
    wire.say(0, "PA", at=1, ack=1, size=10)
    assert wire.flow().established_ns == wire.now
    assert wire.told()[3:] == ["retransmission", "", ""]


def test_both_close_at_once() -> None:
    wire = begun().say(0, "FA", at=1, ack=1).say(1, "FA", at=1, ack=1).say(0, "A", at=2, ack=2).say(1, "A", at=2, ack=2)
    assert wire.facts()["simultaneous_close"]
    wire = begun().say(0, "FA", at=1, ack=1).say(1, "FA", at=1, ack=2).say(0, "A", at=2, ack=2)
    assert not wire.facts()["simultaneous_close"]


def test_data_after_the_others_fin() -> None:
    wire = begun().say(0, "FA", at=1, ack=1).say(1, "A", at=1, ack=2).say(1, "PA", at=1, ack=2, size=10, after_ms=70)
    assert wire.facts()["half_close_ns"] == 71_000_000
    assert begun().say(0, "FA", at=1, ack=1).facts()["half_close_ns"] == -1


def test_round_trips_leave_out_what_was_sent_again() -> None:
    wire = begun().say(0, "PA", at=1, ack=1, size=10).say(1, "A", at=1, ack=11, after_ms=3)
    wire.say(0, "PA", at=11, ack=1, size=10).say(0, "PA", at=11, ack=1, size=10, after_ms=300)
    wire.say(1, "A", at=1, ack=21, after_ms=50)
    facts = wire.facts()
    assert [int(facts[f"rtt_{name}_ns"][0]) for name in ("min", "median", "max")] == [3_000_000] * 3
    assert facts["rtt_min_ns"].tolist()[1] == -1


def test_one_ack_for_many_segments_is_found() -> None:
    wire = begun()
    for at in range(1, 1001, 100):
        wire.say(0, "PA", at=at, ack=1, size=100, after_ms=1)
    wire.say(1, "A", at=1, ack=501).say(1, "A", at=1, ack=1001)
    facts = wire.facts()
    # The last of those that each ACK covers waited least: 6 ms the fifth, 2 ms the tenth.
    assert [int(facts[f"rtt_{name}_ns"][0]) for name in ("min", "median", "max")] == [2_000_000, 6_000_000, 10_000_000]


def test_nagle_waits_for_a_delayed_ack() -> None:
    wire = begun().say(1, "PA", at=1, ack=1, size=4).say(0, "A", at=1, ack=5, after_ms=42)
    wire.say(1, "PA", at=5, ack=1, size=4)
    facts = wire.facts()
    assert facts["delayed_ack_stalls"].tolist() == [1, 0]
    assert facts["longest_stall_ns"].tolist() == [40_000_000, 0]


def test_an_ack_that_nobody_waited_for_is_no_stall() -> None:
    wire = begun().say(1, "PA", at=1, ack=1, size=4).say(0, "A", at=1, ack=5, after_ms=42)
    wire.say(1, "PA", at=5, ack=1, size=4, after_ms=80)
    assert wire.facts()["delayed_ack_stalls"].tolist() == [0, 0]


packet_bytes = st.binary(max_size=80 * 40)


@settings(max_examples=150, deadline=None)
@given(data=packet_bytes, ports=st.lists(st.integers(1, 2), min_size=40, max_size=40))
def test_any_table_gives_a_result(data: bytes, ports: list[int]) -> None:
    size = PACKET_DTYPE.itemsize
    records = np.frombuffer(data[: len(data) // size * size], PACKET_DTYPE).copy()
    records["protocol"], records["src"], records["dst"] = 6, 0, 0
    records["sport"] = ports[: len(records)]
    records["dport"] = 3 - records["sport"]
    records["time_ns"] &= 2**62 - 1
    wire = build_wire(Packets(records=records, raw=np.zeros(0, np.uint8)), records["time_ns"].copy())
    assert len(wire.packet_marks) == len(records)
    assert len(wire.flow_facts) == len(wire.flows)
    kinds = SegmentMark.FAST_RETRANSMISSION | SegmentMark.SPURIOUS_RETRANSMISSION | SegmentMark.RTO
    for mark in wire.packet_marks.tolist():
        assert (mark & kinds).bit_count() <= 1
        assert mark & SegmentMark.RETRANSMISSION or not mark & kinds


talk = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 30), st.integers(0, 30), st.integers(0, 12), st.sampled_from([0, 1, 9])
    ),
    max_size=25,
)


def spoken(lines: list[tuple[int, int, int, int, int]], port: int) -> Wire:
    wire = Wire().handshake(port)
    for side, at, ack, size, window in lines:
        wire.say(side, "A", at=at + 1, ack=ack + 1, size=size, window=window, port=port)
    return wire


@settings(max_examples=150, deadline=None)
@given(several=st.lists(talk, min_size=2, max_size=4))
def test_marks_do_not_depend_on_other_connections(several: list[list[tuple[int, int, int, int, int]]]) -> None:
    wires = [spoken(lines, 40000 + number) for number, lines in enumerate(several)]
    together = Wire()
    together.rows = sorted(
        (row for wire in wires for row in wire.rows), key=lambda row: (str(row[0]).zfill(20), row[3])
    )
    tables = together.tables()
    packets = together.packets().records
    for number, wire in enumerate(wires):
        own = (packets["sport"] == 40000 + number) | (packets["dport"] == 40000 + number)
        alone = wire.tables()
        assert tables.packet_marks[own].tolist() == alone.packet_marks.tolist()
        flow = int(tables.packet_flow[own][0])
        assert tables.flow_facts[flow].tobytes() == alone.flow_facts[0].tobytes()
