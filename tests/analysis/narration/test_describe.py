from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.analysis.narration.describe import describe
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Section
from tests.analysis.hand import LOOPBACK, Made, sockaddr_in, table

AGAIN = -errno.EAGAIN
BUFFER = 0x7F0000001000


def epoll(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<IQ", events, data) for events, data in entries)


def pollfd(*entries: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<ihh", *entry) for entry in entries)


def linger(onoff: int, seconds: int) -> bytes:
    return struct.pack("<ii", onoff, seconds)


RIGHTS = struct.pack("<Qii", 20, 1, 1) + struct.pack("<i", 7) + bytes(4)
REQUEST = b"GET / HTTP/1.1\r\nHost: "

CASES: list[tuple[Made, str]] = [
    (
        Made(
            call=Call.accept4,
            args=(3, BUFFER, BUFFER, 0o2004000),
            ret=7,
            sections=((Section.SOCKADDR, sockaddr_in(LOOPBACK, 40112)),),
        ),
        'accept4(3, {sa_family=AF_INET, sin_port=htons(40112), sin_addr="127.0.0.1"}, SOCK_CLOEXEC|SOCK_NONBLOCK) = 7',
    ),
    (
        Made(call=Call.accept4, args=(3, 0, 0, 0), ret=AGAIN),
        "accept4(3, NULL, 0) = -1 EAGAIN (Resource temporarily unavailable)",
    ),
    (
        Made(call=Call.recvfrom, args=(7, BUFFER, 8192), ret=78, sections=((Section.PAYLOAD, REQUEST),)),
        'recvfrom(7, "GET / HTTP/1.1\\r\\nHost: "..., 8192, 0) = 78',
    ),
    (
        Made(call=Call.recvfrom, args=(7, BUFFER, 8192), ret=0),
        'recvfrom(7, "", 8192, 0) = 0',
    ),
    (
        Made(call=Call.sendto, args=(7, BUFFER, 3, 0x4000), ret=3, sections=((Section.PAYLOAD, b"a\x001"),)),
        'sendto(7, "a\\0001", 3, MSG_NOSIGNAL) = 3',
    ),
    (
        Made(
            call=Call.epoll_wait,
            args=(5, BUFFER, 512, -1),
            ret=1,
            sections=((Section.EPOLL_EVENTS, epoll((0x2001, 7))),),
        ),
        "epoll_wait(5, [{EPOLLIN|EPOLLRDHUP, fd/data=7}], 512, -1) = 1",
    ),
    (
        Made(call=Call.epoll_wait, args=(5, BUFFER, 512, 500)),
        "epoll_wait(5, [], 512, 500) = 0",
    ),
    (
        Made(
            call=Call.epoll_ctl,
            args=(5, 1, 7, BUFFER),
            sections=((Section.EPOLL_EVENTS, epoll((0x80000001, 0x7F00DEADBEEF))),),
        ),
        "epoll_ctl(5, EPOLL_CTL_ADD, 7, {EPOLLIN|EPOLLET, data=0x7f00deadbeef}) = 0",
    ),
    (Made(call=Call.epoll_ctl, args=(5, 2, 7, 0)), "epoll_ctl(5, EPOLL_CTL_DEL, 7, NULL) = 0"),
    (
        Made(call=Call.poll, args=(BUFFER, 1, 500), sections=((Section.POLLFDS, pollfd((3, 1, 0))),)),
        "poll([{fd=3, events=POLLIN}], 1, 500) = 0 (timeout)",
    ),
    (
        Made(call=Call.poll, args=(BUFFER, 1, -1), ret=1, sections=((Section.POLLFDS, pollfd((3, 1, 0x11))),)),
        "poll([{fd=3, events=POLLIN}], 1, -1) = 1 ([{fd=3, revents=POLLIN|POLLHUP}])",
    ),
    (
        Made(
            call=Call.select,
            args=(5, BUFFER, 0, 0, BUFFER),
            ret=1,
            sections=(
                (Section.FDSETS_IN, struct.pack("<3Q", 0b11000, 0, 0)),
                (Section.FDSETS, struct.pack("<3Q", 0b01000, 0, 0)),
                (Section.TIMEOUT, struct.pack("<qq", 1, 500000)),
            ),
        ),
        "select(5, [3 4], NULL, NULL, {tv_sec=1, tv_usec=500000}) = 1 (in [3])",
    ),
    (Made(call=Call.close, args=(7,)), "close(7) = 0"),
    (Made(call=Call.close, args=(7,), ret=-errno.EBADF), "close(7) = -1 EBADF (Bad file descriptor)"),
    (
        Made(call=Call.setsockopt, args=(3, 1, 2, BUFFER, 4), sections=((Section.OPTION, struct.pack("<i", 1)),)),
        "setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0",
    ),
    (
        Made(call=Call.setsockopt, args=(7, 1, 13, BUFFER, 8), sections=((Section.OPTION, linger(1, 0)),)),
        "setsockopt(7, SOL_SOCKET, SO_LINGER, {l_onoff=1, l_linger=0}, 8) = 0",
    ),
    (
        Made(call=Call.setsockopt, args=(7, 6, 1, BUFFER, 4), sections=((Section.OPTION, struct.pack("<i", 1)),)),
        "setsockopt(7, SOL_TCP, TCP_NODELAY, [1], 4) = 0",
    ),
    (
        Made(call=Call.setsockopt, args=(7, 1, 20, BUFFER, 16), sections=((Section.OPTION, struct.pack("<qq", 2, 5)),)),
        "setsockopt(7, SOL_SOCKET, SO_RCVTIMEO, {tv_sec=2, tv_usec=5}, 16) = 0",
    ),
    (
        Made(
            call=Call.getsockopt, args=(7, 1, 4, BUFFER, BUFFER), sections=((Section.OPTION, struct.pack("<i", 111)),)
        ),
        "getsockopt(7, SOL_SOCKET, SO_ERROR, [ECONNREFUSED], [4]) = 0",
    ),
    (Made(call=Call.fcntl, args=(7, 3), ret=0o4002), "fcntl(7, F_GETFL) = 0x802 (flags O_RDWR|O_NONBLOCK)"),
    (Made(call=Call.fcntl, args=(7, 4, 0o4002)), "fcntl(7, F_SETFL, O_RDWR|O_NONBLOCK) = 0"),
    (Made(call=Call.fcntl, args=(7, 1030, 10), ret=10), "fcntl(7, F_DUPFD_CLOEXEC, 10) = 10"),
    (
        Made(call=Call.ioctl, args=(7, 0x5421, BUFFER), sections=((Section.INT, struct.pack("<i", 1)),)),
        "ioctl(7, FIONBIO, [1]) = 0",
    ),
    (
        Made(call=Call.socket, args=(2, 0o2000001, 0), ret=3),
        "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3",
    ),
    (
        Made(call=Call.socketpair, args=(1, 1, 0, BUFFER), sections=((Section.FD_PAIR, struct.pack("<ii", 4, 5)),)),
        "socketpair(AF_UNIX, SOCK_STREAM, 0, [4, 5]) = 0",
    ),
    (
        Made(
            call=Call.sendmsg,
            args=(5, BUFFER, 0),
            ret=1,
            sections=((Section.PAYLOAD, b"x"), (Section.IOV_TOTAL, struct.pack("<Q", 1)), (Section.CONTROL, RIGHTS)),
        ),
        (
            'sendmsg(5, {msg_iov=[{iov_base="x"}, iov_total=1], msg_control=[{cmsg_level=SOL_SOCKET, '
            "cmsg_type=SCM_RIGHTS, cmsg_data=[7]}]}, 0) = 1"
        ),
    ),
    (
        Made(
            call=Call.writev,
            args=(7, BUFFER, 2),
            ret=238,
            sections=((Section.PAYLOAD, b"HTTP/1.1 200 OK\r\n"), (Section.IOV_TOTAL, struct.pack("<Q", 238))),
        ),
        'writev(7, [{iov_base="HTTP/1.1 200 OK\\r\\n"...}, iov_total=238], 2) = 238',
    ),
    (Made(call=Call.shutdown, args=(7, 1)), "shutdown(7, SHUT_WR) = 0"),
    (
        Made(call=Call.openat, args=(-100, BUFFER, 0o102, 0o600), ret=4, sections=((Section.PATH, b"/dev/shm/x"),)),
        'openat(AT_FDCWD, "/dev/shm/x", O_RDWR|O_CREAT, 0600) = 4',
    ),
    (
        Made(call=Call.wait4, args=(-1, BUFFER, 1, 0), ret=812, sections=((Section.INT, struct.pack("<I", 0)),)),
        "wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 0}], WNOHANG, NULL) = 812",
    ),
    (
        Made(call=Call.clone, args=(0x1200011, 0), ret=812),
        "clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD) = 812",
    ),
    (Made(call=Call.kill, args=(77, 15)), "kill(77, SIGTERM) = 0"),
    (
        Made(call=Call.accept, args=(3, 0, 0), flags=EventFlag.ENTERED_ONLY, exit_ns=-1),
        "accept(3, NULL <unfinished ...>",
    ),
    (
        Made(call=Call.accept, args=(3, 0, 0), ret=4, flags=EventFlag.NO_ENTRY, enter_ns=-1),
        "<... accept resumed>(3, NULL) = 4",
    ),
    (
        Made(call=Call.read, args=(3, 0, 10), ret=-512),
        "read(3, NULL, 10) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)",
    ),
    (Made(call=Call.exit_group, args=(3,), flags=EventFlag.ENTERED_ONLY), "exit_group(3) = ?"),
    (Made(call=Call.task_exit, args=(0,)), "exit status 0"),
    (Made(call=Call.task_exit, args=(0x8B,)), "killed by SIGSEGV, core dumped"),
    (Made(call=Call.task_signal, args=(15, 0, 77)), "SIGTERM delivered (from pid 77)"),
    (Made(call=Call.task_signal, args=(17, 1, 812)), "SIGCHLD delivered (child 812 exited)"),
    (Made(call=Call.task_new, args=(812, 77, 0x3D0F00)), "new thread 812"),
    (Made(call=Call.task_new, args=(812, 812, 0)), "new process 812"),
    (Made(call=Call.task_exec, args=(77,), sections=((Section.PATH, b"/usr/bin/x"),)), "exec /usr/bin/x"),
    (Made(call=199, args=(1,)), "syscall_199(0x1, 0x0, 0x0, 0x0, 0x0, 0x0) = 0"),
    (
        Made(call=Call.accept4, args=(3, 0, 0, 0x40000000 | 0o4000), ret=4),
        "accept4(3, NULL, SOCK_NONBLOCK|0x40000000) = 4",
    ),
    (
        Made(
            call=Call.connect,
            args=(3, BUFFER, 110),
            sections=((Section.SOCKADDR, struct.pack("<H", 1) + b"/run/x.sock\0"),),
        ),
        'connect(3, {sa_family=AF_UNIX, sun_path="/run/x.sock"}, 110) = 0',
    ),
]


@pytest.mark.parametrize(("made", "expected"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_in_straces_notation(made: Made, expected: str) -> None:
    assert describe(table(made), 0) == expected


def test_an_int_argument_ignores_the_upper_half_of_its_register() -> None:
    assert describe(table(Made(call=Call.close, args=(0xDEAD0000FFFFFFFF,), ret=-errno.EBADF)), 0).startswith(
        "close(-1)"
    )


def test_no_payload_means_the_pointer_is_shown() -> None:
    assert describe(table(Made(call=Call.write, args=(1, 0x5000, 10), ret=10)), 0) == "write(1, 0x5000, 10) = 10"


U64 = st.integers(0, 2**64 - 1)
SMALL = st.one_of(st.integers(0, 16), U64)
SECTIONS = st.lists(st.tuples(st.sampled_from(Section), st.binary(max_size=80)), max_size=6)


@settings(max_examples=400, deadline=None)
@given(
    call=st.one_of(st.sampled_from(Call), st.integers(0, 0xFFFF)),
    args=st.tuples(SMALL, SMALL, SMALL, SMALL, SMALL, SMALL),
    ret=st.one_of(st.integers(-600, 100), st.integers(-(2**63), 2**63 - 1)),
    flags=st.integers(0, 63),
    sections=SECTIONS,
    noise=st.one_of(st.none(), st.binary(max_size=60)),
)
def test_never_raises(
    call: int,
    args: tuple[int, ...],
    ret: int,
    flags: int,
    sections: list[tuple[Section, bytes]],
    noise: bytes | None,
) -> None:
    events = table(Made(call=call, args=args, ret=ret, flags=flags, sections=tuple(sections), raw_blob=noise))
    text = describe(events, 0)
    assert text
    assert "\n" not in text


@settings(max_examples=300, deadline=None)
@given(call=st.sampled_from([c for c in Call if c]), section=st.sampled_from(Section), data=st.binary(max_size=64))
def test_every_call_with_each_section_cut_anywhere(call: Call, section: Section, data: bytes) -> None:
    assert describe(table(Made(call=call, args=(3, 4096, 5, 4096, 4096, 0), ret=3, sections=((section, data),))), 0)
