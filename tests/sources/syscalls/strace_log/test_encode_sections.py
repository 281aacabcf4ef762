"""What is copied beside the arguments: the bytes of the structures, from every notation of them."""

from __future__ import annotations

import socket
import struct

import pytest

from sockscope.model.events import Section
from tests.sources.syscalls.strace_log.encoding import of, section, sections


def inet(port: int, host: str) -> bytes:
    return struct.pack("<H", 2) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def inet6(port: int, host: str, flow: int = 0, scope: int = 0) -> bytes:
    head = struct.pack("<H", 10) + struct.pack("!HI", port, flow)
    return head + socket.inet_pton(socket.AF_INET6, host) + struct.pack("<I", scope)


ADDRESSES = [
    ('{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3.4")}, 16', inet(80, "1.2.3.4")),
    ('{sa_family=0x2, sin_port="\\x00\\x50", sin_addr="\\x01\\x02\\x03\\x04"}, 16', inet(80, "1.2.3.4")),
    (
        '{sa_family=0x2 /* AF_INET */, sin_port="\\x00\\x50" /* htons(80) */, sin_addr="\\1\\2\\3\\4" /* x */}, 16',
        inet(80, "1.2.3.4"),
    ),
    (
        (
            '{sa_family=AF_INET6, sin6_port=htons(80), inet_pton(AF_INET6, "::1", &sin6_addr), sin6_flowinfo=htonl(7), '
            "sin6_scope_id=2}, 28"
        ),
        inet6(80, "::1", 7, 2),
    ),
    (
        (
            '{sa_family=AF_INET6, sin6_port=htons(80), inet_pton(AF_INET6, "fe80::1", &sin6_addr), sin6_flowinfo=0, '
            'sin6_scope_id=if_nametoindex("eth0")}, 28'
        ),
        inet6(80, "fe80::1"),
    ),
    ('{sa_family=AF_UNIX, sun_path="/a b"}, 110', b"\1\0/a b".ljust(110, b"\0")),
    ('{sa_family=AF_LOCAL, sun_path="/a b"}, 7', b"\1\0/a b\0"),
    ('{sa_family=AF_UNIX, sun_path=@"x\\1y"}, 6', b"\1\0\0x\1y"),
    ('{sa_family=AF_FILE, path=@"x"}, 4', b"\1\0\0x"),
    ("{sa_family=AF_UNIX}, 2", b"\1\0"),
    ('{sa_family=AF_UNSPEC, sa_data="\\1\\2"}, 16', b"\0\0\1\2".ljust(16, b"\0")),
    ("{sa_family=AF_NETLINK, nl_pid=5, nl_groups=0x000003}, 12", struct.pack("<HHII", 16, 0, 5, 3)),
    ("{sa_family=AF_NETLINK, pid=5, groups=00000000}, 12", struct.pack("<HHII", 16, 0, 5, 0)),
    ("{sa_family=AF_VSOCK, svm_cid=3, svm_port=9}, 16", struct.pack("<HHII", 40, 0, 9, 3) + bytes(4)),
    ("0x7ffe, 16", None),
    ("NULL, 0", None),
]


@pytest.mark.parametrize(("text", "raw"), ADDRESSES)
def test_addresses(text: str, raw: bytes | None) -> None:
    assert section(f"bind(3, {text}) = 0", Section.SOCKADDR) == raw


@pytest.mark.parametrize("lengths", ["[16]", "[128->16]", "[128 => 16]", "[0x10]"])
def test_addresses_that_come_back(lengths: str) -> None:
    shown = '{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3.4")}'
    assert section(f"accept(3, {shown}, {lengths}) = 4", Section.SOCKADDR) == inet(80, "1.2.3.4")
    assert section("accept(3, {sa_family=AF_UNIX}, [110->2]) = 4", Section.SOCKADDR) == b"\1\0"
    assert section("accept(3, NULL, NULL) = 4", Section.SOCKADDR) is None
    assert section(f"accept(3, 0x7ffe, {lengths}) = -1 EAGAIN (x)", Section.SOCKADDR) is None


@pytest.mark.parametrize(
    ("line", "payload"),
    [
        ('read(3, "a\\tb\\n\\"\\\\\\0\\0019\\377", 64) = 11', b'a\tb\n"\\\0\x019\xff'),
        ('read(3, "\\x61\\x62\\x0a", 64) = 3', b"ab\n"),
        ('read(3, "a\\x0ab", 64) = 3', b"a\nb"),
        ('read(3, "", 64) = 0', None),
        ('write(3, "abcdef", 6) = 2', b"ab"),
        ('write(3, "abcdef", 6) = -1 EAGAIN (x)', b"abcdef"),
        ('sendto(3, "abc", 3, MSG_NOSIGNAL, NULL, 0) = 3', b"abc"),
        ('recvfrom(3, "abc", 9, 0, NULL, NULL) = 3', b"abc"),
        ('writev(3, [{iov_base="", iov_len=0}, {iov_base="bc", iov_len=2}], 2) = 2', b"bc"),
        ('writev(3, [{"", 0}, {"bc", 2}], 2) = 2', b"bc"),
        ('readv(3, [{iov_base="ab", iov_len=4}, {iov_base="", iov_len=9}], 2) = 2', b"ab"),
        ("readv(3, [{iov_base=0x70, iov_len=4}], 1) = -1 EAGAIN (x)", None),
    ],
)
def test_payloads(line: str, payload: bytes | None) -> None:
    assert section(line, Section.PAYLOAD) == payload


def test_iovec_totals() -> None:
    assert section('writev(3, [{"a", 1}, {"bc", 2}], 2) = 3', Section.IOV_TOTAL) == struct.pack("<Q", 3)
    assert section('writev(3, [{iov_base="a", iov_len=1}, ...], 9) = 30', Section.IOV_TOTAL) is None


RIGHTS = struct.pack("<Qiiii", 24, 1, 1, 5, 6)
MESSAGES = [
    (
        '{msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="take", iov_len=4}], msg_control=[{cmsg_len=24, '
        "cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, cmsg_data=[5<socket:[1]>, 6]}], msg_controllen=24, "
        "msg_flags=MSG_CTRUNC}"
    ),
    (
        '{msg_name(0)=NULL, msg_iov(1)=[{"take", 4}], msg_controllen=24, {cmsg_len=24, cmsg_level=SOL_SOCKET, '
        "cmsg_type=SCM_RIGHTS, {5, 6}}, msg_flags=MSG_CTRUNC}"
    ),
    (
        '{msg_name(0)=NULL, msg_iov(1)=[{"take", 4}], msg_controllen=24, [{cmsg_len=24, cmsg_level=SOL_SOCKET, '
        "cmsg_type=SCM_RIGHTS, [5, 6]}], msg_flags=MSG_CTRUNC}"
    ),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages(message: str) -> None:
    assert sections(of(f"recvmsg(3, {message}, 0) = 4")) == {
        Section.IOV_TOTAL: struct.pack("<Q", 4),
        Section.PAYLOAD: b"take",
        Section.CONTROL: RIGHTS,
        Section.MSG_FLAGS: struct.pack("<I", 8),
    }


def test_messages_with_an_address() -> None:
    shown = '{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3.4")}'
    new = f"sendmsg(3, {{msg_name={shown}, msg_namelen=16, msg_iov=[], msg_iovlen=0, msg_flags=0}}, 0) = 0"
    old = f"sendmsg(3, {{msg_name(16)={shown}, msg_iov(0)=NULL, msg_controllen=0, msg_flags=0}}, 0) = 0"
    assert section(new, Section.SOCKADDR) == section(old, Section.SOCKADDR) == inet(80, "1.2.3.4")
    gone = f"recvmsg(3, {{msg_name={shown}, msg_namelen=16 => 0, msg_iov=[], msg_iovlen=0, msg_flags=0}}, 0) = 0"
    assert section(gone, Section.SOCKADDR) is None


@pytest.mark.parametrize(
    "messages",
    [
        (
            '[{msg_hdr={msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="one", iov_len=3}], msg_flags=0}, '
            'msg_len=3}, {msg_hdr={msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="two!", iov_len=4}], '
            "msg_flags=0}, msg_len=4}]"
        ),
        (
            '[{{msg_name(0)=NULL, msg_iov(1)=[{"one", 3}], msg_flags=0}, 3}, '
            '{{msg_name(0)=NULL, msg_iov(1)=[{"two!", 4}], msg_flags=0}, 4}]'
        ),
    ],
)
def test_many_messages(messages: str) -> None:
    assert sections(of(f"sendmmsg(3, {messages}, 2, MSG_NOSIGNAL) = 2")) == {
        Section.MMSG_LENS: struct.pack("<II", 3, 4),
        Section.IOV_TOTAL: struct.pack("<Q", 3),
        Section.PAYLOAD: b"one",
    }


@pytest.mark.parametrize(
    ("line", "raw"),
    [
        ("setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0", struct.pack("<i", 1)),
        ("setsockopt(3, 0x1, 0x2, [1], 4) = 0", struct.pack("<i", 1)),
        ("setsockopt(3, SOL_SOCKET, SO_LINGER, {l_onoff=1, l_linger=0}, 8) = 0", struct.pack("<ii", 1, 0)),
        ("setsockopt(3, SOL_SOCKET, SO_LINGER, {l_onoff=ON, l_linger=5}, 8) = 0", struct.pack("<ii", 1, 5)),
        ("setsockopt(3, SOL_SOCKET, SO_LINGER, {onoff=1, linger=5}, 8) = 0", struct.pack("<ii", 1, 5)),
        ("setsockopt(3, SOL_SOCKET, SO_RCVTIMEO, {tv_sec=1, tv_usec=5}, 16) = 0", struct.pack("<qq", 1, 5)),
        (
            'setsockopt(3, SOL_SOCKET, SO_RCVTIMEO_OLD, "\\1\\0\\0\\0\\0\\0\\0\\0\\5\\0\\0\\0\\0\\0\\0\\0", 16) = 0',
            struct.pack("<qq", 1, 5),
        ),
        ("setsockopt(3, SOL_SOCKET, SO_RCVTIMEO, {1, 5}, 16) = 0", struct.pack("<qq", 1, 5)),
        ("getsockopt(3, SOL_SOCKET, SO_ERROR, [ECONNREFUSED], [4]) = 0", struct.pack("<i", 111)),
        ("getsockopt(3, SOL_SOCKET, SO_ERROR, [0], [4->4]) = 0", struct.pack("<i", 0)),
        ("getsockopt(3, SOL_SOCKET, SO_TYPE, [SOCK_STREAM], [4]) = 0", struct.pack("<i", 1)),
        ("getsockopt(3, SOL_SOCKET, SO_COOKIE, [5], [8]) = 0", struct.pack("<q", 5)),
        ("getsockopt(3, SOL_SOCKET, SO_PEERCRED, {pid=5, uid=6, gid=-1}, [12]) = 0", struct.pack("<iii", 5, 6, -1)),
        ('setsockopt(3, SOL_TCP, TCP_CONGESTION, "bbr", 3) = 0', b"bbr"),
        ('getsockopt(3, SOL_TCP, TCP_CONGESTION, "bbr\\0\\0", [16 => 5]) = 0', b"bbr\0\0"),
        ("setsockopt(3, SOL_TCP, TCP_NODELAY, 0x7ffe, 4) = -1 EFAULT (x)", None),
        ("getsockopt(3, SOL_SOCKET, SO_ERROR, 0x7ffe, [4]) = -1 EBADF (x)", None),
        ("getsockopt(3, SOL_TCP, TCP_INFO, {tcpi_state=TCP_CLOSE_WAIT, ...}, [104]) = 0", b"\x08"),
    ],
)
def test_options(line: str, raw: bytes | None) -> None:
    assert section(line, Section.OPTION) == raw


@pytest.mark.parametrize(
    ("line", "raw"),
    [
        ("wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], 0, NULL) = 5", 0x300),
        ("wait4(-1, [WIFEXITED(s) && WEXITSTATUS(s) == 3], 0, NULL) = 5", 0x300),
        ("wait4(-1, [{WIFSIGNALED(s) && WTERMSIG(s) == SIGSEGV && WCOREDUMP(s)}], 0, NULL) = 5", 0x8B),
        ("wait4(-1, [{WIFSTOPPED(s) && WSTOPSIG(s) == SIGSTOP}], WSTOPPED, NULL) = 5", 0x137F),
        ("wait4(-1, [0x300], 0, NULL) = 5", 0x300),
        ("ioctl(3, FIONBIO, [1]) = 0", 1),
        ("ioctl(3, FIONREAD, [77]) = 0", 77),
        ("ioctl(3, 0x541b /* FIONREAD */, [77]) = 0", 77),
    ],
)
def test_ints(line: str, raw: int) -> None:
    assert section(line, Section.INT) == struct.pack("<I", raw)


@pytest.mark.parametrize(
    ("line", "kind", "raw"),
    [
        ("pipe([3, 4]) = 0", Section.FD_PAIR, struct.pack("<ii", 3, 4)),
        ("socketpair(AF_UNIX, SOCK_STREAM, 0, [3<socket:[1]>, 4]) = 0", Section.FD_PAIR, struct.pack("<ii", 3, 4)),
        ('execve("/bin/a b", ["a"], 0x7ffe /* 3 vars */) = 0', Section.PATH, b"/bin/a b"),
        ('execve("/bin/a", ["a", "b"...], [/* 20 vars */]) = 0', Section.PATH, b"/bin/a"),
        ('unlinkat(AT_FDCWD, "/x\\ny", AT_REMOVEDIR) = 0', Section.PATH, b"/x\ny"),
        ('memfd_create("m", MFD_CLOEXEC) = 3', Section.PATH, b"m"),
        ('open("/dev/shm/x", O_RDWR|O_CREAT|O_NOFOLLOW|O_CLOEXEC, 0600) = 3', Section.PATH, b"/dev/shm/x"),
    ],
)
def test_pairs_and_paths(line: str, kind: Section, raw: bytes) -> None:
    assert section(line, kind) == raw


def test_clone3() -> None:
    line = (
        "clone3({flags=CLONE_VM|CLONE_VFORK, child_tid=0x50, exit_signal=SIGCHLD, stack=0x60, stack_size=0x70} => "
        "{parent_tid=[5]}, 88) = 5"
    )
    expected = struct.pack("<11Q", 0x4100, 0, 0x50, 0, 17, 0x60, 0x70, 0, 0, 0, 0)
    assert section(line, Section.CLONE_ARGS) == expected
