"""Arguments, results and flags of single calls, in the notations of strace 4 to 7."""

from __future__ import annotations

import pytest

from sockscope.model.calls import FIRST_TASK_EVENT, Call
from sockscope.model.events import UNSEEN_POINTER, EventFlag, Section
from sockscope.sources.syscalls.abi import NOT_TRACED
from sockscope.sources.syscalls.strace_log.encode import NamedFd, NotUnderstood, encode
from sockscope.sources.syscalls.strace_log.signatures import signature_of
from tests.sources.syscalls.strace_log.encoding import maybe, of, section, sections

P = UNSEEN_POINTER
MINUS_1 = (1 << 64) - 1


@pytest.mark.parametrize(
    ("line", "args", "ret"),
    [
        ("socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_TCP) = 3", (2, 0x80001, 6), 3),
        ("socket(PF_INET, SOCK_STREAM, IPPROTO_IP) = 3", (2, 1, 0), 3),
        ("socket(0x2 /* AF_INET */, 0x1 /* SOCK_STREAM */|0x80000 /* SOCK_CLOEXEC */, 0x6) = 3", (2, 0x80001, 6), 3),
        ("socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG) = 3", (16, 3, 4), 3),
        ("listen(0x3, 0x80) = 0", (3, 128), 0),
        ("close(7) = -1 EBADF (Bad file descriptor)", (7,), -9),
        ("close(-1) = -1 EBADF (Bad file descriptor)", (MINUS_1,), -9),
        ("read(3, 0x7ffe50, 64) = -1 EAGAIN (Resource temporarily unavailable)", (3, 0x7FFE50, 64), -11),
        ("read(3, 0x7ffe50, 64) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)", (3, 0x7FFE50, 64), -512),
        ("poll(NULL, 0, -1) = ? ERESTART_RESTARTBLOCK (Interrupted by signal)", (0, 0, MINUS_1), -516),
        ("sendfile(4, 5, [10] => [20], 4096) = -1 (errno 524)", (4, 5, P, 4096), -524),
        ("shmat(5, NULL, SHM_RDONLY) = 0x7f0000001000", (5, 0, 0o10000), 0x7F0000001000),
        ("shmat(5, NULL, 0) = 0xffffffffffffffea", (5, 0, 0), -22),
        ("shmget(IPC_PRIVATE, 4096, IPC_CREAT|0600) = 7", (0, 4096, 0o1600), 7),
        ("shmget(0x5eac, 1, 000) = -1 ENOENT (No such file or directory)", (0x5EAC, 1, 0), -2),
        ("shmctl(7, IPC_64|IPC_RMID, NULL) = 0", (7, 0, 0), 0),
        ("kill(-5, SIGTERM) = 0", ((1 << 64) - 5, 15), 0),
        ("kill(12<bash>, SIGRT_5) = 0", (12, 37), 0),
        ("tgkill(1, 2, SIGUSR1) = 0", (1, 2, 10), 0),
        ("fcntl(3, F_SETFL, O_RDWR|O_NONBLOCK) = 0", (3, 4, 0o4002), 0),
        ("fcntl(3, F_GETFL) = 0x802 (flags O_RDWR|O_NONBLOCK)", (3, 3, 0), 0x802),
        ("fcntl64(3, F_DUPFD_CLOEXEC, 10) = 10", (3, 1030, 10), 10),
        ("fcntl(3, F_SETLK, {l_type=F_WRLCK, l_whence=SEEK_SET, l_start=0, l_len=1}) = 0", (3, 6, P), 0),
        ("fcntl(3, 0x42 /* F_??? */, 0x7ffe) = -1 EINVAL (Invalid argument)", (3, 0x42, 0x7FFE), -22),
        ("close_range(3, 4294967295, CLOSE_RANGE_CLOEXEC) = 0", (3, 0xFFFFFFFF, 4), 0),
        ("close_range(3, ~0U, 0) = 0", (3, 0xFFFFFFFF, 0), 0),
        ("dup3(3, 4, O_CLOEXEC) = 4", (3, 4, 0o2000000), 4),
        ('openat(AT_FDCWD, "/x", O_RDONLY|O_DIRECTORY) = 3', ((1 << 64) - 100, P, 0o200000, 0), 3),
        ('openat(AT_FDCWD</root>, "/x", O_WRONLY|O_CREAT, 0640) = 3', ((1 << 64) - 100, P, 0o101, 0o640), 3),
        ('preadv2(3, [{iov_base="ab", iov_len=2}], 1, 7, RWF_NOWAIT) = 2', (3, P, 1, 7, 0, 8), 2),
        ("splice(3, NULL, 4, [7] => [9], 65536, SPLICE_F_MOVE) = 2", (3, 0, 4, P, 65536, 1), 2),
        (
            "clone(child_stack=0, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x70) = 9",
            (0x200011, 0, 0, 0x70, 0),
            9,
        ),
        (
            "clone(child_stack=0x50, flags=CLONE_VM|CLONE_THREAD, parent_tid=[9], tls=0x60, child_tidptr=0x70) = 9",
            (0x10100, 0x50, P, 0x70, 0x60),
            9,
        ),
        ("clone(0x1200011, 0, 0, 0x70, 0) = 0x9", (0x1200011, 0, 0, 0x70, 0), 9),
        ("mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0x1000) = 0x7f00", (0, 4096, 3, 1, 3, 0x1000), 0x7F00),
        ("exit_group(3) = ?", (3,), 0),
        ('recv(3, "abc", 3, MSG_PEEK) = 3', (3, P, 3, 2), 3),
        ("shutdown(3, SHUT_RDWR) = 0", (3, 2), 0),
        ("shutdown(3, 1 /* send */) = 0", (3, 1), 0),
        ("unshare(CLONE_FILES) = 0", (0x400,), 0),
        ("epoll_create1(EPOLL_CLOEXEC) = 4", (0o2000000,), 4),
        ("syscall_0x1b4(0x3, 0xffffffff, 0x4, 0, 0, 0) = 0", (3, 0xFFFFFFFF, 4), 0),
        ("waitid(P_PID, 5, {si_signo=SIGCHLD, si_pid=5}, WEXITED|WNOWAIT, NULL) = 0", (1, 5, P, 0x1000004), 0),
        ("io_uring_enter(3, 1, 1, IORING_ENTER_GETEVENTS, NULL, 8) = 1", (3, 1, 1, 1, 0, 8), 1),
        ("pidfd_open(5, PIDFD_NONBLOCK) = 3", (5, 0o4000), 3),
        ("timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC|TFD_NONBLOCK) = 3", (1, 0o2004000), 3),
        ("fork() = 0", (), 0),
    ],
)
def test_arguments_and_results(line: str, args: tuple[int, ...], ret: int) -> None:
    encoded = of(line)
    assert encoded.args == (*args, *[0] * (6 - len(args)))
    assert encoded.ret == ret


@pytest.mark.parametrize(
    "line",
    [
        "futex(0x7f00, FUTEX_WAIT, 1, NULL) = 0",
        "brk(NULL) = 0x1000",
        "munmap(0x7f00, 4096) = 0",
        "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00",
        "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0) = 0x7f00",
        "mmap(NULL, 4096, PROT_READ, MAP_SHARED|MAP_ANONYMOUS, -1, 0) = 0x7f00",
        "ioctl(1, TCGETS, 0x7ffe) = -1 ENOTTY (Inappropriate ioctl for device)",
        "ioctl(1, SNDCTL_TMR_TIMEBASE or SNDRV_TIMER_IOCTL_NEXT_DEVICE or TCGETS, 0x7ffe) = -1 ENOTTY (x)",
    ],
)
def test_what_the_engines_do_not_record_either(line: str) -> None:
    assert maybe(line) is None


@pytest.mark.parametrize("text", [b"", b"{sa_family=AF_INET}, 16", b'"x", 3', b"NOT_A_FD, 0x5, 3", b"3, [1]], 4"])
def test_a_call_without_its_descriptor_is_not_understood(text: bytes) -> None:
    with pytest.raises(NotUnderstood):
        encode("read", text, b"0")


def test_brackets_without_end_are_not_followed() -> None:
    with pytest.raises(NotUnderstood):
        encode("read", b"3, " + b"[" * 1000, b"0")


def test_calls_without_a_result_are_marked() -> None:
    assert of("exit_group(0) = ?").flags == EventFlag.ENTERED_ONLY
    unfinished = encode("recvfrom", b"5, ", b"")
    assert unfinished is not None
    assert unfinished.args[0] == 5
    assert unfinished.flags == EventFlag.ENTERED_ONLY
    assert of("read(3, 0x7f, 1) = ? ERESTARTSYS (To be restarted)").flags == EventFlag(0)
    cut = encode("connect", b'3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("1.2.3', b"")
    assert cut is not None
    assert cut.args[:2] == (3, P)


def test_cut_strings_are_marked() -> None:
    assert of('read(3, "abc"..., 64) = 64').flags == EventFlag.TRUNCATED
    assert of('read(3, "abc", 64) = 3').flags == EventFlag(0)
    assert of("read(3, 0x7ffe, 64) = 3").flags == EventFlag.TRUNCATED  # -e raw


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (
            "accept4(3<TCP:[127.0.0.1:80]>, NULL, NULL, 0) = 5<TCP:[127.0.0.1:80->127.0.0.1:5555]>",
            [(3, b"TCP:[127.0.0.1:80]"), (5, b"TCP:[127.0.0.1:80->127.0.0.1:5555]")],
        ),
        ("close(3<TCPv6:[[::1]:80->[::1]:99]>) = 0", [(3, b"TCPv6:[[::1]:80->[::1]:99]")]),
        ("close(3</path with <odd> chars>) = 0", [(3, b"/path with <odd> chars")]),
        ("close(3</path->) = 0", [(3, b"/path-")]),
        ("close(3</path>(deleted)) = 0", [(3, b"/path")]),
        ("close(3</dev/null<char 1:3>>) = 0", [(3, b"/dev/null<char 1:3>")]),
        ('close(3<UNIX:[12->34,"/tmp/a, b"]>) = 0', [(3, b'UNIX:[12->34,"/tmp/a, b"]')]),
        ('close(3<UNIX:[12,@"a]>"]>) = 0', [(3, b'UNIX:[12,@"a]')]),
        ("dup2(3<pipe:[5]>, 4<socket:[7]>) = 4<pipe:[5]>", [(3, b"pipe:[5]"), (4, b"socket:[7]"), (4, b"pipe:[5]")]),
        ('write(3<pipe:[5]>, "9<socket:[1]>", 13) = 13', [(3, b"pipe:[5]")]),
        (
            "select(6, [3<socket:[1]> 5<pipe:[2]>], NULL, NULL, NULL) = 1 (in [3])",
            [(3, b"socket:[1]"), (5, b"pipe:[2]")],
        ),
        ("kill(12<bash>, SIGTERM) = 0", []),
        ("wait4(12<bash>, NULL, 0, NULL) = 12<bash>", []),
        ("pidfd_getfd(3<pid:12>, 5<socket:[1]>, 0) = 6<socket:[1]>", [(3, b"pid:12"), (6, b"socket:[1]")]),
        ('openat(AT_FDCWD</root>, "/x", O_RDONLY) = 3</x>', [(3, b"/x")]),
        ("fcntl(3<socket:[1]>, F_GETOWN) = 12<bash>", [(3, b"socket:[1]")]),
    ],
)
def test_named_descriptors(line: str, named: list[tuple[int, bytes]]) -> None:
    assert of(line).named == tuple(NamedFd(fd=fd, text=text) for fd, text in named)


def test_every_recorded_call_has_its_arguments_said() -> None:
    without = {call for call in Call if 0 < call < FIRST_TASK_EVENT and not signature_of(call)}
    assert without - NOT_TRACED == {Call.fork, Call.vfork}


def test_one_odd_structure_does_not_lose_the_call() -> None:
    encoded = of("accept(3, {sa_family=AF_WHATEVER, x=~[1 2], y={{}}}, [16]) = 4")
    assert (encoded.args[0], encoded.ret, sections(encoded)) == (3, 4, {})
    assert section("setsockopt(3, SOL_SOCKET, SO_LINGER, {???}, 8) = 0", Section.OPTION) is None
