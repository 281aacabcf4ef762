from __future__ import annotations

from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Section
from sockscope.model.report import Lane, TimelineItem
from sockscope.model.tcp import TcpFlag, TcpState
from tests.analysis.builders import EPOLLET, EPOLLIN, Script, address, epoll_event
from tests.analysis.narration.told import timeline

SERVER = address("127.0.0.1", 8080)
CLIENT = address("127.0.0.1", 40112)
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
STATUS = b"HTTP/1.1 200 OK\r\n"
BODY = b"Hello"
P, A, F, R = TcpFlag.PSH, TcpFlag.ACK, TcpFlag.FIN, TcpFlag.RST


def only(session: Session) -> int:
    """The connection that was accepted."""
    (found,) = [c.id for c in session.connections if c.peer == CLIENT]
    return found


def story(items: list[TimelineItem]) -> list[str]:
    return [f"{item.actor} {item.name}" for item in items]


def threaded_server() -> Script:
    """Flask's development server: poll, accept4, a thread, recv, several sends."""
    script = Script(ports=(8080,)).process(77, comm="python3").seed_fd(77, 3, inode=11)
    script.snapshot(at=0)
    script.socket_row(SERVER, state=TcpState.LISTEN, inode=11, owners=((77, 3),))
    script.event(77, 77, Call.poll, 4096, 1, 500, ret=0, poll=[(3, 1, 0)])
    script.event(77, 77, Call.poll, 4096, 1, 500, ret=1, poll=[(3, 1, 1)], took=3_000_000)
    script.handshake(CLIENT, SERVER)
    script.packet(CLIENT, SERVER, P | A, seq=1001, ack=5001, payload=REQUEST)
    script.now_ns += 3_000_000
    script.event(77, 77, Call.accept4, 1, 1, 0, fd=3, ret=7, sockaddr=CLIENT)
    script.thread(77, 812)
    script.event(77, 77, Call.clone, 0x3D0F00, ret=812, at=script.now_ns)
    script.event(77, 812, Call.recvfrom, 4096, 8192, 0, fd=7, ret=len(REQUEST), payload=REQUEST)
    script.event(77, 812, Call.sendto, 4096, len(STATUS), 0, fd=7, ret=len(STATUS), payload=STATUS)
    script.packet(SERVER, CLIENT, P | A, seq=5001, ack=1001 + len(REQUEST), payload=STATUS)
    script.event(77, 812, Call.sendto, 4096, len(BODY), 0, fd=7, ret=len(BODY), payload=b"A: b\r\n\r\n"[: len(BODY)])
    script.event(77, 812, Call.close, fd=7)
    script.packet(SERVER, CLIENT, F | A, seq=5018, ack=1001 + len(REQUEST))
    return script


def test_a_thread_per_connection() -> None:
    session = threaded_server().session()
    items = timeline(session, only(session))
    assert story(items) == [
        "python3[77] poll",
        "<- SYN",
        "-> SYN,ACK",
        "<- ACK",
        "<- PSH,ACK",
        "python3[77] accept4",
        "python3[77] clone",
        "python3[77/812] recvfrom",
        "python3[77/812] sendto",
        "-> PSH,ACK",
        "python3[77/812] sendto",
        "python3[77/812] close",
        "-> FIN,ACK",
    ]
    by_name = {item.name: item for item in items}
    assert by_name["recvfrom"].words == f"read {len(REQUEST)} bytes: request GET / HTTP/1.1"
    assert by_name["accept4"].words == "a client connected from 127.0.0.1:40112; its descriptor is 7"
    assert items[4].text.startswith(f'[PSH,ACK] seq 1:{1 + len(REQUEST)} ack 1 win 1000 len {len(REQUEST)} "GET / HTTP')
    assert items[4].words == f"request GET / HTTP/1.1 ({len(REQUEST)} bytes)"
    assert items[9].words == "status line 200 OK (17 bytes)"
    assert items[0].duration_ns == 3_000_000
    assert [item.time_ns for item in items] == sorted(item.time_ns for item in items)
    assert by_name["poll"].lane is Lane.SYSCALL


def test_over_the_limit_the_middle_is_left_out() -> None:
    session = threaded_server().session()
    items = timeline(session, only(session), limit=7)
    assert story(items) == [
        "python3[77] poll",
        "<- SYN",
        "-> SYN,ACK",
        "-- …",
        "python3[77/812] sendto",
        "python3[77/812] close",
        "-> FIN,ACK",
    ]
    assert items[3].text == "… 7 more events …"


def epoll_server() -> Script:
    """An event loop that serves two connections out of one wake-up; epoll_data are pointers."""
    script = Script(ports=(8080,)).process(33, comm="nginx").seed_fd(33, 3, inode=11)
    script.snapshot(at=0)
    script.socket_row(SERVER, state=TcpState.LISTEN, inode=11, owners=((33, 3),))
    script.event(33, 33, Call.epoll_create1, ret=5)
    other = address("127.0.0.1", 40113)
    for fd, peer in ((7, CLIENT), (8, other)):
        script.event(33, 33, Call.accept4, 1, 1, 0, fd=3, ret=fd, sockaddr=peer)
        watched = ((Section.EPOLL_EVENTS, epoll_event(EPOLLIN | EPOLLET, 0x7F0000000000 + fd)),)
        script.event(33, 33, Call.epoll_ctl, 1, fd, 4096, fd=5, sections=watched)
    ready = [(EPOLLIN, 0x7F0000000008), (EPOLLIN, 0x7F0000000007)]
    script.event(33, 33, Call.epoll_wait, 4096, 512, -1, fd=5, ret=2, epoll=ready)
    script.event(33, 33, Call.recvfrom, 4096, 1024, 0, fd=8, ret=len(REQUEST), payload=REQUEST)
    script.event(33, 33, Call.recvfrom, 4096, 1024, 0, fd=7, ret=0)
    script.event(33, 33, Call.epoll_wait, 4096, 512, -1, fd=5, ret=1, epoll=[(EPOLLIN, 0x7F0000000008)])
    script.event(33, 33, Call.close, fd=8)
    script.snapshot()
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, inode=12, recv_q=1, owners=((33, 7),))
    script.snapshot()
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, inode=12, recv_q=1, owners=((33, 7),))
    script.snapshot()
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, inode=12, recv_q=9, owners=((33, 7),))
    return script


def test_the_wait_that_woke_it_and_what_the_kernel_says() -> None:
    session = epoll_server().session()
    items = timeline(session, only(session))
    assert story(items) == [
        "nginx[33] accept4",
        "nginx[33] epoll_ctl",
        "nginx[33] epoll_wait",
        "nginx[33] recvfrom",
        "-- CLOSE_WAIT",
        "-- CLOSE_WAIT",
    ]
    assert items[3].words == "told end of stream: the peer closed its sending half"
    assert [item.text for item in items[4:]] == ["CLOSE_WAIT recv-q 1 send-q 0", "CLOSE_WAIT recv-q 9 send-q 0"]


def test_never_accepted_is_wire_and_kernel_alone() -> None:
    script = Script(ports=(8080,)).process(33, comm="nginx").seed_fd(33, 3, inode=11)
    script.handshake(CLIENT, SERVER)
    script.packet(CLIENT, SERVER, F | A, seq=1001, ack=5001)
    script.packet(CLIENT, SERVER, F | A, seq=1001, ack=5001)
    script.packet(CLIENT, SERVER, R, seq=1002)
    script.snapshot()
    script.socket_row(SERVER, state=TcpState.LISTEN, inode=11, owners=((33, 3),))
    script.socket_row(SERVER, CLIENT, TcpState.CLOSE_WAIT, recv_q=1)
    session = script.session()
    items = timeline(session, only(session))
    assert story(items) == ["<- SYN", "-> SYN,ACK", "<- ACK", "<- FIN,ACK", "<- FIN,ACK", "<- RST", "-- CLOSE_WAIT"]
    assert [item.words for item in items[3:6]] == ["ends its half", "retransmission", "resets the connection"]
    assert items[-1].text == "CLOSE_WAIT recv-q 1 send-q 0, owned by no process"


def test_closes_in_every_process_and_what_has_not_returned() -> None:
    script = Script(ports=(8080,)).process(50, comm="prefork").seed_fd(50, 3, inode=11)
    script.snapshot(at=0)
    script.socket_row(SERVER, state=TcpState.LISTEN, inode=11, owners=((50, 3),))
    script.event(50, 50, Call.accept, 1, 1, fd=3, ret=4, sockaddr=CLIENT)
    script.fork(50, 51)
    script.event(50, 50, Call.close, fd=4)
    script.event(51, 51, Call.read, 4096, 100, fd=4, flags=EventFlag.ENTERED_ONLY)
    session = script.session()
    items = timeline(session, only(session))
    assert story(items) == ["prefork[50] accept", "prefork[50] task_new", "prefork[50] close", "prefork[51] read"]
    assert items[1].text == "new process 51"
    assert items[-1].duration_ns == -1
    assert items[-1].words == "waiting for something to read"


def test_the_thread_that_serves_and_the_wait_are_told_by_what_they_are_for() -> None:
    session = threaded_server().session()
    by_name = {item.name: item.words for item in timeline(session, only(session))}
    assert by_name["poll"] == "woken: a client waits to be accepted (listener, descriptor 3)"
    assert by_name["clone"] == "started 812, the thread that will serve this connection"
    assert by_name["close"] == "done with it: this side of the connection ends"


def handed_over(*, receive: bool = True) -> Script:
    """A master that accepts, a worker that waited for descriptors since before."""
    script = Script(ports=(8080,)).process(100, comm="master").process(101, ppid=100, comm="worker")
    script.seed_fd(100, 3, inode=11).seed_fd(100, 5, inode=50).seed_fd(101, 6, inode=60)
    script.snapshot(at=0)
    script.socket_row(SERVER, state=TcpState.LISTEN, inode=11, owners=((100, 3),))
    script.handshake(CLIENT, SERVER)
    began = script.now_ns
    script.event(100, 100, Call.accept4, 1, 1, 0, fd=3, ret=7, sockaddr=CLIENT)
    script.event(100, 100, Call.sendmsg, fd=5, ret=1, payload=b"c", control=[7])
    script.event(100, 100, Call.close, fd=7)
    if receive:
        script.now_ns += 1_000_000
        arrived = script.now_ns
        script.event(
            101, 101, Call.recvmsg, fd=6, ret=1, payload=b"c", control=[9], at=began - 50, took=arrived - began
        )
        script.now_ns = arrived
        script.event(101, 101, Call.recvfrom, 4096, 8192, 0, fd=9, ret=len(REQUEST), payload=REQUEST)
        script.event(101, 101, Call.close, fd=9)
    return script


def test_one_timeline_across_the_hand_over() -> None:
    session = handed_over().session()
    items = [item for item in timeline(session, only(session)) if item.lane is Lane.SYSCALL]
    assert [(item.actor, item.name, item.words) for item in items[1:]] == [
        ("master[100]", "sendmsg", "hands this connection on (SCM_RIGHTS) to worker[101], which has it as fd 9"),
        ("master[100]", "close", "closes its copy: the message that carries the connection keeps it open"),
        ("worker[101]", "recvmsg", "receives this connection as fd 9 from master[100] (fd 7 there)"),
        ("worker[101]", "recvfrom", f"read {len(REQUEST)} bytes: request GET / HTTP/1.1"),
        ("worker[101]", "close", "closes the last copy: only now the connection ends (FIN)"),
    ]


def test_handed_over_and_not_received() -> None:
    session = handed_over(receive=False).session()
    words = {item.name: item.words for item in timeline(session, only(session))}
    assert words["sendmsg"] == "hands this connection on (SCM_RIGHTS); nobody has received it yet"
    assert words["close"] == "closes its copy: the message that carries the connection keeps it open"


def test_a_copy_by_fork() -> None:
    script = Script(ports=(8080,)).process(100, comm="server").seed_fd(100, 3, inode=11)
    script.event(100, 100, Call.accept4, 1, 1, 0, fd=3, ret=7, sockaddr=CLIENT)
    script.fork(100, 101)
    script.event(100, 100, Call.close, fd=7)
    script.event(101, 101, Call.sendto, 4096, 2, 0, fd=7, ret=2, payload=b"ok")
    script.exit(101)
    session = script.session()
    words = [item.words for item in timeline(session, only(session))]
    assert words[1:] == [
        "server[101] gets it as fd 7: the process that will serve this connection",
        "closes its copy: server[101] has it as fd 7, so the connection stays open",
        'sent 2 bytes: "ok"',
        "closes the last copy: only now the connection ends (FIN)",
    ]
