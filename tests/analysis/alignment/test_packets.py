"""A capture by another clock, laid beside a log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.alignment.clocks import Clocks
from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.model.events import Events
from sockscope.model.info import Alignment
from sockscope.model.packets import Packets
from sockscope.model.sockets import Sockets
from tests.analysis.alignment.evidence import SECOND, Evidence
from tests.analysis.builders import Script

DAY = 86_400 * SECOND


def alignment(session: Session) -> Alignment:
    (found,) = session.info.alignments
    return found


def joined(session: Session) -> int:
    """Connections that have both calls and packets."""
    return sum(one.flow >= 0 and one.open_file >= 0 for one in session.connections)


def holds(session: Session, ahead_ns: int) -> bool:
    """The truth lies within what was said."""
    found = alignment(session)
    return found.uncertainty_ns >= 0 and abs(found.offset_ns + ahead_ns) <= found.uncertainty_ns


@pytest.mark.parametrize(
    "ahead_ns", [700_000, -400_000, 3_700_000_000, -3_700_000_000, 5 * 3600 * SECOND, 400 * DAY, -400 * DAY]
)
@pytest.mark.parametrize("count", [1, 7, 60])
def test_the_offset_is_found_within_its_uncertainty(ahead_ns: int, count: int) -> None:
    session = Evidence(seed=count).connections(count).session(ahead_ns)
    assert holds(session, ahead_ns)
    assert alignment(session).uncertainty_ns < 300_000
    assert joined(session) == count
    assert session.info.clock_skew_ns == 0
    assert not session.info.notes


@pytest.mark.parametrize("ahead_ns", [0, 500, -500])
def test_one_clock_stays_one(ahead_ns: int) -> None:
    session = Evidence().connections(40).session(ahead_ns)
    assert alignment(session).offset_ns == 0
    assert 0 < alignment(session).uncertainty_ns < 100_000


def test_it_says_what_it_rests_on() -> None:
    session = Evidence().connections(1100, requests=1).session(SECOND)
    assert alignment(session).basis == "1,100 handshakes, 2,200 transfers and 1,100 closes"


@pytest.mark.parametrize("ports", [100, 5])
def test_ports_used_again(ports: int) -> None:
    session = Evidence(ports=ports, spacing_ns=20_000_000).connections(1000).session(3_700_000_000)
    assert holds(session, 3_700_000_000)
    assert joined(session) == 1000


def test_accepts_that_asked_for_no_address() -> None:
    session = Evidence(addresses=False).connections(200).session(-5 * 3600 * SECOND)
    assert holds(session, -5 * 3600 * SECOND)
    assert joined(session) == 200


def test_half_of_the_connections_missing_in_either() -> None:
    made = Evidence(ports=50, spacing_ns=30_000_000)
    for number in range(600):
        made.connection(number, logged=number % 3 != 0, captured=number % 5 > 1)
    session = made.session(3_700_000_000)
    assert holds(session, 3_700_000_000)


def test_drift() -> None:
    made = Evidence(spacing_ns=SECOND).connections(300)
    truth = made.session().packet_ns
    session = made.session(5 * 3600 * SECOND, ppm=50)
    assert "50.0 ppm" in alignment(session).basis
    assert np.abs(session.packet_ns - truth).max() <= alignment(session).uncertainty_ns < 200_000
    assert joined(session) == 300


def test_drift_the_other_way_over_ports_used_again() -> None:
    made = Evidence(spacing_ns=300_000_000, ports=30).connections(600)
    truth = made.session().packet_ns
    session = made.session(-7 * SECOND, ppm=-20)
    assert np.abs(session.packet_ns - truth).max() <= alignment(session).uncertainty_ns < 200_000


def test_one_wrong_pair() -> None:
    """A connection in the log, and at another time another one of its addresses in the capture."""
    made = Evidence(seed=3).connections(20)
    made.connection(500, captured=False)
    made._at += 7_000_000
    made.connection(500, logged=False)
    made.connections(20, first=30)
    session = made.session(11 * SECOND)
    assert holds(session, 11 * SECOND)


def test_connections_from_before_both() -> None:
    made = Evidence(seed=5)
    for number in range(3):
        made.connection(number, known=False, ended=False, requests=40)
    session = made.session(3_700_000_000)
    assert holds(session, 3_700_000_000)
    assert alignment(session).uncertainty_ns < 300_000


def test_old_connections_beside_new_ones() -> None:
    made = Evidence(seed=5)
    for number in range(12):
        made.connection(number, known=number % 2 == 0, requests=5)
    assert holds(made.session(3_700_000_000), 3_700_000_000)


def test_a_capture_of_one_direction() -> None:
    made = Evidence(seed=6)
    for number in range(60):
        made.connection(number, one_sided=True)
    session = made.session(3_700_000_000)
    assert holds(session, 3_700_000_000)


def test_times_of_microseconds() -> None:
    made = Evidence(seed=7).connections(50)
    packets = made.packets(3_700_000_000)
    packets.records["time_ns"] //= 1000
    packets.records["time_ns"] *= 1000
    assert holds(made.session(packets=packets), 3_700_000_000)


def test_a_log_of_whole_seconds() -> None:
    session = Evidence(spacing_ns=100_000_000).connections(100).session(3_700_000_000, resolution_ns=SECOND)
    assert holds(session, 3_700_000_000)
    assert alignment(session).uncertainty_ns <= 2 * SECOND
    assert "ms only" in session.info.notes[0]
    assert joined(session) == 100


def test_a_log_without_times_is_joined_by_addresses_and_order() -> None:
    session = Evidence(ports=20).connections(60).session(3_700_000_000, resolution_ns=0)
    assert alignment(session).uncertainty_ns == -1
    assert session.info.apart_ns is None
    assert "no times" in session.info.notes[0]
    assert joined(session) == 60
    for one in session.connections:
        assert sum(session.flows[one.flow].payload_bytes) == one.read_bytes + one.written_bytes


def unrelated(seed: int, spacing_ns: int) -> Session:
    """The log of one day, the capture of another: the same server and clients, other connections."""
    log = Evidence(seed=seed, spacing_ns=spacing_ns).connections(80)
    capture = Evidence(seed=seed + 1000, spacing_ns=spacing_ns).connections(80, first=40)
    return log.session(packets=capture.packets(17 * SECOND))


@pytest.mark.parametrize("seed", range(12))
def test_unrelated_evidence_is_told_side_by_side(seed: int) -> None:
    session = unrelated(seed, spacing_ns=50_000_000)
    assert alignment(session).uncertainty_ns == -1
    assert alignment(session).offset_ns == 0
    assert any("side by side" in note for note in session.info.notes)


def test_nothing_in_common() -> None:
    log = Evidence().connections(20)
    capture = Evidence().connections(20, first=5_000)
    assert alignment(log.session(packets=capture.packets())).uncertainty_ns == -1


@pytest.mark.parametrize("empty", ["packets", "events"])
def test_nothing_at_all(empty: str) -> None:
    made = Evidence().connections(5 if empty == "packets" else 0)
    packets = Packets.empty() if empty == "packets" else Evidence().connections(5).packets()
    session = made.session(packets=packets)
    assert all(one.uncertainty_ns == -1 for one in session.info.alignments)


def test_a_capture_alone_has_the_sessions_clock() -> None:
    made = Evidence(script=Script(ports=(80,), engine=""))
    packets = Evidence().connections(5).packets(3 * SECOND)
    session = build_session(
        info=made.script.info(),
        seed=made.script.seed(),
        events=Events.empty(),
        packets=packets,
        sockets=Sockets.empty(),
        clocks=Clocks.foreign(packets=packets),
    )
    assert session.info.alignments == ()
    assert session.info.notes == ()
    assert len(session.connections) == 5


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 30),
    requests=st.integers(0, 4),
    ports=st.sampled_from([3, 20, 20_000]),
    addresses=st.booleans(),
    ahead_ns=st.integers(-(10**17), 10**17),
)
def test_the_truth_lies_within(
    seed: int, count: int, requests: int, ports: int, addresses: bool, ahead_ns: int
) -> None:
    made = Evidence(seed=seed, ports=ports, addresses=addresses, spacing_ns=30_000_000)
    session = made.connections(count, requests=requests).session(ahead_ns)
    if addresses:
        assert holds(session, ahead_ns)
    else:
        assert alignment(session).uncertainty_ns == -1 or holds(session, ahead_ns)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), more_ns=st.integers(10**8, 10**15))
def test_what_shifts_the_table_shifts_the_result(seed: int, more_ns: int) -> None:
    made = Evidence(seed=seed).connections(12)
    one, other = alignment(made.session(SECOND)), alignment(made.session(SECOND + more_ns))
    assert other == replace(one, offset_ns=one.offset_ns - more_ns)
