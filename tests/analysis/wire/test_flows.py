"""Flows from hand-made packet tables: each test reads as a dialogue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.wire.columns import distinct_bytes
from sockscope.analysis.wire.ends import FlowEnd, describe_end, flow_end, side_lacking_fin
from sockscope.analysis.wire.flows import build_flows, monotonic_ns
from sockscope.model.packets import PACKET_DTYPE, Packets
from tests.analysis.wire.dialogue import MS, Wire


@pytest.mark.parametrize("ends", [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")])
def test_a_whole_connection(ends: tuple[str, str]) -> None:
    wire = Wire(*ends).handshake()
    wire.say(0, "PA", at=1, ack=1, size=78).say(1, "PA", at=1, ack=79, size=200).say(0, "A", at=79, ack=201)
    wire.say(0, "FA", at=79, ack=201).say(1, "FA", at=201, ack=80).say(0, "A", at=80, ack=202)
    flow = wire.flow()
    assert [str(e) for e in flow.ends] == [
        f"[{ends[0]}]:40000" if ":" in ends[0] else f"{ends[0]}:40000",
        f"[{ends[1]}]:80" if ":" in ends[1] else f"{ends[1]}:80",
    ]
    assert (flow.first_ns, flow.last_ns) == (1 * MS, 9 * MS)
    assert (flow.syn_ns, flow.synack_ns, flow.established_ns) == (1 * MS, 2 * MS, 3 * MS)
    assert flow.packet_count == (6, 3)
    assert flow.payload_bytes == (78, 200)
    assert flow.last_payload_ns == (4 * MS, 5 * MS)
    assert flow.fin_ns == (7 * MS, 8 * MS)
    assert flow.fin_acked_ns == (8 * MS, 9 * MS)
    assert flow.rst_ns == (None, None)
    assert flow.retransmission_count == (0, 0)
    assert flow_end(flow) == FlowEnd.BOTH_CLOSED
    assert describe_end(flow, 1) == "both closed, peer first (at +0.007 s)"


def test_server_that_never_sends_fin() -> None:
    flow = Wire().handshake().say(0, "FA", at=1, ack=1).say(1, "A", at=1, ack=2).flow()
    assert flow.fin_ns == (4 * MS, None)
    assert flow.fin_acked_ns == (5 * MS, None)
    assert flow_end(flow) == FlowEnd.SIDE_1_LACKS_FIN
    assert side_lacking_fin(flow) == 1
    assert describe_end(flow, 1) == "local never sent FIN (peer's FIN at +0.004 s)"
    assert describe_end(flow, 0, since_ns=MS) == "peer never sent FIN (local's FIN at +0.003 s)"


def test_an_old_acknowledgment_does_not_acknowledge_the_fin() -> None:
    flow = (
        Wire()
        .handshake()
        .say(0, "PA", at=1, ack=1, size=10)
        .say(0, "FA", at=11, ack=1)
        .say(1, "A", at=1, ack=11)
        .flow()
    )
    assert flow.fin_acked_ns == (None, None)


@pytest.mark.parametrize(
    ("wire", "end"),
    [
        (Wire().say(0, "S").say(0, "S", after_ms=1000), FlowEnd.UNANSWERED),
        (Wire().say(0, "S").say(1, "RA", ack=1), FlowEnd.REFUSED),
        (Wire().handshake(), FlowEnd.OPEN),
        (Wire().handshake().say(1, "R", at=1), FlowEnd.RESET_BY_SIDE_1),
        (Wire().handshake().say(0, "FA", at=1, ack=1).say(1, "RA", at=1, ack=2), FlowEnd.RESET_BY_SIDE_1),
        (
            Wire().handshake().say(0, "FA", at=1, ack=1).say(1, "FA", at=1, ack=2).say(0, "R", at=2),
            FlowEnd.BOTH_CLOSED,
        ),
        (Wire().handshake().say(1, "FA", at=1, ack=1), FlowEnd.SIDE_0_LACKS_FIN),
    ],
)
def test_ends(wire: Wire, end: FlowEnd) -> None:
    assert flow_end(wire.flow()) == end


def test_capture_that_begins_in_the_middle() -> None:
    wire = Wire().say(1, "PA", at=500, ack=90, size=10).say(0, "A", at=90, ack=510)
    flow = wire.flow()
    assert str(flow.ends[0]) == "10.0.0.2:80"
    assert (flow.syn_ns, flow.synack_ns, flow.established_ns) == (None, None, None)
    assert flow.payload_bytes == (10, 0)


def test_capture_that_begins_with_the_synack_knows_the_opener() -> None:
    flow = Wire().say(1, "SA", ack=1).say(0, "A", at=1, ack=1).flow()
    assert str(flow.ends[0]) == "10.0.0.1:40000"
    assert (flow.syn_ns, flow.established_ns) == (None, 2 * MS)


def test_ports_used_again_are_another_flow() -> None:
    wire = Wire().handshake().say(0, "FA", at=1, ack=1).say(1, "FA", at=1, ack=2).say(0, "A", at=2, ack=2)
    wire.isn = [900_000, 77]
    wire.handshake().say(0, "R", at=1)
    first, second = wire.flows()
    assert flow_end(first) == FlowEnd.BOTH_CLOSED
    assert flow_end(second) == FlowEnd.RESET_BY_SIDE_0
    assert first.packet_count == (4, 2)
    assert second.packet_count == (3, 1)


def test_ports_used_again_after_an_unseen_beginning() -> None:
    wire = Wire().say(0, "A", at=50, ack=60)
    wire.isn = [1, 2]
    first, second = wire.handshake().flows()
    assert (first.syn_ns, second.syn_ns) == (None, 2 * MS)


def test_retransmitted_handshake_is_one_flow() -> None:
    wire = Wire().say(0, "S").say(0, "S", after_ms=1000).say(1, "SA", ack=1).say(1, "SA", ack=1, after_ms=1000)
    flow = wire.say(0, "A", at=1, ack=1).flow()
    assert flow.retransmission_count == (1, 1)
    assert flow.established_ns == flow.last_ns


def test_simultaneous_open_is_one_flow() -> None:
    wire = Wire().say(0, "S").say(1, "S").say(0, "SA", ack=1).say(1, "SA", ack=1).say(0, "A", at=1, ack=1)
    assert wire.flow().syn_ns == 1 * MS


def test_interleaved_connections_of_both_families_are_kept_apart() -> None:
    wires = [Wire(), Wire("10.0.0.9"), Wire("fd00::1", "fd00::2"), Wire("fd00::1", "fd00::3")]
    both = Wire()
    for wire in wires:
        for port in (1, 2, 3):
            wire.now = 0
            wire.handshake(port)
    both.rows = sorted((row for wire in wires for row in wire.rows), key=lambda row: (str(row[0]), str(row[4])))
    flows = both.flows()
    assert len(flows) == 12
    assert all(f.packet_count == (2, 1) and f.established_ns == 3 * MS for f in flows)
    assert len({str(f.ends) for f in flows}) == 12


def test_packets_out_of_order_in_the_file() -> None:
    wire = Wire().handshake().say(0, "FA", at=1, ack=1)
    wire.rows.reverse()
    flow = wire.flow()
    assert (flow.syn_ns, flow.fin_ns) == (1 * MS, (4 * MS, None))


def test_only_tcp_makes_flows() -> None:
    wire = Wire().say(0, "", protocol=17)
    packets = wire.packets()
    flows, packet_flow = build_flows(packets, packets.records["time_ns"].copy())
    assert (list(flows), packet_flow.tolist()) == ([], [-1])
    assert not build_flows(Packets.empty(), np.zeros(0, np.int64))[0]


def test_retransmissions_and_distinct_bytes() -> None:
    wire = Wire().handshake()
    wire.say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=101, ack=1, size=100)
    wire.say(0, "PA", at=1, ack=1, size=100, after_ms=200)  # whole again
    wire.say(0, "PA", at=151, ack=1, size=100)  # half again
    wire.say(0, "FA", at=251, ack=1).say(0, "FA", at=251, ack=1, after_ms=200)
    flow = wire.flow()
    assert flow.payload_bytes == (250, 0)
    assert flow.retransmission_count == (3, 0)


def test_reordering_is_not_retransmission_but_a_late_fill_is() -> None:
    wire = Wire().handshake()
    wire.say(0, "PA", at=101, ack=1, size=100).say(0, "PA", at=1, ack=1, size=50, after_ms=0.1)
    flow = wire.flow()
    assert flow.payload_bytes == (150, 0)
    wire = Wire().handshake()
    wire.say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=201, ack=1, size=100)
    wire.say(0, "PA", at=101, ack=1, size=100, after_ms=0.5)
    assert wire.flow().retransmission_count == (0, 0)
    assert wire.flow().payload_bytes == (300, 0)
    wire = Wire().handshake()
    wire.say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=201, ack=1, size=100)
    wire.say(0, "PA", at=101, ack=1, size=100, after_ms=250)
    assert wire.flow().retransmission_count == (1, 0)
    assert wire.flow().payload_bytes == (300, 0)


def test_copies_on_another_interface_count_once() -> None:
    wire = Wire().handshake().say(0, "PA", at=1, ack=1, size=10)
    packets = wire.packets()
    copied = packets.records.copy()
    copied["time_ns"] += 2000
    copied["interface"] = 1
    # Later, on the other interface: truly sent again.
    again = packets.records[3:].copy()
    again["time_ns"] += 300 * MS
    again["interface"] = 1
    both = Packets(records=np.concatenate((packets.records, copied, again)), raw=packets.raw)
    (flow,), packet_flow = build_flows(both, both.records["time_ns"].copy())
    assert flow.packet_count == (4, 1)
    assert flow.retransmission_count == (1, 0)
    assert packet_flow.tolist() == [0] * 4 + [-1] * 4 + [0]


def test_sequence_numbers_wrap() -> None:
    wire = Wire(first=2**32 - 50).handshake()
    wire.say(0, "PA", at=1, ack=1, size=100).say(0, "PA", at=101, ack=1, size=100).say(0, "FA", at=201, ack=1)
    flow = wire.say(1, "A", at=1, ack=202).flow()
    assert flow.payload_bytes == (200, 0)
    assert flow.retransmission_count == (0, 0)
    assert flow.fin_acked_ns[0] is not None


def test_zero_windows_are_counted_but_not_those_of_resets() -> None:
    wire = Wire().handshake().say(1, "A", at=1, ack=1, window=0).say(1, "R", at=1, window=0)
    assert wire.flow().zero_window_count == (0, 1)


@settings(max_examples=200, deadline=None)
@given(
    segments=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(1, 20)), max_size=40),
    base=st.sampled_from([0, 1, 2**31, 2**32 - 30]),
)
def test_distinct_bytes_are_the_union(segments: list[tuple[int, int, int]], base: int) -> None:
    gid = np.array([s[0] for s in segments], np.int64)
    seq = np.array([(base + s[1]) % 2**32 for s in segments], np.uint32)
    length = np.array([s[2] for s in segments], np.int64)
    found = distinct_bytes(gid, seq, length, 4)
    for number in range(4):
        mine = [s for s in segments if s[0] == number]
        seen = {b for s in mine for b in range(s[1], s[1] + s[2])}
        assert found[number] == len(seen)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=80 * 30))
def test_noise_never_raises(data: bytes) -> None:
    records = np.frombuffer(data[: len(data) // PACKET_DTYPE.itemsize * PACKET_DTYPE.itemsize], PACKET_DTYPE).copy()
    records["protocol"] = 6
    packets = Packets(records=records, raw=np.zeros(0, np.uint8))
    flows, packet_flow = build_flows(packets, monotonic_ns(packets, ((0, 10), (5, 20))))
    assert (packet_flow < len(flows)).all()
    for flow in flows:
        describe_end(flow, 0)


def test_monotonic_times_follow_the_samples() -> None:
    real = 1_700_000_000_000_000_000
    wire = Wire()
    for _ in range(4):
        wire.say(0, "A")
    packets = wire.packets()
    packets.records["time_ns"] = [real - 5, real + 1_000_000_007, real + 1_500_000_000, real + 9_000_000_000]
    # The clocks drift apart by 1000 ns a second, over two seconds.
    samples = ((100, real), (100 + 2_000_000_000 - 2000, real + 2_000_000_000))
    assert monotonic_ns(packets, samples).tolist() == [
        95,
        100 + 1_000_000_007 - 1000,
        100 + 1_500_000_000 - 1500,
        100 + 9_000_000_000 - 2000,
    ]
    assert monotonic_ns(packets, samples[:1]).tolist()[1] == 100 + 1_000_000_007
    assert monotonic_ns(packets, ()).tolist() == packets.records["time_ns"].tolist()
