"""Packets and the syscalls whose bytes they carry."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.analysis.joining.packet_events import packet_events
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import Script, address

SERVER, CLIENT = address("10.0.0.1", 80), address("10.0.0.9", 4000)
DATA = TcpFlag.PSH | TcpFlag.ACK
FIN = TcpFlag.FIN | TcpFlag.ACK


def told(session: Session) -> list[int]:
    """The event of each packet; the server's side is the target's."""
    connection = np.where(session.packet_flow >= 0, 0, -1).astype(np.int32)
    local = session.packets.records["sport"] == SERVER.port
    found: list[int] = packet_events(session, connection, local).tolist()
    return found


def listen(script: Script) -> None:
    script.process(100)
    script.seed_fd(100, 3, inode=11)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=11, owners=[(100, 3)])


def accepted(script: Script) -> int:
    listen(script)
    script.handshake(CLIENT, SERVER)
    return script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)


class TestBytes:
    def test_request_and_answer(self) -> None:
        script = Script()
        accept = accepted(script)
        script.packet(CLIENT, SERVER, DATA, seq=1001, payload=b"GET /")
        read = script.event(100, 100, Call.recvfrom, fd=7, ret=5)
        write = script.event(100, 100, Call.sendto, fd=7, ret=4)
        script.packet(SERVER, CLIENT, DATA, seq=5001, payload=b"body")
        assert told(script.session()) == [accept, -1, -1, read, write]

    def test_a_segment_sent_again_belongs_to_its_write(self) -> None:
        script = Script()
        accepted(script)
        first = script.event(100, 100, Call.sendto, fd=7, ret=4)
        script.packet(SERVER, CLIENT, DATA, seq=5001, payload=b"head")
        second = script.event(100, 100, Call.sendto, fd=7, ret=4)
        script.packet(SERVER, CLIENT, DATA, seq=5005, payload=b"body")
        script.packet(SERVER, CLIENT, DATA, seq=5001, payload=b"head")
        assert told(script.session())[3:] == [first, second, first]

    def test_a_segment_of_two_writes_belongs_to_the_first(self) -> None:
        script = Script()
        accepted(script)
        first = script.event(100, 100, Call.sendto, fd=7, ret=4)
        script.event(100, 100, Call.sendto, fd=7, ret=4)
        script.packet(SERVER, CLIENT, DATA, seq=5001, payload=b"headbody")
        assert told(script.session())[3:] == [first]

    def test_one_write_in_many_segments(self) -> None:
        script = Script()
        accepted(script)
        write = script.event(100, 100, Call.sendto, fd=7, ret=12)
        for at in (5001, 5005, 5009):
            script.packet(SERVER, CLIENT, DATA, seq=at, payload=b"data")
        assert told(script.session())[3:] == [write] * 3

    def test_sequence_numbers_wrap(self) -> None:
        script = Script()
        listen(script)
        script.packet(CLIENT, SERVER, TcpFlag.SYN, seq=2**32 - 3)
        script.packet(SERVER, CLIENT, TcpFlag.SYN | TcpFlag.ACK, seq=5000, ack=2**32 - 2)
        script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=2**32 - 2, ack=5001)
        script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
        script.packet(CLIENT, SERVER, DATA, seq=2**32 - 2, payload=b"1234")
        script.packet(CLIENT, SERVER, DATA, seq=2, payload=b"5678")
        first = script.event(100, 100, Call.recvfrom, fd=7, ret=4)
        second = script.event(100, 100, Call.recvfrom, fd=7, ret=4)
        assert told(script.session())[3:] == [first, second]

    def test_what_nobody_has_read_belongs_to_nobody(self) -> None:
        script = Script()
        accepted(script)
        script.packet(CLIENT, SERVER, DATA, seq=1001, payload=b"GET /")
        assert told(script.session())[3:] == [-1]

    def test_a_peek_takes_nothing(self) -> None:
        script = Script()
        accepted(script)
        script.packet(CLIENT, SERVER, DATA, seq=1001, payload=b"GET /")
        script.event(100, 100, Call.recvfrom, 0, 5, 2, fd=7, ret=5)
        read = script.event(100, 100, Call.recvfrom, 0, 5, 0, fd=7, ret=5)
        assert told(script.session())[3:] == [read]

    def test_lost_events_leave_the_bytes_untold(self) -> None:
        script = Script(lost={"ring": 1})
        accept = accepted(script)
        script.packet(CLIENT, SERVER, DATA, seq=1001, payload=b"GET /")
        script.event(100, 100, Call.recvfrom, fd=7, ret=5)
        assert told(script.session()) == [accept, -1, -1, -1]

    def test_kernel_tls_counts_other_bytes(self) -> None:
        script = Script()
        accepted(script)
        script.event(100, 100, Call.setsockopt, 6, 31, fd=7, ret=0)
        script.event(100, 100, Call.sendto, fd=7, ret=4)
        script.packet(SERVER, CLIENT, DATA, seq=5001, payload=b"cryptext")
        assert told(script.session())[3:] == [-1]


class TestLate:
    def late(self) -> Script:
        script = Script()
        script.process(100)
        script.seed_fd(100, 7, inode=12)
        script.snapshot(at=0)
        script.socket_row(SERVER, CLIENT, inode=12, owners=[(100, 7)])
        return script

    def test_first_byte_captured_is_the_first_one_moved(self) -> None:
        script = self.late()
        script.packet(CLIENT, SERVER, DATA, seq=77, payload=b"GET /")
        read = script.event(100, 100, Call.recvfrom, fd=7, ret=5)
        write = script.event(100, 100, Call.sendto, fd=7, ret=4)
        script.packet(SERVER, CLIENT, DATA, seq=900, payload=b"body")
        assert told(script.session()) == [read, write]

    def test_where_that_cannot_be_nothing_is_said(self) -> None:
        script = self.late()
        script.event(100, 100, Call.recvfrom, fd=7, ret=9)
        script.packet(CLIENT, SERVER, DATA, seq=77, payload=b"GET /", at=50_000_000)
        script.packet(SERVER, CLIENT, DATA, seq=900, payload=b"late")
        assert told(script.session()) == [-1, -1]


class TestEnds:
    def test_fin_of_the_target_is_its_close(self) -> None:
        script = Script()
        accepted(script)
        close = script.event(100, 100, Call.close, fd=7, ret=0)
        script.packet(SERVER, CLIENT, FIN, seq=5001)
        assert told(script.session())[3:] == [close]

    def test_fin_of_the_peer_is_the_read_of_nothing(self) -> None:
        script = Script()
        accepted(script)
        script.packet(CLIENT, SERVER, FIN, seq=1001)
        read = script.event(100, 100, Call.recvfrom, 0, 1024, fd=7, ret=0)
        assert told(script.session())[3:] == [read]

    def test_a_fin_nobody_closed_for(self) -> None:
        script = Script()
        accepted(script)
        script.packet(SERVER, CLIENT, FIN, seq=5001)
        assert told(script.session())[3:] == [-1]


@given(
    writes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=30),
    start=st.integers(0, 2**32 - 1),
)
def test_segments_cut_anywhere_belong_to_the_write_of_their_first_byte(
    writes: list[int], cuts: list[int], start: int
) -> None:
    script = Script()
    listen(script)
    script.packet(CLIENT, SERVER, TcpFlag.SYN, seq=1000)
    script.packet(SERVER, CLIENT, TcpFlag.SYN | TcpFlag.ACK, seq=start - 1, ack=1001)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1001, ack=start)
    script.event(100, 100, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    owner: list[int] = []
    for size in writes:
        owner += [script.event(100, 100, Call.sendto, fd=7, ret=size)] * size
    expected, at = [], 0
    for size in cuts:
        size = min(size, len(owner) - at)
        if size:
            script.packet(SERVER, CLIENT, DATA, seq=start + at, payload=bytes(size))
            expected.append(owner[at])
            at += size
    assert told(script.session())[3:] == expected
