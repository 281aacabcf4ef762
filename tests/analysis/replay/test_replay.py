"""What Linux does to descriptors, one rule a test."""

from __future__ import annotations

import pytest

from sockscope.analysis.replay.order import replay_order
from sockscope.analysis.replay.replay import Replay
from sockscope.model.calls import Call
from sockscope.model.descriptors import Descriptor, Ended, How, OpenFile
from sockscope.model.events import EventFlag
from sockscope.model.seed import FileKind
from tests.analysis.builders import (
    EPOLLET,
    EPOLLIN,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    START_NS,
    Script,
    address,
)

CLIENT = address("10.0.0.9", 40000)
SERVER = address("10.0.0.1", 80)
A, B = 100, 200


@pytest.fixture
def script() -> Script:
    made = Script().process(A)
    made.seed_fd(A, 3, inode=11)
    return made


def replayed(script: Script) -> Replay:
    events = script.events()
    order, effective_ns = replay_order(events)
    replay = Replay(script.seed())
    replay.feed(events, order, effective_ns=effective_ns)
    return replay


def live(replay: Replay, tid: int) -> dict[int, Descriptor]:
    table = replay.tables[replay.task_table[tid]]
    return {fd: replay.descriptors[d] for fd, d in table.live.items()}


def file_of(replay: Replay, tid: int, fd: int) -> OpenFile:
    return replay.open_files[live(replay, tid)[fd].open_file]


def test_accept_knows_its_listener_and_both_addresses(script: Script) -> None:
    script.event(A, A, Call.bind, fd=3, sockaddr=SERVER)
    script.event(A, A, Call.listen, fd=3)
    accepted = script.event(A, A, Call.accept4, 3, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK, ret=7, sockaddr=CLIENT)
    replay = replayed(script)
    file = file_of(replay, A, 7)
    assert (file.local, file.peer, file.listener, file.created_event) == (SERVER, CLIENT, 0, accepted)
    assert file.nonblock is True
    assert file.witnessed
    assert live(replay, A)[7].cloexec
    assert replay.open_files[0].listening


def test_a_wildcard_listener_does_not_say_the_local_address(script: Script) -> None:
    script.event(A, A, Call.bind, fd=3, sockaddr=address("0.0.0.0", 80))
    script.event(A, A, Call.accept, fd=3, ret=7, sockaddr=CLIENT)
    assert file_of(replayed(script), A, 7).local is None


def test_fork_copies_and_the_file_lives_until_the_last_close(script: Script) -> None:
    script.event(A, A, Call.accept, fd=3, ret=7)
    script.fork(A, B)
    script.event(A, A, Call.close, fd=7)
    still = replayed(script)
    assert file_of(still, B, 7).released_ns is None
    copy = live(still, B)[7]
    assert copy.how == How.FORK
    assert still.descriptors[copy.source].ended == Ended.CLOSE
    closed = script.event(B, B, Call.close, fd=7)
    ended = replayed(script).open_files[1]
    assert ended.released_ns == int(script.events().records["enter_ns"][closed])


def test_threads_share_and_vfork_copies(script: Script) -> None:
    script.thread(A, 101)
    script.event(A, 101, Call.socket, 2, SOCK_STREAM, ret=4)
    script.fork(A, B, flags=0x4100)  # CLONE_VM | CLONE_VFORK
    script.event(B, B, Call.close, fd=4)
    replay = replayed(script)
    assert replay.task_table[A] == replay.task_table[101]
    assert 4 in live(replay, A)
    assert 4 not in live(replay, B)


def test_a_process_that_shares_its_files_table(script: Script) -> None:
    script.fork(A, B, flags=0x400)
    script.event(B, B, Call.socket, 2, SOCK_STREAM, ret=4)
    script.exit(A)
    replay = replayed(script)
    assert live(replay, B).keys() == {3, 4}
    assert replay.tables[0].tgids == [A, B]


def test_exec_closes_what_is_marked_and_parts_a_shared_table(script: Script) -> None:
    script.event(A, A, Call.socket, 2, SOCK_STREAM | SOCK_CLOEXEC, ret=4)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=5)
    script.event(A, A, Call.fcntl, 5, 2, 1)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=6)
    script.fork(A, B, flags=0x400)
    done = script.exec(B, path="/bin/helper", comm="helper")
    replay = replayed(script)
    assert live(replay, A).keys() == {3, 4, 5, 6}
    assert live(replay, B).keys() == {3, 6}
    assert live(replay, B)[6].how == How.UNSHARE
    process = replay.processes[B]
    assert (process.comm, process.exe, process.execs) == ("helper", "/bin/helper", [done])


def test_exec_by_another_thread_than_the_leader(script: Script) -> None:
    script.thread(A, 101)
    script.event(A, A, Call.socket, 2, SOCK_STREAM | SOCK_CLOEXEC, ret=4)
    script.exec(A, tid=101)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=4)
    replay = replayed(script)
    assert replay.task_table.keys() == {A}
    assert replay.processes[A].tids == {A}
    assert live(replay, A)[4].how == How.SOCKET
    assert [d.ended for d in replay.descriptors if d.fd == 4] == [Ended.EXEC, None]


def test_the_last_thread_ends_the_table(script: Script) -> None:
    script.thread(A, 101)
    script.exit(A, status=0)
    assert 3 in live(replayed(script), 101)
    script.exit(A, 101, status=9)
    replay = replayed(script)
    assert replay.tables[0].ended_ns == replay.open_files[0].released_ns is not None
    assert replay.descriptors[0].ended == Ended.EXIT
    assert replay.processes[A].exit_status == 9
    assert not replay.task_table


def test_dup2_over_a_live_number(script: Script) -> None:
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=4)
    script.event(A, A, Call.dup2, 3, 4, ret=4)
    replay = replayed(script)
    assert file_of(replay, A, 4) is file_of(replay, A, 3)
    assert replay.descriptors[1].ended == Ended.REPLACED
    assert replay.open_files[1].released_ns is not None


def test_dup_to_itself_changes_nothing(script: Script) -> None:
    script.event(A, A, Call.dup2, 3, 3, ret=3)
    assert len(replayed(script).descriptors) == 1


def test_nonblock_belongs_to_the_file_cloexec_to_the_number(script: Script) -> None:
    script.event(A, A, Call.fcntl, 3, 1030, 0, ret=4)
    script.event(A, A, Call.ioctl, 4, 0x5421, value=1)
    script.event(A, A, Call.ioctl, 4, 0x5450)
    script.event(A, A, Call.ioctl, 3, 0x5451)
    replay = replayed(script)
    assert replay.open_files[0].nonblock is True
    assert live(replay, A)[3].cloexec
    assert not live(replay, A)[4].cloexec
    script.event(A, A, Call.fcntl, 3, 4, 0)
    assert replayed(script).open_files[0].nonblock is False


def test_an_epoll_interest_lives_as_long_as_the_file(script: Script) -> None:
    script.event(A, A, Call.epoll_create1, ret=5)
    script.event(A, A, Call.accept, fd=3, ret=7)
    script.event(A, A, Call.epoll_ctl, 5, 1, 7, epoll=[(EPOLLIN | EPOLLET, 77)])
    script.event(A, A, Call.dup, fd=7, ret=8)
    script.event(A, A, Call.close, fd=7)
    (interest,) = replayed(script).interests
    assert (interest.fd, interest.events, interest.data, interest.removed_ns) == (7, EPOLLIN | EPOLLET, 77, None)
    script.event(A, A, Call.close, fd=8)
    assert replayed(script).interests[0].removed_ns is not None


def test_epoll_mod_and_del(script: Script) -> None:
    script.event(A, A, Call.epoll_create1, ret=5)
    script.event(A, A, Call.epoll_ctl, 5, 1, 3, epoll=[(EPOLLIN, 1)])
    script.event(A, A, Call.epoll_ctl, 5, 3, 3, epoll=[(EPOLLET, 2)])
    script.event(A, A, Call.epoll_ctl, 5, 2, 3)
    script.event(A, A, Call.epoll_ctl, 5, 1, 3, epoll=[(EPOLLIN, 3)])
    first, second = replayed(script).interests
    assert (first.events, first.data) == (EPOLLET, 2)
    assert first.removed_ns is not None
    assert second.removed_ns is None


def test_the_seed_knows_interests_and_shared_files() -> None:
    script = Script().process(A).process(B, ppid=A)
    for tgid in (A, B):
        script.seed_fd(tgid, 3, inode=11, open_file=1)
        script.seed_fd(tgid, 4, kind=FileKind.EPOLL, open_file=10 + tgid)
        script.seed_epoll(tgid, 4, 3, EPOLLIN | EPOLLET, inode=11)
    replay = replayed(script)
    assert file_of(replay, A, 3) is file_of(replay, B, 3)
    assert [(i.epoll, i.open_file, i.added_event) for i in replay.interests] == [(1, 0, -1), (2, 0, -1)]


def test_a_process_of_the_seed_that_shares_its_table() -> None:
    script = Script().process(A).process(B, shares_files_with=A)
    for tgid in (A, B):
        script.seed_fd(tgid, 3, inode=11, open_file=1)
    script.event(B, B, Call.close, fd=3)
    replay = replayed(script)
    assert replay.task_table == {A: 0, B: 0}
    assert replay.open_files[0].released_ns is not None


def test_what_the_snapshot_saw_and_the_tracer_too_is_one_thing() -> None:
    script = Script().process(A)
    script.seed_fd(A, 3, inode=11)
    script.seed_fd(A, 7, inode=70, at=5_000_000)
    script.event(A, A, Call.accept, fd=3, ret=7, at=1_000_000, sockaddr=CLIENT)
    replay = replayed(script)
    assert len(replay.descriptors) == 2
    assert live(replay, A)[7].how == How.ACCEPT
    assert (file_of(replay, A, 7).inode, file_of(replay, A, 7).peer) == (70, CLIENT)
    # Closed and made again before the snapshot came to it: the inode is the last one's.
    script.event(A, A, Call.close, fd=7, at=2_000_000)
    script.event(A, A, Call.accept, fd=3, ret=7, at=3_000_000)
    replay = replayed(script)
    assert [f.inode for f in replay.open_files] == [11, 0, 70]


def test_close_before_the_snapshot_saw_the_number_again() -> None:
    script = Script().process(A)
    script.seed_fd(A, 7, inode=70, at=5_000_000)
    script.event(A, A, Call.close, fd=7, at=1_000_000)
    assert live(replayed(script), A)[7].closed_ns is None


def test_a_missed_close_shows_when_the_number_comes_again(script: Script) -> None:
    script.event(A, A, Call.accept, fd=3, ret=7)
    script.event(A, A, Call.accept, fd=3, ret=7)
    replay = replayed(script)
    assert [d.ended for d in replay.descriptors] == [None, Ended.REUSED, None]


def test_a_missed_beginning_is_inferred_from_what_succeeds(script: Script) -> None:
    script.event(A, A, Call.listen, fd=9)
    script.event(A, A, Call.close, fd=10)
    script.event(A, A, Call.listen, fd=12, ret=-88)
    script.event(A, A, Call.close, fd=13, ret=-9)
    replay = replayed(script)
    assert live(replay, A).keys() == {3, 9}
    assert live(replay, A)[9].how == How.INFERRED
    assert file_of(replay, A, 9).listening
    assert [d.fd for d in replay.descriptors if d.how == How.INFERRED] == [9, 10]


def test_failed_and_unfinished_calls_make_nothing(script: Script) -> None:
    script.event(A, A, Call.accept4, fd=3, ret=-11)
    script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=-24)
    script.event(A, A, Call.accept4, fd=3, flags=EventFlag.ENTERED_ONLY)
    assert len(replayed(script).descriptors) == 1


def test_a_blocked_call_names_what_it_was_called_on(script: Script) -> None:
    script.thread(A, 101)
    accept = script.event(A, A, Call.accept, fd=3, ret=7, at=2_000_000, took=9_000_000)
    script.event(A, 101, Call.close, fd=3, at=3_000_000)
    script.event(A, 101, Call.socket, 2, SOCK_STREAM, ret=3, at=4_000_000)
    replay = replayed(script)
    assert replay.touched.tolist()[-2:] == [accept, 0]
    assert file_of(replay, A, 7).listener == 0


def test_connect_begun_is_a_peer_connect_refused_is_not(script: Script) -> None:
    for fd, ret in ((4, -115), (5, -111), (6, 0)):
        script.event(A, A, Call.socket, 2, SOCK_STREAM, ret=fd)
        script.event(A, A, Call.connect, fd=fd, ret=ret, sockaddr=SERVER)
    replay = replayed(script)
    assert [file_of(replay, A, fd).peer for fd in (4, 5, 6)] == [SERVER, None, SERVER]


def test_other_files_have_their_kinds(script: Script) -> None:
    script.event(A, A, Call.eventfd2, 0, 0o2000000, ret=4)
    script.event(A, A, Call.timerfd_create, ret=5)
    script.event(A, A, Call.signalfd4, -1, ret=6)
    script.event(A, A, Call.signalfd4, 6, ret=6)
    script.event(A, A, Call.pipe2, 0, 0o4000, pair=(7, 8))
    script.event(A, A, Call.openat, -100, ret=9, path="/dev/shm/segment")
    script.event(A, A, Call.openat, -100, ret=10, path="/etc/hosts")
    script.event(A, A, Call.io_uring_setup, ret=11)
    replay = replayed(script)
    kinds = [file_of(replay, A, fd).kind for fd in range(4, 12)]
    assert kinds == [
        FileKind.EVENTFD,
        FileKind.TIMERFD,
        FileKind.SIGNALFD,
        FileKind.PIPE,
        FileKind.PIPE,
        FileKind.SHARED_MEMORY,
        FileKind.OTHER,
        FileKind.IO_URING,
    ]
    assert live(replay, A)[4].cloexec


def test_pidfd_getfd_takes_the_very_file(script: Script) -> None:
    script.fork(A, B)
    script.event(A, A, Call.accept, fd=3, ret=7)
    script.event(B, B, Call.pidfd_open, A, ret=5)
    script.event(B, B, Call.pidfd_getfd, 5, 7, ret=6)
    replay = replayed(script)
    assert file_of(replay, B, 6) is file_of(replay, A, 7)
    assert live(replay, B)[6].how == How.PIDFD_GETFD


def test_strangers_are_taken_in(script: Script) -> None:
    script.event(A, 150, Call.socket, 2, SOCK_STREAM, ret=4)
    script.event(B, B, Call.socket, 2, SOCK_STREAM, ret=4)
    replay = replayed(script)
    assert replay.task_table[150] == replay.task_table[A]
    assert replay.tables[replay.task_table[B]].tgids == [B]
    assert replay.processes[B].comm == "?"


def test_a_birth_that_the_snapshot_saw_too() -> None:
    script = Script().process(A).process(B, ppid=1)
    script.seed_fd(A, 3, inode=11, open_file=1, at=9_000_000)
    script.seed_fd(B, 3, inode=11, open_file=1, at=9_000_000)
    born = script.fork(A, B, at=1_000_000)
    replay = replayed(script)
    assert len(replay.tables) == 2
    assert replay.tables[1].forked_from == 0
    assert (replay.processes[B].start_event, replay.processes[B].started_ns) == (born, START_NS + 1_000_000)
