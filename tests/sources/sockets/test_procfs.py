from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.seed import FileKind
from sockscope.sources.sockets import procfs

STAT = b"812 (a) b (c) S 1 812 812 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1\n"
EPOLL = (
    b"pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t2059\n"
    b"tfd:        5 events: 80000019 data:                5  pos:0 ino:81abc sdev:8\n"
    b"tfd:       12 events:       1b data: ffffffff0000000c  pos:0 ino:81abd sdev:8\n"
)


def test_a_comm_with_parentheses() -> None:
    stat = procfs.parse_stat(STAT)
    assert stat is not None
    assert (stat.comm, stat.state, stat.ppid, stat.start_ticks) == ("a) b (c", "S", 1, 12345)


@given(st.binary(max_size=200))
def test_noise_is_no_stat_and_no_error(data: bytes) -> None:
    procfs.parse_stat(data)
    procfs.parse_interests(data)
    procfs.parse_flags(data)
    procfs.parse_ns_tgid(data)


@given(st.integers(0, len(STAT)))
def test_a_cut_stat(length: int) -> None:
    procfs.parse_stat(STAT[:length])


def test_interests_with_edge_trigger() -> None:
    one, other = procfs.parse_interests(EPOLL)
    assert (one.fd, one.events, one.data, one.inode) == (5, 0x80000019, 5, 0x81ABC)
    assert (other.fd, other.events, other.data) == (12, 0x1B, 0xFFFFFFFF0000000C)


def test_interests_of_an_older_kernel_have_no_inode() -> None:
    (one,) = procfs.parse_interests(b"tfd:        5 events:       19 data:                5\n")
    assert (one.fd, one.events, one.inode) == (5, 0x19, 0)


def test_flags() -> None:
    flags = procfs.parse_flags(b"pos:\t0\nflags:\t02004002\nmnt_id:\t8\n")
    assert flags & procfs.O_CLOEXEC
    assert flags & procfs.O_NONBLOCK
    assert procfs.access_mode(flags) == 2
    assert procfs.parse_flags(b"") == 0


@pytest.mark.parametrize(
    ("link", "kind", "inode"),
    [
        ("socket:[4711]", FileKind.SOCKET, 4711),
        ("pipe:[12]", FileKind.PIPE, 12),
        ("anon_inode:[eventpoll]", FileKind.EPOLL, 0),
        ("anon_inode:[eventfd]", FileKind.EVENTFD, 0),
        ("anon_inode:[timerfd]", FileKind.TIMERFD, 0),
        ("anon_inode:[signalfd]", FileKind.SIGNALFD, 0),
        ("anon_inode:[io_uring]", FileKind.IO_URING, 0),
        ("anon_inode:[pidfd]", FileKind.PIDFD, 0),
        ("pidfd:[33]", FileKind.PIDFD, 0),
        ("/dev/shm/queue", FileKind.SHARED_MEMORY, 0),
        ("/memfd:x (deleted)", FileKind.SHARED_MEMORY, 0),
        ("/etc/passwd", FileKind.OTHER, 0),
        ("socket:[", FileKind.SOCKET, 0),
    ],
)
def test_kinds(link: str, kind: FileKind, inode: int) -> None:
    assert procfs.kind_of_link(link) == (kind, inode)


def test_namespaced_pid() -> None:
    assert procfs.parse_ns_tgid(b"Name:\tx\nNSpid:\t812\t7\n") == 7
    assert procfs.parse_ns_tgid(b"NSpid:\t812\n") is None
