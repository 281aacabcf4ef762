"""What a connection's packets went through, in words and in facts."""

from __future__ import annotations

import pytest

from sockscope.analysis.narration.wire_words import WireTeller, mark_words, wire_words_all
from sockscope.model.sockaddr import Address
from sockscope.model.tcp import SegmentMark, TcpFlag
from tests.analysis.builders import Script

SERVER = Address.inet(bytes(10) + b"\xff\xff\x7f\0\0\1", 80)
CLIENT = Address.inet(bytes(10) + b"\xff\xff\x7f\0\0\1", 40000)
MS = 1_000_000
DATA = TcpFlag.PSH | TcpFlag.ACK


def talk() -> Script:
    """A request; both ends begin at byte 1001 and 5001, the session knows the server by its port."""
    script = Script(ports=(80,))
    script.handshake(CLIENT, SERVER, at=0)
    script.packet(CLIENT, SERVER, DATA, seq=1001, ack=5001, payload=b"ask", at=10 * MS)
    return script


def test_a_smooth_connection_needs_no_words() -> None:
    session = talk().session()
    assert wire_words_all(session) == [""]
    facts = WireTeller(session)(0)
    assert facts is not None
    assert facts.handshake_ns == 20_000
    assert (facts.one_sided, facts.began_before, facts.reset_by) == (False, False, "")
    assert not any(facts.local.counts.values())


def test_what_the_peer_did() -> None:
    script = talk()
    script.packet(CLIENT, SERVER, DATA, seq=1001, ack=5001, payload=b"ask", at=250 * MS)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1004, ack=5001, window=0, at=251 * MS)
    script.packet(SERVER, CLIENT, TcpFlag.RST, seq=5001, at=260 * MS)
    session = script.session()
    assert wire_words_all(session) == [
        "1 retransmission of the peer (1 after a timeout), 1 zero window of the peer; round trip 0.02 ms"
    ]
    facts = WireTeller(session)(0)
    assert facts is not None
    assert facts.peer.counts["retransmissions"] == facts.peer.counts["rtos"] == 1
    assert facts.reset_by == "local"


def test_without_packets_there_is_nothing() -> None:
    script = Script(ports=(80,))
    script.socket_row(SERVER, CLIENT)
    session = script.session()
    assert wire_words_all(session) == [""] * len(session.connections)
    assert all(WireTeller(session)(one.id) is None for one in session.connections)


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        (SegmentMark(0), ""),
        (SegmentMark.RETRANSMISSION, "retransmission"),
        (SegmentMark.RETRANSMISSION | SegmentMark.FAST_RETRANSMISSION, "retransmission (fast)"),
        (SegmentMark.ZERO_WINDOW | SegmentMark.WINDOW_FULL, "zero window, window full"),
    ],
)
def test_marks_in_words(mark: SegmentMark, words: str) -> None:
    assert mark_words(int(mark)) == words


def test_every_mark_has_a_word() -> None:
    kinds = SegmentMark.FAST_RETRANSMISSION | SegmentMark.SPURIOUS_RETRANSMISSION | SegmentMark.RTO
    for mark in SegmentMark:
        assert mark_words(int(mark)) or mark in kinds
