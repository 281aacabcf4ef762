"""What the kernel does to TCP sockets: every state, resets and retransmissions, with the time they really had."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import numpy as np
import pytest

from sockscope.model.calls import FIRST_TASK_EVENT, KERNEL_EVENTS, Call
from sockscope.model.events import Events, Section
from sockscope.model.sockaddr import Address, decode_sockaddr
from sockscope.model.tcp import TcpState
from tests.sources.syscalls.ptrace_support import Program, Trace, args, ret, rows, section

pytestmark = pytest.mark.live

S = TcpState
NO_PORT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A kernel event."""

    call: Call
    ns: int
    cookie: int
    states: tuple[TcpState, ...]
    local: Address
    peer: Address


def end(events: Events, row: int, kind: Section) -> Address:
    data = section(events, row, kind)
    assert len(data) == 28, "a sockaddr_in6"
    address = decode_sockaddr(data)
    assert address is not None
    return address


def told(events: Events) -> list[Told]:
    """All kernel events, in time."""
    found = []
    for row in range(len(events)):
        call = events.call(row)
        if call not in KERNEL_EVENTS:
            continue
        record = events.records[row]
        assert (record["tgid"], record["tid"], record["enter_ns"]) == (0, 0, record["exit_ns"])
        count = 2 if call is Call.sock_state else 1
        found.append(
            Told(
                call=call,
                ns=int(record["exit_ns"]),
                cookie=args(events, row)[0],
                states=tuple(TcpState(value) for value in args(events, row)[1 : 1 + count]),
                local=end(events, row, Section.SOCKADDR),
                peer=end(events, row, Section.PEER),
            )
        )
    return sorted(found, key=lambda each: each.ns)


def states_of(events: Events, cookie: int) -> list[tuple[TcpState, ...]]:
    return [each.states for each in told(events) if each.cookie == cookie and each.call is Call.sock_state]


def during(events: Events, row: int, each: Told) -> bool:
    """Whether it happened between a call's entry and its return."""
    record = events.records[row]
    return bool(record["enter_ns"] <= each.ns <= record["exit_ns"])


def traced(body: str) -> tuple[Events, list[int]]:
    """Run Python lines under an attached trace; the events and the numbers that the program printed."""
    source = f"""
import os, socket, struct, sys, time
def cookie(s): return struct.unpack("<Q", s.getsockopt(socket.SOL_SOCKET, 57, 8))[0]
sys.stdin.readline()
{body}
print("done")
sys.stdin.readline()
"""
    with Program.python(source) as program, Trace(attach=[program.pid], engine="bpf") as trace:
        program.say("go")
        printed: list[int] = []
        while (line := program.line()) != "done":
            assert line or program.process.poll() is None, "the program died"
            printed += map(int, line.split())
        events = trace.finish()
        assert trace.engine.coverage().lost == {}
        return events, printed


def test_a_connections_states_on_both_ends_and_when() -> None:
    """Nobody named the port: a target that listens there, or connects to it, does."""
    events, (listener, client, server, port, client_port) = traced("""
l = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(l.getsockname())
a, _ = l.accept()
print(cookie(l), cookie(c), cookie(a), l.getsockname()[1], c.getsockname()[1])
c.close(); time.sleep(0.1)
a.close(); time.sleep(0.1)
l.close()
""")
    all_told = told(events)
    assert states_of(events, listener) == [(S.CLOSE, S.LISTEN), (S.LISTEN, S.CLOSE)]
    assert states_of(events, client) == [
        (S.CLOSE, S.SYN_SENT),
        (S.SYN_SENT, S.ESTABLISHED),
        (S.ESTABLISHED, S.FIN_WAIT1),
        (S.FIN_WAIT1, S.FIN_WAIT2),
        (S.FIN_WAIT2, S.CLOSE),
    ]
    # The accepted socket has its cookie only after the first.
    (born,) = [each for each in all_told if each.states == (S.LISTEN, S.SYN_RECV)]
    assert (born.cookie, born.local.port, born.peer.port) == (0, port, client_port)
    assert states_of(events, server) == [
        (S.SYN_RECV, S.ESTABLISHED),
        (S.ESTABLISHED, S.CLOSE_WAIT),
        (S.CLOSE_WAIT, S.LAST_ACK),
        (S.LAST_ACK, S.CLOSE),
    ]
    for each in all_told:
        assert each.local.host == "127.0.0.1"
        if each.cookie == server:
            assert (each.local.port, each.peer.port) == (port, client_port)
        elif each.cookie == client:
            chosen = NO_PORT if each.states == (S.CLOSE, S.SYN_SENT) else client_port
            assert (each.local.port, each.peer.port) == (chosen, port)

    def when(cookie: int, state: TcpState) -> Told:
        return next(each for each in all_told if each.cookie == cookie and each.states[-1] == state)

    (listen,), (connect,) = rows(events, Call.listen), rows(events, Call.connect)
    assert during(events, listen, when(listener, S.LISTEN))
    assert during(events, connect, when(client, S.SYN_SENT))
    assert during(events, connect, when(client, S.ESTABLISHED))
    assert during(events, connect, when(server, S.ESTABLISHED))
    closes = {args(events, row)[0]: row for row in rows(events, Call.close) if ret(events, row) == 0}
    accept = rows(events, Call.accept4)[0]
    assert during(events, closes[ret(events, accept)], when(server, S.LAST_ACK))
    assert during(events, closes[args(events, connect)[0]], when(client, S.FIN_WAIT1))
    assert not any(each.call is not Call.sock_state for each in all_told)


@pytest.mark.parametrize(("host", "shown"), [("::1", "::1"), ("127.0.0.1", "127.0.0.1")])
def test_a_dual_stack_listener(host: str, shown: str) -> None:
    events, (client, server, port) = traced(f"""
l = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
c = socket.create_connection(({host!r}, l.getsockname()[1]))
a, _ = l.accept()
print(cookie(c), cookie(a), l.getsockname()[1])
c.close(); a.close(); l.close()
""")
    ended = [each for each in told(events) if each.cookie in (client, server)]
    assert len(ended) >= 6
    for each in ended:
        assert each.peer.host == shown
        assert port in (each.local.port, each.peer.port)
        if each.states != (S.CLOSE, S.SYN_SENT):
            assert each.local.host == shown
    (born,) = [each for each in told(events) if each.states == (S.LISTEN, S.SYN_RECV)]
    assert (born.local.host, born.peer.host) == (shown, shown)


def test_an_abort_is_a_reset_sent_and_received() -> None:
    events, (client, server) = traced("""
l = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(l.getsockname())
a, _ = l.accept()
print(cookie(c), cookie(a))
a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
a.close(); time.sleep(0.1)
""")
    resets = {each.call: each for each in told(events) if each.call is not Call.sock_state}
    assert set(resets) == {Call.tcp_reset_sent, Call.tcp_reset_received}
    sent, received = resets[Call.tcp_reset_sent], resets[Call.tcp_reset_received]
    assert (sent.cookie, sent.states) == (server, (S.CLOSE,))
    assert (received.cookie, received.states) == (client, (S.ESTABLISHED,))
    assert (sent.local, sent.peer) == (received.peer, received.local)
    assert states_of(events, server)[-1] == (S.ESTABLISHED, S.CLOSE)
    assert states_of(events, client)[-1] == (S.ESTABLISHED, S.CLOSE)
    close = next(row for row in rows(events, Call.close) if ret(events, row) == 0 and during(events, row, sent))
    assert during(events, close, received)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_closed_port_refuses_without_a_socket(host: str) -> None:
    events, (port,) = traced(f"""
s = socket.create_server(({host!r}, 0), family=socket.AF_INET6 if ":" in {host!r} else socket.AF_INET)
port = s.getsockname()[1]
s.close()
try: socket.create_connection(({host!r}, port))
except ConnectionRefusedError: print(port)
""")
    sent, received = (
        next(each for each in told(events) if each.call is call)
        for call in (Call.tcp_reset_sent, Call.tcp_reset_received)
    )
    assert sent.cookie == 0
    assert received.states == (S.SYN_SENT,)
    assert (sent.local.host, sent.local.port) == (received.peer.host, received.peer.port) == (host, port)
    assert (sent.peer, sent.states) == (received.local, (S.CLOSE,))
    (connect,) = rows(events, Call.connect)
    assert during(events, connect, sent)
    assert during(events, connect, received)


def test_what_is_not_acknowledged_is_sent_again() -> None:
    """A filter on the accepted socket drops all that comes in, as a bad line would."""
    events, (client,) = traced("""
import ctypes
l = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(l.getsockname())
a, _ = l.accept()
print(cookie(c))
nothing = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0))  # ret #0
a.setsockopt(socket.SOL_SOCKET, 26, struct.pack("<HxxxxxxQ", 1, ctypes.addressof(nothing)))  # SO_ATTACH_FILTER
c.send(b"lost"); time.sleep(0.7)
a.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER
a.recv(4)
""")
    again = [each for each in told(events) if each.call is Call.tcp_retransmit]
    assert again
    assert {(each.cookie, each.states) for each in again} == {(client, (S.ESTABLISHED,))}
    send, receive = rows(events, Call.sendto)[0], rows(events, Call.recvfrom)[0]
    assert events.records["exit_ns"][send] < again[0].ns < events.records["exit_ns"][receive]


def test_a_handshake_that_is_not_answered() -> None:
    """The client's filter drops the SYN/ACK: its SYN and the listener's answer are sent again."""
    events, (client, port, client_port) = traced("""
import ctypes
l = socket.create_server(("127.0.0.1", 0))
c = socket.socket()
nothing = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0))
c.setsockopt(socket.SOL_SOCKET, 26, struct.pack("<HxxxxxxQ", 1, ctypes.addressof(nothing)))
c.setblocking(False)
c.connect_ex(l.getsockname())
print(cookie(c), l.getsockname()[1], c.getsockname()[1])
time.sleep(2.5)
""")
    again = [each for each in told(events) if each.call is Call.tcp_retransmit]
    assert {(each.cookie == client, each.states, each.local.port, each.peer.port) for each in again} == {
        (True, (S.SYN_SENT,), client_port, port),
        (False, (S.NEW_SYN_RECV,), port, client_port),
    }


def test_a_port_is_told_of_from_the_moment_it_is_named() -> None:
    """A server that listened before: nothing of its sockets until its port is named. Others' sockets never."""
    body = """
import socket, sys
l = socket.create_server(("127.0.0.1", 0))
print(l.getsockname()[1])
while sys.stdin.readline():
    a, _ = l.accept(); a.close(); print("closed")
"""

    def one(program: Program, port: int) -> None:
        program.say("next")
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert program.line() == "closed"
            client.recv(1)

    with Program.python(body) as named, Program.python(body) as stranger:
        port, other = int(named.line()), int(stranger.line())
        with Trace(attach=[named.pid], engine="bpf") as trace:
            one(named, port)
            assert not told(trace.events)
            trace.engine.add_ports([port])
            one(named, port)
            one(stranger, other)
            one(named, port)
            events = trace.finish()
    seen = told(events)
    assert len({each.cookie for each in seen if each.cookie and each.local.port == port}) == 2
    assert all(port in (each.local.port, each.peer.port) for each in seen)
    assert (events.records["tgid"][events.records["call"] < FIRST_TASK_EVENT] == named.pid).all()


def test_many_connections_miss_no_state() -> None:
    """Softirqs interrupt the program wherever it is; each end's every change is told, once."""
    count = 300
    events, cookies = traced(f"""
l = socket.create_server(("127.0.0.1", 0), backlog=64)
print(l.getsockname()[1])
for _ in range({count}):
    c = socket.create_connection(l.getsockname()); a, _ = l.accept()
    c.close(); a.close()
time.sleep(0.2)
""")
    port = cookies[0]
    seen = [each for each in told(events) if each.call is Call.sock_state]
    counts = np.unique([each.cookie for each in seen if each.cookie and each.local.port == port], return_counts=True)[1]
    # The listener's two are among them where the program has closed it by now.
    assert np.count_nonzero(counts >= 4) == count
    assert len([each for each in seen if each.states == (S.SYN_SENT, S.ESTABLISHED)]) == count
