"""Open files, socket rows and flows become connections."""

from __future__ import annotations

import pytest

from sockscope.model.calls import Call
from sockscope.model.connections import Protocol, Role
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import SOCK_DGRAM, SOCK_STREAM, START_NS, Script, address, unix_address

A, B = 100, 200
CLIENT = address("10.0.0.9", 40000)
OTHER = address("10.0.0.9", 40001)
SERVER = address("10.0.0.1", 80)
ANY = address("0.0.0.0", 80)
FIN = TcpFlag.FIN | TcpFlag.ACK


@pytest.fixture
def script() -> Script:
    """A serves on a wildcard listener that was there at attach."""
    made = Script().process(A)
    made.seed_fd(A, 3, inode=11)
    made.snapshot(at=0)
    made.socket_row(ANY, None, TcpState.LISTEN, inode=11, cookie=1)
    return made


def test_all_three_sources_are_one_connection(script: Script) -> None:
    script.handshake(CLIENT, SERVER)
    accepted = script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    script.event(A, A, Call.recvfrom, 7, 0, 100, ret=18)
    script.event(A, A, Call.sendto, fd=7, ret=100)
    script.packet(CLIENT, SERVER, FIN, seq=1019, ack=5101)
    eof = script.event(A, A, Call.recvfrom, 7, 0, 100, ret=0)
    taken = script.snapshot()
    row = script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, inode=12, cookie=2, recv_q=1, owners=[(A, 7)])
    session = script.session()
    (made,) = session.connections
    assert (made.local, made.peer, made.role, made.protocol) == (SERVER, CLIENT, Role.SERVER, Protocol.TCP)
    assert (made.opened_event, made.eof_event, made.witnessed) == (accepted, eof, True)
    assert (made.read_bytes, made.written_bytes) == (18, 100)
    assert (made.state, made.inode, made.cookie, made.recv_q) == (TcpState.CLOSE_WAIT, 12, 2, 1)
    assert (made.flow, made.local_side) == (0, 1)
    assert made.owners == [(A, 7)]
    assert session.samples_of(0).tolist() == [row]
    assert len(session.packets_of(0)) == 4
    assert session.open_files[made.open_file].local == SERVER
    assert taken == 1
    assert made.gone_ns is None


def test_never_accepted(script: Script) -> None:
    script.handshake(CLIENT, SERVER)
    script.snapshot()
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, cookie=2)
    session = script.session()
    (made,) = session.connections
    assert made.never_accepted
    assert made.role == Role.SERVER
    assert (made.open_file, made.flow) == (-1, 0)
    assert made.owners == []


def test_queued_then_accepted_is_one_socket(script: Script) -> None:
    script.snapshot()
    first = script.socket_row(SERVER, CLIENT, cookie=2)
    script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    script.snapshot()
    second = script.socket_row(SERVER, CLIENT, cookie=2, inode=12)
    session = script.session()
    (made,) = session.connections
    assert not made.never_accepted
    assert session.samples_of(0).tolist() == [first, second]
    assert made.inode == 12


def test_time_wait_is_not_a_queue(script: Script) -> None:
    script.snapshot()
    script.socket_row(SERVER, CLIENT, TcpState.TIME_WAIT, cookie=2)
    (made,) = script.session().connections
    assert not made.never_accepted


@pytest.mark.parametrize("packets", [True, False])
@pytest.mark.parametrize("state", [TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.LAST_ACK, TcpState.TIME_WAIT])
def test_a_snapshot_that_took_its_time(script: Script, state: TcpState, packets: bool) -> None:
    """It carries the time of its beginning, and shows what was accepted and closed after that."""
    script.snapshot(at=10_000_000)
    row = script.socket_row(SERVER, CLIENT, state, cookie=2)
    if packets:
        script.handshake(CLIENT, SERVER)
    script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT, at=20_000_000)
    script.event(A, A, Call.close, fd=7, at=30_000_000)
    session = script.session()
    (made,) = session.connections
    assert (made.open_file >= 0, made.state) == (True, state)
    assert session.samples_of(0).tolist() == [row]


def test_an_exit_that_took_its_time(script: Script) -> None:
    """It is told when it begins: the kernel closes what is open after that."""
    script.fork(A, B)
    script.event(B, B, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    script.exit(B)
    script.snapshot(at=script.now_ns + 5_000_000)
    script.socket_row(SERVER, CLIENT, cookie=2, inode=12)
    (made,) = script.session().connections
    assert made.open_file >= 0
    assert made.cookie == 2


def test_a_socket_shown_after_an_exit_is_not_the_next_connections(script: Script) -> None:
    """Between the same ends: each open file takes its own at once, before what is left is given to whoever has none."""
    script.fork(A, B)
    script.event(B, B, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    script.exit(B)
    script.snapshot(at=script.now_ns + 5_000_000)
    script.socket_row(SERVER, CLIENT, cookie=2, inode=12)
    script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    script.snapshot(at=script.now_ns + 5_000_000)
    script.socket_row(SERVER, CLIENT, cookie=3, inode=13)
    assert [made.cookie for made in script.session().connections] == [2, 3]


def test_the_next_connection_between_the_same_ends_is_another(script: Script) -> None:
    script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    script.snapshot()
    script.socket_row(SERVER, CLIENT, cookie=2, inode=12)
    script.event(A, A, Call.close, fd=7)
    script.snapshot(at=script.now_ns + 1_000_000)
    script.socket_row(SERVER, CLIENT, cookie=10, recv_q=1)
    script.socket_row(ANY, None, TcpState.LISTEN, inode=11, cookie=1)
    one, other = script.session().connections
    assert (one.open_file >= 0, other.open_file >= 0, other.never_accepted) == (True, False, True)


def test_what_was_over_before_the_watching_is_no_connection(script: Script) -> None:
    script.socket_row(SERVER, CLIENT, TcpState.TIME_WAIT, cookie=2)
    assert script.session().connections == []


def test_gone_from_the_next_snapshot(script: Script) -> None:
    script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    script.snapshot(at=50_000_000)
    script.socket_row(SERVER, CLIENT, cookie=2)
    script.snapshot(at=90_000_000)
    script.socket_row(ANY, None, TcpState.LISTEN, inode=11, cookie=1)
    (made,) = script.session().connections
    assert (made.state, made.gone_ns) == (TcpState.ESTABLISHED, START_NS + 90_000_000)


def test_an_exit_is_told_before_the_kernel_closes(script: Script) -> None:
    """A snapshot in between still shows the socket: it is no other one."""
    script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
    script.exit(A)
    script.snapshot(at=script.now_ns + 6_000_000)
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, cookie=2, inode=12)
    (made,) = script.session().connections
    assert (made.cookie, made.open_file >= 0) == (2, True)


def test_ports_used_again_are_kept_apart_by_time(script: Script) -> None:
    for turn in range(2):
        script.handshake(CLIENT, SERVER)
        script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=CLIENT)
        script.snapshot()
        script.socket_row(SERVER, CLIENT, cookie=20 + turn, inode=120 + turn)
        script.packet(SERVER, CLIENT, FIN, seq=5001, ack=1001)
        script.packet(CLIENT, SERVER, FIN, seq=1001, ack=5002)
        script.packet(SERVER, CLIENT, TcpFlag.ACK, seq=5002, ack=1002)
        script.event(A, A, Call.close, fd=7)
        script.now_ns += 1_000_000_000
    session = script.session()
    if len(session.flows) == 2:
        assert [c.flow for c in session.connections] == [0, 1]
    assert [c.cookie for c in session.connections] == [20, 21]
    assert [c.owners for c in session.connections] == [[], []]


def test_there_at_attach() -> None:
    script = Script().process(A)
    script.seed_fd(A, 3, inode=11)
    script.seed_fd(A, 7, inode=12)
    script.snapshot(at=0)
    script.socket_row(ANY, None, TcpState.LISTEN, inode=11, cookie=1)
    script.socket_row(SERVER, CLIENT, inode=12, cookie=2, owners=[(A, 7)])
    read = script.event(A, A, Call.recvfrom, 7, 0, 100, ret=5)
    session = script.session()
    (made,) = session.connections
    assert (made.local, made.peer, made.role, made.witnessed) == (SERVER, CLIENT, Role.SERVER, False)
    assert session.event_connection[read] == 0
    assert session.open_files[0].listening


def test_a_client_connection_finds_its_flow_without_its_port() -> None:
    script = Script().process(A)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=4, at=1_000_000)
    script.event(A, A, Call.connect, fd=4, sockaddr=SERVER, at=2_000_000, took=900_000)
    script.handshake(CLIENT, SERVER, at=2_100_000)
    script.handshake(OTHER, SERVER, at=30_000_000)
    session = script.session()
    (made,) = session.connections
    assert (made.role, made.local, made.flow, made.local_side) == (Role.CLIENT, CLIENT, 0, 0)


def test_both_ends_of_a_loopback_connection_share_the_flow() -> None:
    script = Script().process(A)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=3)
    script.event(A, A, Call.bind, fd=3, sockaddr=ANY)
    script.event(A, A, Call.listen, fd=3)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=4)
    script.event(A, A, Call.connect, fd=4, sockaddr=SERVER, took=100_000)
    script.handshake(CLIENT, SERVER, at=script.now_ns + 10)
    script.event(A, A, Call.accept, fd=3, ret=5, sockaddr=CLIENT)
    session = script.session()
    assert [(c.role, c.flow, c.local_side) for c in session.connections] == [
        (Role.CLIENT, 0, 0),
        (Role.SERVER, 0, 1),
    ]


def test_accept_that_does_not_ask_who_came(script: Script) -> None:
    script.handshake(CLIENT, SERVER)
    script.handshake(OTHER, SERVER)
    script.event(A, A, Call.accept4, fd=3, ret=7)
    script.event(A, A, Call.accept4, fd=3, ret=8)
    script.snapshot()
    script.socket_row(SERVER, CLIENT, cookie=2, inode=12)
    script.socket_row(SERVER, OTHER, cookie=3, inode=13)
    session = script.session()
    assert [(c.peer, c.flow, c.cookie) for c in session.connections] == [(CLIENT, 0, 2), (OTHER, 1, 3)]


def test_getpeername_tells_who_came(script: Script) -> None:
    script.event(A, A, Call.accept4, fd=3, ret=7)
    script.event(A, A, Call.getpeername, fd=7, sockaddr=CLIENT)
    script.event(A, A, Call.getsockname, fd=7, sockaddr=SERVER)
    (made,) = script.session().connections
    assert (made.local, made.peer) == (SERVER, CLIENT)


def test_owners_tell_the_inode(script: Script) -> None:
    script.event(A, A, Call.accept4, fd=3, ret=7)
    script.snapshot()
    script.socket_row(SERVER, CLIENT, cookie=2, inode=12, owners=[(A, 7)])
    (made,) = script.session().connections
    assert (made.local, made.peer, made.inode) == (SERVER, CLIENT, 12)


def test_a_flow_alone(script: Script) -> None:
    script.handshake(CLIENT, SERVER)
    script.handshake(CLIENT, address("10.0.0.1", 5432))
    (made,) = script.session().connections
    assert (made.local, made.peer, made.open_file) == (SERVER, CLIENT, -1)


def test_without_syscalls_and_ports_the_wire_is_all_there_is() -> None:
    script = Script(engine="")
    script.handshake(CLIENT, SERVER)
    (made,) = script.session().connections
    assert (made.local, made.peer, made.flow, made.local_side) == (SERVER, CLIENT, 0, 1)


def test_without_syscalls_rows_have_the_owners_proc_knows() -> None:
    script = Script(engine="", ports=(80,))
    script.snapshot()
    script.socket_row(ANY, None, TcpState.LISTEN, inode=11)
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, inode=12, owners=[(A, 7), (B, 7)])
    script.socket_row(CLIENT, SERVER, TcpState.FIN_WAIT2, inode=13, owners=[(300, 3)])
    (made,) = script.session().connections
    assert (made.local, made.owners, made.role) == (SERVER, [(A, 7), (B, 7)], Role.SERVER)


def test_another_process_on_the_port_is_shown_with_its_owner(script: Script) -> None:
    script.snapshot()
    script.socket_row(SERVER, CLIENT, inode=12, cookie=2, owners=[(B, 9)])
    (made,) = script.session().connections
    assert (made.owners, made.never_accepted) == ([(B, 9)], False)


def test_v4_mapped_is_v4(script: Script) -> None:
    mapped = bytes(10) + b"\xff\xff"
    raw = b"\x0a\x00" + (40000).to_bytes(2, "big") + bytes(4) + mapped + CLIENT.packed + bytes(4)
    script.handshake(CLIENT, SERVER)
    script.event(A, A, Call.accept4, fd=3, ret=7, sockaddr=raw)
    script.snapshot()
    script.socket_row(SERVER, CLIENT, cookie=2, inode=12, family=10)
    (made,) = script.session().connections
    assert (made.peer, made.flow, made.cookie) == (CLIENT, 0, 2)


def test_socketpair_ends_are_connections() -> None:
    script = Script().process(A)
    script.event(A, A, Call.socketpair, 1, SOCK_STREAM, pair=(4, 5))
    script.event(A, A, Call.socketpair, 1, SOCK_DGRAM, pair=(6, 7))
    script.event(A, A, Call.write, fd=4, ret=3)
    session = script.session()
    assert [(c.protocol, c.written_bytes) for c in session.connections] == [(Protocol.UNIX, 3), (Protocol.UNIX, 0)]


def test_unix_clients_of_a_listener() -> None:
    script = Script().process(A)
    script.event(A, A, Call.socket, 1, SOCK_STREAM, ret=3)
    script.event(A, A, Call.bind, fd=3, sockaddr=unix_address("/run/x"))
    script.event(A, A, Call.listen, fd=3)
    script.event(A, A, Call.accept, fd=3, ret=4)
    (made,) = script.session().connections
    assert (made.protocol, made.role, made.local) == (Protocol.UNIX, Role.SERVER, unix_address("/run/x"))


def test_udp_sockets_that_saw_traffic() -> None:
    script = Script().process(A)
    for fd, port in ((3, 53), (4, 54)):
        script.event(A, A, Call.socket, 2, SOCK_DGRAM, ret=fd)
        script.event(A, A, Call.bind, fd=fd, sockaddr=address("0.0.0.0", port))
    script.event(A, A, Call.recvfrom, 3, 0, 100, ret=0, sockaddr=CLIENT)
    (made,) = script.session().connections
    assert (made.protocol, made.role, made.peer, made.eof_ns) == (Protocol.UDP, Role.SERVER, None, None)


def test_a_refused_connect_is_no_connection() -> None:
    script = Script().process(A)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=4)
    script.event(A, A, Call.connect, fd=4, ret=-111, sockaddr=SERVER)
    assert script.session().connections == []


def test_another_network_namespace_is_another_world(script: Script) -> None:
    script.snapshot()
    script.socket_row(SERVER, CLIENT, cookie=2, netns=2)
    assert script.session().connections == []


def test_nothing_recorded() -> None:
    session = Script().session()
    assert session.connections == []
    assert len(session.order) == 0
