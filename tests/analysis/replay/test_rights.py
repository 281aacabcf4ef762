"""SCM_RIGHTS: what is received is what was sent."""

from __future__ import annotations

from sockscope.model.calls import Call
from sockscope.model.descriptors import How
from sockscope.model.seed import FileKind
from tests.analysis.builders import SOCK_STREAM, Script, unix_address
from tests.analysis.replay.test_replay import file_of, live, replayed

A, B = 100, 200
SUN = unix_address("/run/x.sock")


def pair() -> Script:
    """A has a socketpair (4, 5) and a connection 7; B is its fork."""
    script = Script().process(A)
    script.seed_fd(A, 3, inode=11)
    script.event(A, A, Call.socketpair, 1, SOCK_STREAM, pair=(4, 5))
    script.fork(A, B)
    script.event(A, A, Call.accept, fd=3, ret=7)
    return script


def test_through_a_socketpair() -> None:
    script = pair()
    script.event(A, A, Call.sendmsg, fd=4, ret=1, control=[7])
    script.event(A, A, Call.close, fd=7)
    flying = replayed(script)
    (file,) = [f for f in flying.open_files if f.in_flight]
    assert file.released_ns is None
    script.event(B, B, Call.recvmsg, 5, 0, 0x40000000, ret=1, control=[6])
    replay = replayed(script)
    received = live(replay, B)[6]
    assert (received.how, received.cloexec, received.open_file) == (How.SCM_RIGHTS, True, file.id)
    assert replay.descriptors[received.source].fd == 7
    assert replay.open_files[file.id].in_flight == 0


def test_the_receiver_may_return_before_the_sender() -> None:
    script = pair()
    script.event(A, A, Call.sendmsg, fd=4, ret=1, at=50_000_000, took=9_000_000, control=[7])
    script.event(B, B, Call.recvmsg, fd=5, ret=1, at=40_000_000, took=12_000_000, control=[6])
    replay = replayed(script)
    assert file_of(replay, B, 6) is file_of(replay, A, 7)


def test_two_messages_keep_their_order() -> None:
    script = pair()
    script.event(A, A, Call.accept, fd=3, ret=8)
    script.event(A, A, Call.sendmsg, fd=4, ret=1, control=[7])
    script.event(A, A, Call.sendmsg, fd=4, ret=1, control=[8])
    script.event(B, B, Call.recvmsg, fd=5, ret=1, control=[10])
    script.event(B, B, Call.recvmsg, fd=5, ret=1, control=[11])
    replay = replayed(script)
    assert file_of(replay, B, 10) is file_of(replay, A, 7)
    assert file_of(replay, B, 11) is file_of(replay, A, 8)


def test_nobody_left_to_receive() -> None:
    script = pair()
    script.event(A, A, Call.sendmsg, fd=4, ret=1, control=[7])
    script.event(A, A, Call.close, fd=7)
    script.event(A, A, Call.close, fd=5)
    script.event(B, B, Call.close, fd=5)
    replay = replayed(script)
    passed = next(f for f in replay.open_files if f.listener == 0)
    assert passed.in_flight == 0
    assert passed.released_ns is not None


def test_through_a_connected_socket() -> None:
    script = Script().process(A).process(B)
    script.event(A, A, Call.socket, 1, SOCK_STREAM, ret=3)
    script.event(A, A, Call.bind, fd=3, sockaddr=SUN)
    script.event(A, A, Call.listen, fd=3)
    script.event(B, B, Call.socket, 1, SOCK_STREAM, ret=3)
    script.event(B, B, Call.connect, fd=3, sockaddr=SUN)
    script.event(A, A, Call.accept, fd=3, ret=4)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=5)
    script.event(A, A, Call.sendmsg, fd=4, ret=1, control=[5])
    script.event(B, B, Call.recvmsg, fd=3, ret=1, control=[9])
    replay = replayed(script)
    assert file_of(replay, B, 9) is file_of(replay, A, 5)
    assert replay.peer_of(file_of(replay, B, 3).id) == file_of(replay, A, 4).id


def test_between_sockets_nobody_saw_connected() -> None:
    script = Script().process(A).process(B)
    script.seed_fd(A, 4, inode=40)
    script.seed_fd(B, 4, inode=41)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=5)
    script.event(A, A, Call.sendmsg, fd=4, ret=1, control=[5])
    script.event(B, B, Call.recvmsg, fd=4, ret=1, control=[9])
    replay = replayed(script)
    assert file_of(replay, B, 9) is file_of(replay, A, 5)
    assert replay.peer_of(0) == 1


def test_from_a_stranger() -> None:
    script = Script().process(A)
    script.seed_fd(A, 4, inode=40)
    script.event(A, A, Call.recvmsg, fd=4, ret=1, control=[9, 10])
    replay = replayed(script)
    file = file_of(replay, A, 9)
    assert (file.kind, file.witnessed) == (FileKind.OTHER, False)
    assert live(replay, A)[10].how == How.SCM_RIGHTS


def test_sent_away_to_a_stranger_stays_held() -> None:
    script = Script().process(A)
    script.seed_fd(A, 3, inode=11)
    script.seed_fd(A, 4, inode=40)
    script.event(A, A, Call.accept, fd=3, ret=7)
    script.event(A, A, Call.sendmsg, fd=4, ret=1, control=[7])
    script.event(A, A, Call.close, fd=7)
    replay = replayed(script)
    passed = next(f for f in replay.open_files if f.listener == 0)
    assert (passed.in_flight, passed.released_ns) == (1, None)
