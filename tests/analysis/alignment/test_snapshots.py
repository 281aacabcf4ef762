"""Snapshots by another clock, or at guessed times, laid beside packets and calls."""

from __future__ import annotations

import numpy as np
import pytest

from sockscope.analysis.alignment.clocks import Clocks, Strand
from sockscope.analysis.build import build_session
from sockscope.analysis.session import Session
from sockscope.model.packets import Packets
from sockscope.model.sockets import Sockets
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.alignment.evidence import DATA, SECOND, A, Evidence
from tests.analysis.builders import Script, address

CLIENT, OTHER, SERVER = address("10.0.0.9", 4000), address("10.0.0.9", 4002), address("10.0.0.1", 80)


def capture() -> Script:
    """Handshake at 1 s, 100 bytes at 2 s and at 5 s, the client's FIN at 8 s, ours at 9 s; another one from 4 s on."""
    script = Script(ports=(80,), engine="")
    script.handshake(CLIENT, SERVER, at=SECOND)
    script.packet(CLIENT, SERVER, DATA, seq=1001, ack=5001, payload=bytes(100), at=2 * SECOND)
    script.handshake(OTHER, SERVER, at=4 * SECOND)
    script.packet(CLIENT, SERVER, DATA, seq=1101, ack=5001, payload=bytes(100), at=5 * SECOND)
    script.packet(CLIENT, SERVER, TcpFlag.FIN | TcpFlag.ACK, seq=1201, ack=5001, at=8 * SECOND)
    script.packet(SERVER, CLIENT, TcpFlag.FIN | TcpFlag.ACK, seq=5001, ack=1202, at=9 * SECOND)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1202, ack=5002, at=9 * SECOND + 1000)
    return script.ends(10 * SECOND)


def session_of(script: Script, ahead_ns: int, *, guessed: bool = False, packets: Packets | None = None) -> Session:
    sockets = script.sockets()
    records = sockets.records.copy()
    records["time_ns"] += ahead_ns
    sockets = Sockets(records=records, owners=sockets.owners)
    return build_session(
        info=script.info(),
        seed=script.seed(),
        events=script.events(),
        packets=script.packets() if packets is None else packets,
        sockets=sockets,
        clocks=Clocks.foreign(sockets=sockets, guessed=guessed),
    )


@pytest.mark.parametrize(
    ("state", "counter", "first", "last"),
    [
        (TcpState.ESTABLISHED, None, 1, 8),
        (TcpState.ESTABLISHED, 0, 1, 2),
        (TcpState.ESTABLISHED, 100, 2, 5),
        (TcpState.ESTABLISHED, 200, 5, 8),
        (TcpState.CLOSE_WAIT, 201, 8, 9),
        (TcpState.TIME_WAIT, None, 9, 69),
    ],
)
def test_a_row_tells_when_it_was_true(state: TcpState, counter: int | None, first: int, last: int) -> None:
    script = capture()
    script.snapshot(at=0)
    script.socket_row(SERVER, CLIENT, state, has_info=int(counter is not None), bytes_received=counter or 0)
    (found,) = session_of(script, 3600 * SECOND, guessed=True).info.alignments
    middle = (first + last) / 2 - 3600
    assert found.offset_ns == pytest.approx(middle * SECOND, abs=2_000_000)
    assert found.uncertainty_ns == pytest.approx((last - first) / 2 * SECOND, abs=2_000_000)
    assert found.basis == "1 of 1 socket states"


@pytest.mark.parametrize("ahead_ns", [-400 * 86_400 * SECOND, -3 * SECOND, 3600 * SECOND])
def test_several_snapshots_of_one_clock(ahead_ns: int) -> None:
    script = capture()
    for at, state in ((3, TcpState.ESTABLISHED), (6, TcpState.ESTABLISHED), (8.5, TcpState.CLOSE_WAIT)):
        script.snapshot(at=int(at * SECOND))
        script.socket_row(SERVER, CLIENT, state, has_info=1, bytes_received={3: 100, 6: 200, 8.5: 201}[at])
    session = session_of(script, ahead_ns)
    (found,) = session.info.alignments
    assert abs(found.offset_ns + ahead_ns) <= found.uncertainty_ns <= 1_010_000_000
    assert session.connections[0].state is TcpState.CLOSE_WAIT
    assert (session.socket_connection == 0).all()


def test_what_fits_stays() -> None:
    script = capture()
    script.snapshot(at=3 * SECOND)
    script.socket_row(SERVER, CLIENT, TcpState.ESTABLISHED)
    (found,) = session_of(script, 100_000_000).info.alignments
    assert found.offset_ns == 0
    assert found.uncertainty_ns == pytest.approx(4_900_000_000, abs=2_000_000)


def test_each_snapshot_at_a_guess() -> None:
    script = capture()
    for state in (TcpState.CLOSE_WAIT, TcpState.ESTABLISHED):
        script.snapshot(at=0)
        script.socket_row(SERVER, CLIENT, state)
        script.socket_row(SERVER, OTHER, TcpState.ESTABLISHED)
    sockets = script.sockets()
    session = build_session(
        info=script.info(),
        seed=script.seed(),
        events=script.events(),
        packets=script.packets(),
        sockets=sockets,
        clocks=Clocks(
            sockets=(Strand(source="one", start=0, stop=2), Strand(source="two", start=2, stop=4)), guessed=True
        ),
    )
    # Both there, and the first in CLOSE-WAIT: 8 s to 9 s; both in ESTAB: 4 s to 8 s.
    times = (session.sockets.records["time_ns"] - session.info.started_ns) / SECOND
    assert times.tolist() == pytest.approx([8.5, 8.5, 6, 6], abs=0.002)
    assert [one.source for one in session.info.alignments] == ["one", "two"]


def test_beside_a_log_alone() -> None:
    """What was open had not been closed yet, what is in TIME-WAIT had."""
    made = Evidence().connections(2)
    closes = made.script.events().records["enter_ns"][np.flatnonzero(made.script.events().records["args"][:, 0] >= 7)]
    gone, there = address("10.0.0.9", 20_000), address("10.0.0.9", 20_001)
    made.script.snapshot(at=0)
    made.script.socket_row(SERVER, gone, TcpState.TIME_WAIT)
    made.script.socket_row(SERVER, there, TcpState.ESTABLISHED, inode=5, owners=[(A, 8)])
    session = session_of(made.script, 77 * SECOND, packets=Packets.empty(), guessed=True)
    (found,) = session.info.alignments
    assert found.uncertainty_ns > 0
    assert closes.min() < session.sockets.records["time_ns"][0] < closes.max()


def test_nothing_in_common() -> None:
    script = capture()
    script.snapshot(at=0)
    script.socket_row(SERVER, address("10.0.0.7", 1), TcpState.ESTABLISHED)
    session = session_of(script, SECOND)
    assert session.info.alignments[0].uncertainty_ns == -1
    assert session.info.alignments[0].offset_ns == 0
    assert session.info.notes


def test_rows_that_contradict_each_other() -> None:
    script = capture()
    script.snapshot(at=0)
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT)
    script.snapshot(at=SECOND)
    script.socket_row(SERVER, CLIENT, TcpState.ESTABLISHED)
    assert session_of(script, 0).info.alignments[0].uncertainty_ns == -1
