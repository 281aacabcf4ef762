"""Exchanges: runs of reads and writes, and when their bytes crossed the wire."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Section
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import START_NS, STEP_NS, Script, address

SERVER = address("10.0.0.1", 80)
CLIENT = address("10.0.0.9", 4000)
US = 1_000


def _server() -> Script:
    script = Script().process(100)
    script.seed_fd(100, 3, inode=11)
    script.snapshot(at=0)
    script.socket_row(SERVER, None, TcpState.LISTEN, inode=11, owners=[(100, 3)])
    return script


def _accept(script: Script, *, at: int | None = None, fd: int = 7, tid: int = 100) -> int:
    return script.event(100, tid, Call.accept4, fd=3, ret=fd, sockaddr=CLIENT, at=at)


def _times(session: Session, *names: str) -> list[list[int]]:
    return [(session.exchanges[name] - START_NS).tolist() for name in names]


def test_a_request_and_its_answer() -> None:
    script = _server()
    script.handshake(CLIENT, SERVER, at=100 * US)
    accepted = _accept(script, at=500 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"GET / HT", at=600 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1009, ack=5001, payload=b"TP/1.1\r\n", at=700 * US)
    first = script.event(100, 100, Call.recvfrom, fd=7, ret=8, at=800 * US)
    second = script.event(100, 100, Call.recvfrom, fd=7, ret=8, at=900 * US)
    wrote = script.event(100, 100, Call.sendto, fd=7, ret=30, at=1000 * US, took=50 * US)
    last = script.event(100, 100, Call.sendto, fd=7, ret=10, at=1100 * US, took=50 * US)
    script.packet(SERVER, CLIENT, TcpFlag.ACK, seq=5001, ack=1017, payload=b"x" * 30, at=1010 * US)
    script.packet(SERVER, CLIENT, TcpFlag.ACK, seq=5031, ack=1017, payload=b"x" * 10, at=1120 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1017, ack=5041, at=1200 * US)
    script.packet(SERVER, CLIENT, TcpFlag.FIN | TcpFlag.ACK, seq=5041, ack=1017, at=1300 * US)
    session = script.session()
    (one,) = session.exchanges
    assert (one["number"], one["answered"], one["tgid"], one["tid"]) == (0, 1, 100, 100)
    assert (one["read_bytes"], one["written_bytes"], one["read_count"], one["write_count"]) == (16, 40, 2, 2)
    events = [one[f"{name}_event"] for name in ("first_read", "last_read", "first_write", "last_write")]
    assert events == [first, second, wrote, last]
    names = (
        "syn_ns", "established_ns", "accept_ns", "arrived_ns", "arrived_whole_ns", "first_read_ns", "last_read_ns",
        "first_write_ns", "last_write_ns", "sent_ns", "acked_ns", "fin_ns",
    )  # fmt: skip
    expected = [100, 120, 501, 600, 700, 801, 901, 1000, 1150, 1120, 1200, 1300]
    assert [when // US for (when,) in _times(session, *names)] == expected
    assert session.connections[one["connection"]].opened_event == accepted


def test_keepalive_pipelining_and_what_the_server_says_first() -> None:
    script = _server()
    _accept(script)
    for call, ret in (
        (Call.write, 20),  # a greeting
        (Call.read, 5),
        (Call.read, 5),  # pipelined: read before anything is answered
        (Call.write, 9),
        (Call.read, -11),
        (Call.read, 3),
        (Call.read, 0),
    ):
        script.event(100, 100, call, fd=7, ret=ret)
    found = script.session().exchanges
    assert found["number"].tolist() == [0, 1, 2]
    assert found["read_count"].tolist() == [0, 2, 1]
    assert found["answered"].tolist() == [1, 1, 0]
    assert found["first_read_ns"].tolist()[0] == -1
    assert found["first_read_event"].tolist()[0] == -1
    assert found["last_write_event"].tolist()[2] == -1
    assert found["accept_ns"].tolist()[1:] == [-1, -1]


def test_peeking_and_what_never_returned_are_no_reads() -> None:
    script = _server()
    _accept(script)
    script.event(100, 100, Call.recvfrom, 0, 100, 2, fd=7, ret=5)
    script.event(100, 100, Call.recvmsg, 0, 2, fd=7, ret=5)
    script.event(100, 100, Call.recvfrom, 0, 100, 0, fd=7, ret=4)
    script.event(100, 100, Call.sendto, 0, 10, fd=7, ret=10, flags=EventFlag.ENTERED_ONLY)
    (one,) = script.session().exchanges
    assert (one["read_count"], one["read_bytes"], one["answered"]) == (1, 4, 0)


def test_sendfile_splice_and_many_messages_count() -> None:
    script = _server()
    _accept(script)
    script.seed_fd(100, 20, kind=FileKind.OTHER)
    script.seed_fd(100, 21, kind=FileKind.OTHER)
    lengths = np.array([7, 8], "<u4").tobytes()
    script.event(100, 100, Call.recvmmsg, 0, 2, fd=7, ret=2, sections=[(Section.MMSG_LENS, lengths)])
    script.event(100, 100, Call.splice, 0, 20, 0, 100, fd=7, ret=11)
    script.event(100, 100, Call.sendfile, 9, 0, 100, fd=7, ret=60)
    script.event(100, 100, Call.splice, 0, 7, 0, 100, fd=21, ret=40)
    (one,) = script.session().exchanges
    assert (one["read_bytes"], one["read_count"]) == (26, 2)
    assert (one["written_bytes"], one["write_count"]) == (100, 2)


def test_the_thread_that_answers_is_named() -> None:
    script = _server()
    script.thread(100, 101)
    _accept(script)
    script.event(100, 100, Call.read, fd=7, ret=5)
    script.event(100, 101, Call.write, fd=7, ret=5)
    (one,) = script.session().exchanges
    assert one["tid"] == 101


def test_retransmissions_and_reordering_do_not_move_bytes() -> None:
    script = _server()
    script.handshake(CLIENT, SERVER, at=0)
    _accept(script, at=100 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"a" * 10, at=200 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"a" * 10, at=300 * US)
    script.event(100, 100, Call.read, fd=7, ret=10, at=400 * US)
    script.event(100, 100, Call.write, fd=7, ret=4, at=500 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1021, ack=5005, payload=b"c" * 10, at=600 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1011, ack=5005, payload=b"b" * 10, at=700 * US)
    script.event(100, 100, Call.read, fd=7, ret=20, at=800 * US)
    session = script.session()
    arrived, whole, acked = _times(session, "arrived_ns", "arrived_whole_ns", "acked_ns")
    assert [when // US for when in arrived] == [200, 600]
    assert [when // US for when in whole] == [200, 600]
    assert acked[0] // US == 600


def test_sequence_numbers_wrap() -> None:
    script = _server()
    script.packet(CLIENT, SERVER, TcpFlag.SYN, seq=0xFFFFFFFA, at=0)
    script.packet(SERVER, CLIENT, TcpFlag.SYN | TcpFlag.ACK, seq=0xFFFFFFFE, ack=0xFFFFFFFB, at=10 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=0xFFFFFFFB, ack=0xFFFFFFFF, at=20 * US)
    _accept(script, at=30 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=0xFFFFFFFB, ack=0xFFFFFFFF, payload=b"a" * 10, at=40 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=5, ack=0xFFFFFFFF, payload=b"b" * 10, at=50 * US)
    script.event(100, 100, Call.read, fd=7, ret=20, at=60 * US)
    script.event(100, 100, Call.write, fd=7, ret=20, at=70 * US)
    script.packet(SERVER, CLIENT, TcpFlag.ACK, seq=0xFFFFFFFF, ack=15, payload=b"b" * 20, at=80 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=15, ack=19, at=90 * US)
    session = script.session()
    names = ("arrived_ns", "arrived_whole_ns", "sent_ns", "acked_ns")
    assert [when // US for (when,) in _times(session, *names)] == [40, 50, 80, 90]


@pytest.mark.parametrize("late", ["events lost", "kernel tls"])
def test_where_bytes_cannot_be_matched_nothing_is_said(late: str) -> None:
    script = _server()
    script.handshake(CLIENT, SERVER, at=0)
    _accept(script, at=100 * US)
    if late == "events lost":
        script.lost = {"ring full": 3}
    if late == "kernel tls":
        script.event(100, 100, Call.setsockopt, 6, 31, fd=7, at=150 * US)
    script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1001, ack=5001, payload=b"a" * 10, at=200 * US)
    script.event(100, 100, Call.read, fd=7, ret=10, at=400 * US)
    (one,) = script.session().exchanges
    assert one["arrived_ns"] == one["arrived_whole_ns"] == -1
    assert one["first_read_ns"] > 0


def _late(script: Script, *reads: tuple[int, int], arrivals: tuple[tuple[int, int], ...]) -> Session:
    """A connection that was there at the attach: (µs, bytes) of arrivals and reads, an answer after each read."""
    script.seed_fd(100, 7, inode=12)
    script.socket_row(SERVER, CLIENT, inode=12, cookie=5, owners=[(100, 7)])
    at_byte = 777_000
    for at, count in arrivals:
        script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=at_byte, ack=9_000, payload=b"a" * count, at=at * US)
        at_byte += count
    answer = 9_000
    for at, count in reads:
        script.event(100, 100, Call.read, fd=7, ret=count, at=at * US, took=US)
        script.event(100, 100, Call.write, fd=7, ret=4, at=(at + 10) * US, took=US)
        script.packet(SERVER, CLIENT, TcpFlag.ACK, seq=answer, ack=at_byte, payload=b"b" * 4, at=(at + 11) * US)
        answer += 4
        script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=at_byte, ack=answer, at=(at + 20) * US)
    return script.session()


def test_a_connection_that_was_there_before_is_matched_from_its_first_captured_byte() -> None:
    session = _late(_server(), (150, 10), (450, 20), arrivals=((100, 10), (300, 5), (400, 15), (900, 3)))
    arrived, whole, sent, acked = _times(session, "arrived_ns", "arrived_whole_ns", "sent_ns", "acked_ns")
    assert [when // US for when in arrived] == [100, 300]
    assert [when // US for when in whole] == [100, 400]
    assert [when // US for when in sent] == [161, 461]
    assert [when // US for when in acked] == [170, 470]


@pytest.mark.parametrize(
    ("reads", "arrivals"),
    [
        # Ten bytes lay unread at the attach: the captured ones are read later than it seems.
        (((150, 10), (450, 10)), ((300, 10), (400, 10))),
        # A request was captured, and read before the attach: ten bytes of the wire too many.
        (((450, 10), (650, 10)), ((100, 10), (400, 10), (600, 10))),
    ],
    ids=["some lay unread", "some were read before"],
)
def test_a_connection_that_was_there_before_and_does_not_add_up(
    reads: tuple[tuple[int, int], ...], arrivals: tuple[tuple[int, int], ...]
) -> None:
    session = _late(_server(), *reads, arrivals=arrivals)
    assert session.exchanges["arrived_ns"].tolist() == [-1, -1]
    assert session.exchanges["first_read_ns"].min() > 0


def test_the_kernel_tells_the_handshake_where_no_packets_are() -> None:
    script = _server()
    script.states(SERVER, CLIENT, TcpState.SYN_RECV, TcpState.ESTABLISHED, at=100 * US)
    _accept(script, at=500 * US)
    script.event(100, 100, Call.read, fd=7, ret=10, at=600 * US)
    script.states(SERVER, CLIENT, TcpState.ESTABLISHED, TcpState.FIN_WAIT1, at=800 * US)
    session = script.session()
    assert [w // US for (w,) in _times(session, "established_ns", "accept_ns", "fin_ns")] == [100, 501, 800]


def test_clients_and_listeners_have_none() -> None:
    script = Script().process(100)
    script.event(100, 100, Call.socket, 2, 1, ret=5)
    script.event(100, 100, Call.connect, 0, 16, fd=5, sockaddr=SERVER)
    script.event(100, 100, Call.write, fd=5, ret=5)
    script.event(100, 100, Call.read, fd=5, ret=5)
    session = script.session()
    assert len(session.connections) == 1
    assert not len(session.exchanges)


_moves = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([Call.read, Call.write, Call.recvfrom, Call.sendmsg]),
              st.integers(-1, 400), st.integers(0, 3)),
    max_size=40,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(moves=_moves)
def test_bytes_add_up_and_times_are_ordered(moves: list[tuple[int, Call, int, int]]) -> None:
    """Whatever is read and written: sums equal the connections' totals, and time goes forward."""
    script = _server()
    clients = [address("10.0.0.9", 4000 + number) for number in range(3)]
    for number, client in enumerate(clients):
        script.handshake(client, SERVER)
        script.event(100, 100, Call.accept4, fd=3, ret=7 + number, sockaddr=client)
    sent, received = [0] * 3, [0] * 3
    for which, call, ret, repeats in moves:
        client, fd = clients[which], 7 + which
        reads = call in (Call.read, Call.recvfrom)
        if ret > 0 and reads:
            for _ in range(1 + repeats):
                script.packet(
                    client, SERVER, TcpFlag.ACK, seq=1001 + sent[which], ack=5001 + received[which], payload=b"x" * ret
                )
            sent[which] += ret
        script.event(100, 100, call, fd=fd, ret=ret)
        if ret > 0 and not reads:
            script.packet(
                SERVER, client, TcpFlag.ACK, seq=5001 + received[which], ack=1001 + sent[which], payload=b"y" * ret
            )
            received[which] += ret
            script.packet(client, SERVER, TcpFlag.ACK, seq=1001 + sent[which], ack=5001 + received[which])
    session = script.session()
    found = session.exchanges
    for one in session.connections:
        mine = found[found["connection"] == one.id]
        assert int(mine["read_bytes"].sum()) == one.read_bytes
        assert int(mine["written_bytes"].sum()) == one.written_bytes
        assert mine["number"].tolist() == list(range(len(mine)))
        # All but the first begin with a read, all but the last end with a write.
        assert (mine["read_count"][1:] > 0).all()
        assert (mine["write_count"][:-1] > 0).all()
    orders = (
        ("syn_ns", "established_ns", "accept_ns", "arrived_ns", "first_read_ns", "last_read_ns", "first_write_ns"),
        # A request may be read in pieces as they arrive.
        ("arrived_ns", "arrived_whole_ns", "last_read_ns", "first_write_ns", "last_write_ns", "sent_ns", "acked_ns"),
    )
    for row in found:
        for names in orders:
            known = [int(row[name]) for name in names if row[name] >= 0]
            assert known == sorted(known)
        assert (row["arrived_ns"] >= 0) == (row["read_count"] > 0)
        assert (row["acked_ns"] >= 0) == (row["write_count"] > 0)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 99), max_size=12, unique=True),
    reads=st.lists(st.integers(1, 99), max_size=6, unique=True),
)
def test_every_byte_is_found_at_its_first_arrival(cuts: list[int], reads: list[int]) -> None:
    """However 100 bytes are cut into segments and reads: an exchange arrives with the segments that bring its ends."""
    script = _server()
    script.handshake(CLIENT, SERVER, at=0)
    _accept(script, at=100 * US)
    edges = [0, *sorted(cuts), 100]
    arrived = np.zeros(100, np.int64)
    for number, (low, high) in enumerate(pairwise(edges)):
        at = (200 + number) * US
        script.packet(CLIENT, SERVER, TcpFlag.ACK, seq=1001 + low, ack=5001, payload=b"x" * (high - low), at=at)
        arrived[low:high] = at
    bounds = [0, *sorted(reads), 100]
    for low, high in pairwise(bounds):
        script.event(100, 100, Call.read, fd=7, ret=high - low, at=script.now_ns + STEP_NS)
        script.event(100, 100, Call.write, fd=7, ret=1)
    session = script.session()
    starts, ends = _times(session, "arrived_ns", "arrived_whole_ns")
    assert starts == [int(arrived[low]) for low in bounds[:-1]]
    assert ends == [int(arrived[high - 1]) for high in bounds[1:]]
