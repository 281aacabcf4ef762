"""Who is at the other end of a unix connection, from each source that can tell."""

from __future__ import annotations

import struct

from sockscope.analysis.joining.unix_ends import UnixEnds, UnixPeer
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.connections import Role
from sockscope.model.events import Section
from sockscope.model.facts import Relation
from sockscope.model.sockaddr import Address, Family
from sockscope.model.tcp import TcpState
from tests.analysis.builders import SOCK_STREAM, Script, address, unix_address

PATH = unix_address("/run/app.sock")
UNNAMED = struct.pack("<H", Family.UNIX)


def listening(name: Address = PATH) -> Script:
    script = Script().process(100)
    script.event(100, 100, Call.socket, Family.UNIX, SOCK_STREAM, 0, ret=3)
    script.event(100, 100, Call.bind, fd=3, sockaddr=name)
    script.event(100, 100, Call.listen, 16, fd=3)
    return script


def said(session: Session) -> list[tuple[Role, str]]:
    ends = UnixEnds(session)
    return [(connection.role, ends.words(connection)) for connection in session.connections]


def credentials(script: Script, fd: int, pid: int, uid: int = 1000) -> None:
    script.event(100, 100, Call.getsockopt, 1, 17, fd=fd, option=struct.pack("<iII", pid, uid, uid))


def test_nobody_tells() -> None:
    script = listening()
    script.event(100, 100, Call.accept4, fd=3, ret=4, sockaddr=UNNAMED)
    assert said(script.session()) == [(Role.SERVER, "client of /run/app.sock")]


def test_an_abstract_name() -> None:
    script = listening(Address(family=Family.UNIX, packed=b"\0app"))
    script.event(100, 100, Call.accept4, fd=3, ret=4, sockaddr=UNNAMED)
    assert said(script.session()) == [(Role.SERVER, "client of @app")]


def test_the_program_asked() -> None:
    script = listening()
    for fd in (4, 5):
        script.event(100, 100, Call.accept4, fd=3, ret=fd, sockaddr=UNNAMED)
        credentials(script, fd, 700 + fd)
    script.look(705, at=0, comm="psql", relation=Relation.PEER)
    assert [words for _, words in said(script.session())] == [
        "process 704 (uid 1000), client of /run/app.sock",
        "psql[705] (uid 1000), client of /run/app.sock",
    ]


def test_the_messages_say_it() -> None:
    script = listening()
    script.event(100, 100, Call.accept4, fd=3, ret=4, sockaddr=UNNAMED)
    control = struct.pack("<Qii", 20, 1, 1) + bytes(8) + struct.pack("<QiiiII", 28, 1, 2, 700, 33, 33)
    sections = [(Section.CONTROL, control)]
    script.event(100, 100, Call.recvmsg, 0, 0, fd=4, ret=2, payload=b"hi", sections=sections)
    assert said(script.session()) == [(Role.SERVER, "process 700 (uid 33), client of /run/app.sock")]


def test_numbers_of_another_pid_namespace_are_not_ours() -> None:
    script = listening()
    script.look(100, at=0, ns_tgid=1)
    script.event(100, 100, Call.accept4, fd=3, ret=4, sockaddr=UNNAMED)
    credentials(script, 4, 7)
    assert said(script.session()) == [(Role.SERVER, "client of /run/app.sock")]


def test_the_kernels_tables() -> None:
    """Attached late: nobody saw the accept, nor who asked."""
    script = Script().process(100).seed_fd(100, 3, inode=30).seed_fd(100, 4, inode=40)
    script.look(700, at=0, comm="psql", relation=Relation.PEER)
    script.snapshot(at=0)
    script.socket_row(None, None, TcpState.LISTEN, inode=30, cookie=1, path=b"/run/app.sock", owners=[(100, 3)])
    script.socket_row(None, inode=40, cookie=2, peer_inode=41, path=b"/run/app.sock", owners=[(100, 4)])
    script._owners.append((41, 700, 9))
    session = script.session()
    assert said(session) == [(Role.SERVER, "psql[700], client of /run/app.sock")]
    assert UnixEnds(session).peer(session.connections[0]) == UnixPeer(tgid=700, fd=9)


def test_both_ends_are_watched() -> None:
    script = listening()
    script.process(200, comm="client")
    script.event(200, 200, Call.socket, Family.UNIX, SOCK_STREAM, 0, ret=7)
    script.event(200, 200, Call.connect, fd=7, sockaddr=PATH)
    script.event(100, 100, Call.accept4, fd=3, ret=4, sockaddr=UNNAMED)
    assert sorted(said(script.session())) == [
        (Role.CLIENT, "/run/app.sock of server[100]"),
        (Role.SERVER, "client[200], client of /run/app.sock"),
    ]


def test_a_pair_across_a_fork() -> None:
    script = Script().process(100)
    script.event(100, 100, Call.socketpair, Family.UNIX, SOCK_STREAM, 0, pair=(3, 4))
    script.fork(100, 101)
    script.event(100, 100, Call.close, fd=4)
    script.event(101, 101, Call.close, fd=3)
    assert [words for _, words in said(script.session())] == [
        "unix pair with server[101]",
        "unix pair with server[100]",
    ]


def test_others_have_addresses() -> None:
    script = Script(ports=(80,)).process(100)
    script.event(100, 100, Call.socket, Family.INET, SOCK_STREAM, 0, ret=3)
    script.event(100, 100, Call.connect, fd=3, sockaddr=address("10.0.0.1", 80))
    assert [words for _, words in said(script.session())] == [""]
