"""Kernel events find the connection whose socket they are about, and disturb nobody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.analysis.build import build_session
from sockscope.analysis.joining.kernel_events import decode_kernel_events, pair_key
from sockscope.analysis.narration.describe import describe, words
from sockscope.analysis.narration.idle import idle_words
from sockscope.analysis.narration.kernel_story import Stories, Told, coverage, event_words
from sockscope.analysis.session import Session
from sockscope.model.calls import KERNEL_EVENTS, Call
from sockscope.model.events import Events, Unassigned
from sockscope.model.report import Lane
from sockscope.model.sockaddr import Address, from_key
from sockscope.model.tcp import TcpState
from tests.analysis.builders import START_NS, Script, address
from tests.analysis.narration.told import timeline

S = TcpState
SERVER = address("127.0.0.1", 80)
CLIENT = address("127.0.0.1", 40112)
OTHER = address("127.0.0.1", 40113)
MS = 1_000_000
WHOLE_LIFE = (S.LISTEN, S.SYN_RECV, S.ESTABLISHED, S.CLOSE_WAIT, S.LAST_ACK, S.CLOSE)
CLIENT_LIFE = (S.SYN_SENT, S.ESTABLISHED, S.FIN_WAIT1, S.FIN_WAIT2, S.CLOSE)


def server(ports: tuple[int, ...] = (80,)) -> Script:
    script = Script(ports=ports).process(100)
    script.event(100, 100, Call.socket, 2, 1, ret=3, at=0)
    script.event(100, 100, Call.bind, fd=3, sockaddr=SERVER, at=1000)
    script.event(100, 100, Call.listen, 5, fd=3, at=2000)
    return script


def serve(script: Script, peer: Address, *, at: int, fd: int = 7, until: int = 0) -> None:
    script.event(100, 100, Call.accept4, fd=3, ret=fd, sockaddr=peer, at=at)
    script.event(100, 100, Call.recvfrom, 0, 100, fd=fd, ret=10, at=at + 100_000)
    if until:
        script.event(100, 100, Call.close, fd=fd, at=until)


def states_of(session: Session, connection: int) -> list[TcpState]:
    changes = Stories(session)(connection).state_changes
    return [*(change.before for change in changes[:1]), *(change.after for change in changes)]


def test_both_ends_of_loopback_are_told_and_the_servers_is_taken() -> None:
    script = server()
    script.states(SERVER, CLIENT, *WHOLE_LIFE, at=10 * MS)
    script.states(CLIENT, SERVER, *CLIENT_LIFE, at=9 * MS)
    serve(script, CLIENT, at=13 * MS, until=40 * MS)
    session = script.session()
    (connection,) = session.connections
    assert states_of(session, connection.id) == list(WHOLE_LIFE)
    assert coverage(session).state_change_count == 9
    assert coverage(session).unassigned_count == 4


def test_a_port_used_again_is_another_connection() -> None:
    script = server()
    for turn in range(3):
        script.states(SERVER, CLIENT, *WHOLE_LIFE[1:], at=(10 + 100 * turn) * MS)
        serve(script, CLIENT, at=(11 + 100 * turn) * MS, until=(50 + 100 * turn) * MS)
    session = script.session()
    assert len(session.connections) == 3
    for turn, connection in enumerate(session.connections):
        rows = session.kernel_of(connection.id)
        assert len(rows) == 4
        assert int(session.kernel["time_ns"][rows[0]]) == START_NS + (10 + 100 * turn) * MS


def test_the_cookie_decides_and_brings_the_rest_of_its_life_along() -> None:
    script = server()
    # The kernel had not given it a number when its first change was told.
    script.kernel(Call.sock_state, SERVER, CLIENT, S.SYN_RECV, S.ESTABLISHED, at=10 * MS)
    script.kernel(Call.sock_state, SERVER, CLIENT, S.ESTABLISHED, S.CLOSE_WAIT, cookie=77, at=20 * MS)
    serve(script, CLIENT, at=11 * MS)
    script.snapshot(at=15 * MS)
    script.socket_row(SERVER, CLIENT, inode=5, cookie=77, owners=[(100, 7)])
    session = script.session()
    assert states_of(session, 0) == [S.SYN_RECV, S.ESTABLISHED, S.CLOSE_WAIT]


def test_a_connect_is_known_by_its_cookie_before_it_has_a_port() -> None:
    script = Script().process(100)
    there = address("10.0.0.9", 5432)
    here = address("10.0.0.1", 50000)
    script.event(100, 100, Call.socket, 2, 1, ret=4, at=0)
    script.kernel(Call.sock_state, address("0.0.0.0", 0), there, S.CLOSE, S.SYN_SENT, cookie=9, at=MS)
    script.event(100, 100, Call.connect, fd=4, sockaddr=there, at=MS // 2, took=2 * MS)
    script.kernel(Call.sock_state, here, there, S.SYN_SENT, S.ESTABLISHED, cookie=9, at=2 * MS)
    script.snapshot(at=5 * MS)
    script.socket_row(here, there, inode=6, owners=[(100, 4)])
    session = script.session()
    assert states_of(session, 0) == [S.CLOSE, S.SYN_SENT, S.ESTABLISHED]


def test_a_listener_on_any_address_and_addresses_of_version_six() -> None:
    script = Script(ports=(80,)).process(100)
    near, far = address("2001:db8::1", 80), address("2001:db8::9", 4000)
    script.event(100, 100, Call.socket, 10, 1, ret=3, at=0)
    script.event(100, 100, Call.bind, fd=3, sockaddr=address("::", 80), at=1000)
    script.event(100, 100, Call.listen, 5, fd=3, at=2000)
    serve(script, far, at=20 * MS)
    serve(script, address("10.0.0.9", 4000), at=21 * MS, fd=8)
    script.states(near, far, S.SYN_RECV, S.ESTABLISHED, at=10 * MS)
    script.states(address("10.0.0.1", 80), address("10.0.0.9", 4000), S.SYN_RECV, S.ESTABLISHED, at=11 * MS)
    session = script.session()
    assert [len(session.kernel_of(c.id)) for c in session.connections] == [1, 1]


def test_nobody_is_disturbed() -> None:
    """The same facts with and without what the kernel told: the same session, but for what it told."""

    def facts(script: Script) -> tuple[object, ...]:
        session = script.session()
        return (
            sorted(session.processes),
            [(c.local, c.peer, c.first_ns, c.read_bytes, c.state, c.owners) for c in session.connections],
            [(d.fd, d.opened_ns, d.closed_ns) for d in session.descriptors],
            idle_words(session),
            [t.tgids for t in session.tables],
            len(session.order),
        )

    plain, told = server(), server()
    for script in (plain, told):
        serve(script, CLIENT, at=13 * MS, until=40 * MS)
        script.ends(100 * MS)
    told.states(SERVER, CLIENT, *WHOLE_LIFE, at=10 * MS)
    told.kernel(Call.tcp_retransmit, SERVER, CLIENT, S.ESTABLISHED, at=11 * MS)
    assert facts(plain) == facts(told)
    session = told.session()
    assert set(session.event_reason[session.kernel["event"]].tolist()) == {Unassigned.KERNEL_EVENT}
    assert not len(session.events_of_tid(0))
    assert not len(session.events_of_tgid(0))


def test_what_snapshots_show_and_what_the_kernel_told_agree() -> None:
    script = server()
    serve(script, CLIENT, at=13 * MS)
    script.states(SERVER, CLIENT, S.SYN_RECV, S.ESTABLISHED, S.CLOSE_WAIT, at=10 * MS, step=50 * MS)
    for at, state in ((30 * MS, S.ESTABLISHED), (90 * MS, S.CLOSE_WAIT)):
        script.snapshot(at=at)
        script.socket_row(SERVER, CLIENT, state, inode=5, cookie=1, owners=[(100, 7)])
    session = script.session()
    rows = session.sockets.records[session.samples_of(0)]
    told, first = Told(session, np.array([0])), np.zeros(len(rows), np.int64)
    assert told.at(first, rows["time_ns"].astype(np.int64)).tolist() == rows["state"].tolist()
    assert told.at(first[:1], np.array([START_NS], np.int64)).tolist() == [S.UNKNOWN]


def test_the_timeline_tells_exact_changes_in_words_and_leaves_out_what_snapshots_repeat() -> None:
    script = server()
    serve(script, CLIENT, at=13 * MS)
    script.states(SERVER, CLIENT, S.SYN_RECV, S.ESTABLISHED, S.CLOSE_WAIT, at=10 * MS, step=50 * MS)
    script.kernel(Call.tcp_retransmit, SERVER, CLIENT, S.CLOSE_WAIT, at=70 * MS)
    script.kernel(Call.tcp_reset_received, SERVER, CLIENT, S.CLOSE_WAIT, at=80 * MS)
    script.snapshot(at=30 * MS)
    script.socket_row(SERVER, CLIENT, S.ESTABLISHED, inode=5, owners=[(100, 7)])
    session = script.session()
    items = [item for item in timeline(session, 0) if item.lane is Lane.KERNEL]
    assert [(item.name, item.exact, item.is_mark) for item in items] == [
        ("ESTABLISHED", True, False),
        ("CLOSE_WAIT", True, False),
        ("retransmit", True, True),
        ("RST", True, True),
    ]
    assert items[1].text == "kernel: ESTABLISHED → CLOSE_WAIT"
    assert items[1].words == "the peer's FIN arrived"
    assert items[1].time_ns == START_NS + 60 * MS
    assert items[3].actor == "<-"


def test_a_snapshot_that_began_before_what_it_shows_is_not_told_before_it() -> None:
    script = server()
    script.snapshot(at=5 * MS)
    script.socket_row(SERVER, CLIENT, S.CLOSE_WAIT, inode=5, owners=[(100, 7)], recv_q=1)
    script.states(SERVER, CLIENT, S.SYN_RECV, S.ESTABLISHED, S.CLOSE_WAIT, at=10 * MS)
    serve(script, CLIENT, at=13 * MS)
    script.snapshot(at=255 * MS)
    script.socket_row(SERVER, CLIENT, S.CLOSE_WAIT, inode=5, owners=[(100, 7)])
    items = [item for item in timeline(script.session(), 0) if item.lane is Lane.KERNEL]
    assert [(item.name, item.exact) for item in items] == [
        ("ESTABLISHED", True),
        ("CLOSE_WAIT", True),
        ("CLOSE_WAIT", False),
    ]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (S.CLOSE_WAIT, S.LAST_ACK, "our FIN went out"),
        (S.ESTABLISHED, S.FIN_WAIT1, "our FIN went out"),
        (S.FIN_WAIT1, S.FIN_WAIT2, "the peer acknowledged our FIN"),
        (S.UNKNOWN, S.CLOSE, ""),
    ],
)
def test_words_of_changes(before: TcpState, after: TcpState, words: str) -> None:
    assert event_words(Call.sock_state, before, after)[2] == words


def test_described_like_any_event() -> None:
    script = server()
    event = script.kernel(Call.sock_state, SERVER, CLIENT, S.ESTABLISHED, S.CLOSE_WAIT)
    assert describe(script.events(), event) == "kernel: ESTABLISHED → CLOSE_WAIT"
    assert words(script.events(), event) == "the peer's FIN arrived"


ends = st.tuples(st.sampled_from([bytes(16), bytes(15) + b"\1", b"\xff" * 16, bytes(10) + b"\xff\xff\x0a\0\0\1"]),
                 st.integers(0, 3))  # fmt: skip


@given(pairs=st.lists(st.tuples(ends, ends), max_size=12))
def test_one_key_a_pair_of_ends(pairs: list[tuple[tuple[bytes, int], tuple[bytes, int]]]) -> None:
    hosts = [np.frombuffer(b"".join(p[side][0] for p in pairs), np.uint8).reshape(-1, 16) for side in (0, 1)]
    ports = [np.array([p[side][1] for p in pairs], np.uint16) for side in (0, 1)]
    keys = pair_key(hosts[0], ports[0], hosts[1], ports[1]).tolist()
    assert [a == b for a in keys for b in keys] == [a == b for a in pairs for b in pairs]


changes = st.tuples(
    st.sampled_from(sorted(KERNEL_EVENTS)),
    st.sampled_from([(SERVER, CLIENT), (CLIENT, SERVER), (SERVER, OTHER), (address("0.0.0.0", 80), OTHER)]),
    st.integers(0, 13),
    st.integers(0, 13),
    st.sampled_from([0, 0, 1, 2, 3]),
    st.integers(0, 60),
)


@given(told=st.lists(changes, max_size=30), noise=st.binary(max_size=300), cut=st.integers(0, 3000))
def test_any_telling_makes_a_session(
    told: list[tuple[Call, tuple[Address, Address], int, int, int, int]], noise: bytes, cut: int
) -> None:
    script = server()
    serve(script, CLIENT, at=13 * MS, until=20 * MS)
    serve(script, CLIENT, at=33 * MS)
    serve(script, OTHER, at=34 * MS, fd=8)
    for call, (local, peer), old, new, cookie, at in told:
        # 2 is the cookie of one socket alone.
        known = cookie if cookie != 2 or (local, peer) == (SERVER, OTHER) else 0
        script.kernel(call, local, peer, old, new, cookie=known, at=at * MS)
    script.snapshot(at=70 * MS)
    script.socket_row(SERVER, OTHER, inode=5, cookie=2, owners=[(100, 8)])
    count = sum(call != Call.sock_state or old != new for call, _, old, new, *_ in told)
    events = script.events()
    blob = np.concatenate([events.blob[:cut], np.frombuffer(noise, np.uint8)])
    for table in (events, Events(records=events.records, blob=blob)):
        decoded = decode_kernel_events(table)
        assert len(decoded) == count
        assert (np.diff(decoded["time_ns"]) >= 0).all()
    session = script.session()
    for row, connection in zip(session.kernel, session.kernel_connection.tolist(), strict=True):
        if connection >= 0:
            assert from_key(row["peer"].tobytes(), int(row["peer_port"])) == session.connections[connection].peer
    damaged = build_session(
        info=script.info(), seed=script.seed(), events=Events(records=events.records, blob=blob),
        packets=script.packets(), sockets=script.sockets(),
    )  # fmt: skip
    assert len(damaged.kernel) == count
