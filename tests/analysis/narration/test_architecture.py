"""What a server is, told from hand-written sessions."""

from __future__ import annotations

from sockscope.analysis.narration.architecture import architecture
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.model.seed import FileKind
from sockscope.model.tcp import TcpState
from tests.analysis.builders import EPOLLIN, Script, address

SERVER = address("127.0.0.1", 80)
BLOCKED = EventFlag.ENTERED_ONLY


def server(*tgids: int, share: bool = True, parent: int | None = None) -> Script:
    """Processes that have one listener as fd 3 (or one each)."""
    script = Script(ports=(80,))
    for number, tgid in enumerate(tgids):
        script.process(tgid, ppid=parent or 1, tids=(tgid,))
        script.seed_fd(tgid, 3, inode=3 if share else 30 + number, open_file=1 if share else 10 + number)
    script.snapshot(at=0)
    for number, tgid in enumerate(tgids if not share else tgids[:1]):
        inode = 3 if share else 30 + number
        script.socket_row(SERVER, None, TcpState.LISTEN, inode=inode, cookie=inode, owners=[(tgid, 3)])
    return script


def accept(script: Script, client: int, fd: int, *, tgid: int = 100, tid: int | None = None) -> None:
    script.event(tgid, tid or tgid, Call.accept4, fd=3, ret=fd, sockaddr=address("127.0.0.1", 40000 + client))


def talk(script: Script, fd: int, *, tgid: int = 100, tid: int | None = None) -> None:
    script.event(tgid, tid or tgid, Call.recvfrom, 0, 4096, fd=fd, ret=2, payload=b"hi")
    script.event(tgid, tid or tgid, Call.sendto, 0, 3, fd=fd, ret=3, payload=b"you")


def close(script: Script, fd: int, *, tgid: int = 100, tid: int | None = None) -> None:
    script.event(tgid, tid or tgid, Call.close, fd=fd)


def told(session: Session) -> str:
    return "\n".join(architecture(session))


def test_one_after_another() -> None:
    script = server(100)
    for client in range(3):
        accept(script, client, 7)
        talk(script, 7)
        close(script, 7)
    assert architecture(script.session()) == (
        "server[100] listens on 127.0.0.1:80 (fd 3): 3 connections accepted",
        "server[100] waits in accept itself until somebody connects",
        (
            "server[100] serves one connection after another (the thread that accepts serves it); "
            "who comes meanwhile waits in the accept queue"
        ),
    )


def test_a_thread_for_each_connection() -> None:
    script = server(100)
    for client in range(4):
        script.event(100, 100, Call.poll, 4096, 1, 500, ret=1, poll=[(3, 1, 1)])
        accept(script, client, 7)
        script.thread(100, 200 + client)
        talk(script, 7, tid=200 + client)
        close(script, 7, tid=200 + client)
        script.exit(100, 200 + client)
    text = told(script.session())
    assert "waits in poll until somebody connects, then accepts" in text
    assert "starts a thread for each connection: 4 threads for 4 connections, one at a time" in text


def test_a_pool_of_threads() -> None:
    script = server(100)
    script.thread(100, 201)
    script.thread(100, 202)
    for client in range(6):
        accept(script, client, 7)
        talk(script, 7, tid=201 + client % 2)
        close(script, 7, tid=201 + client % 2)
    assert "leaves serving to a pool of threads: 6 connections among 2 threads, 3 each" in told(script.session())


def test_a_process_for_each_connection() -> None:
    script = server(100)
    for client in range(4):
        accept(script, client, 7)
        script.fork(100, 200 + client)
        close(script, 7)
        close(script, 3, tgid=200 + client)
        talk(script, 7, tgid=200 + client)
        script.exit(200 + client)
    text = told(script.session())
    assert "server[100] forks a process for each connection: 4 processes for 4 connections" in text
    assert "taken no connection" not in text
    assert "share" not in text


def test_workers_that_share_a_listener_under_a_supervisor() -> None:
    script = server(100, 101, 102, parent=100)
    for client in range(5):
        worker = 101 + client % 2
        accept(script, client, 7, tgid=worker)
        talk(script, 7, tgid=worker)
        close(script, 7, tgid=worker)
    script.event(100, 100, Call.wait4, 0xFFFFFFFF, flags=BLOCKED)
    lines = architecture(script.session())
    assert lines[0] == (
        "server[101] and server[102] share one listener on 127.0.0.1:80 (fd 3), one open file, from before they were "
        "forked: 5 connections accepted (3 / 2)"
    )
    assert lines[-1] == (
        "server[100] supervises: it started server[101] and server[102] and waits for them; "
        "it keeps the listener on 127.0.0.1:80 open for them and never accepts from it"
    )


def test_workers_with_a_listener_each() -> None:
    script = server(101, 102, share=False)
    for client in range(4):
        accept(script, client, 7, tgid=101 + client % 2)
        talk(script, 7, tgid=101 + client % 2)
        close(script, 7, tgid=101 + client % 2)
    text = told(script.session())
    assert "SO_REUSEPORT" in text
    assert "share" not in text


def test_an_event_loop() -> None:
    script = server(100)
    script.seed_fd(100, 5, kind=FileKind.EPOLL)
    script.seed_epoll(100, 5, 3, EPOLLIN)
    for client in range(3):
        script.event(100, 100, Call.epoll_wait, 4096, 64, 0xFFFFFFFF, fd=5, ret=1, epoll=[(EPOLLIN, 3)])
        accept(script, client, 7 + client)
        script.event(100, 100, Call.epoll_ctl, 1, 7 + client, 0, fd=5, epoll=[(EPOLLIN, 7 + client)])
    for client in range(3):
        talk(script, 7 + client)
    text = told(script.session())
    assert "runs one event loop in one thread (epoll fd 5), which tells of new connections and of those it has" in text
    assert (
        "serves its connections from the loop (the thread that accepts serves them all), up to 3 open at once" in text
    )


def test_descriptors_handed_on() -> None:
    script = server(100)
    script.process(101, ppid=100)
    script.seed_fd(100, 5, inode=50).seed_fd(101, 6, inode=60)
    for client in range(2):
        accept(script, client, 7)
        script.event(100, 100, Call.sendmsg, 0, 0, fd=5, ret=1, payload=b"c", control=[7])
        close(script, 7)
        script.event(101, 101, Call.recvmsg, 0, 0, fd=6, ret=1, payload=b"c", control=[9])
        talk(script, 9, tgid=101)
        close(script, 9, tgid=101)
    assert (
        "accepts and hands each connection to another process (SCM_RIGHTS), which serves it: 2 connections, "
        "server[101] 2"
    ) in told(script.session())


def test_a_proxy() -> None:
    script = server(100)
    upstream = address("127.0.0.1", 9000)
    for client in range(3):
        accept(script, client, 7)
        script.event(100, 100, Call.recvfrom, 0, 4096, fd=7, ret=2, payload=b"hi")
        script.event(100, 100, Call.socket, 2, 1, 0, ret=8)
        script.event(100, 100, Call.connect, fd=8, sockaddr=upstream)
        script.event(100, 100, Call.sendto, 0, 2, fd=8, ret=2, payload=b"hi")
        script.event(100, 100, Call.recvfrom, 0, 4096, fd=8, ret=3, payload=b"you")
        script.event(100, 100, Call.sendto, 0, 3, fd=7, ret=3, payload=b"you")
        close(script, 8)
        close(script, 7)
    assert (
        "server[100] is a proxy: it passes on what it reads from 127.0.0.1:9000 (3 connections), for 3 of 3 connections"
    ) in told(script.session())


def test_nobody_asked_and_late() -> None:
    script = server(100, 101, 102, parent=100)
    for worker in (101, 102):
        script.seed_fd(worker, 5, kind=FileKind.EPOLL)
        script.seed_epoll(worker, 5, 3, EPOLLIN)
    lines = architecture(script.ends(2_000_000_000).session())
    assert lines[0].startswith("server[101] and server[102] share one listener on 127.0.0.1:80 (fd 3)")
    assert lines[1] == "each waits in epoll (fd 5) until somebody connects, then accepts"
    assert lines[2].startswith("server[100] supervises")
    assert lines[-1] == "Nobody connected while it was watched: how connections are served is not known yet"


def test_threads_without_a_socket_call() -> None:
    script = server(100)
    script.process(300, tids=(300, 301, 302)).seed_fd(300, 4, inode=4)
    script.event(300, 300, Call.accept4, fd=4, flags=BLOCKED)
    assert "server[300]: 2 of 3 threads made no call on a socket" in told(script.session())


def test_no_listener_and_nothing_at_all() -> None:
    script = Script().process(100)
    script.event(100, 100, Call.socket, 2, 1, 0, ret=8)
    script.event(100, 100, Call.connect, fd=8, sockaddr=address("10.0.0.1", 5432))
    assert architecture(script.session()) == ("server[100]: no listener, a client of 10.0.0.1:5432 (1)",)
    assert architecture(Script().session()) == ()
    assert architecture(Script(engine="").session()) == ()
