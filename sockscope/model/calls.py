"""The traced set: syscalls and task events under numbers of our own.

Linux numbers its syscalls per architecture, so recordings use these instead. The values are part
of the recording format: never renumber, only append.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType


class Call(IntEnum):
    """A syscall by its kernel name, a task event (`task_*`), or a kernel event."""

    unknown = 0
    # sockets
    socket = 1
    socketpair = 2
    bind = 3
    listen = 4
    accept = 5
    accept4 = 6
    connect = 7
    shutdown = 8
    getsockopt = 9
    setsockopt = 10
    getsockname = 11
    getpeername = 12
    sendto = 13
    sendmsg = 14
    sendmmsg = 15
    recvfrom = 16
    recvmsg = 17
    recvmmsg = 18
    # descriptors
    read = 30
    write = 31
    readv = 32
    writev = 33
    pread64 = 34
    pwrite64 = 35
    preadv = 36
    pwritev = 37
    preadv2 = 38
    pwritev2 = 39
    sendfile = 40
    splice = 41
    tee = 42
    vmsplice = 43
    close = 44
    close_range = 45
    dup = 46
    dup2 = 47
    dup3 = 48
    fcntl = 49
    ioctl = 50
    pidfd_getfd = 51
    pidfd_open = 52
    pipe = 53
    pipe2 = 54
    # waiting
    poll = 60
    ppoll = 61
    select = 62
    pselect6 = 63
    epoll_create = 64
    epoll_create1 = 65
    epoll_ctl = 66
    epoll_wait = 67
    epoll_pwait = 68
    epoll_pwait2 = 69
    # tasks
    clone = 80
    clone3 = 81
    fork = 82
    vfork = 83
    execve = 84
    execveat = 85
    exit = 86
    exit_group = 87
    wait4 = 88
    waitid = 89
    unshare = 90
    kill = 91
    tkill = 92
    tgkill = 93
    # shared memory
    shmget = 100
    shmat = 101
    shmdt = 102
    shmctl = 103
    openat = 104
    open = 105
    unlink = 106
    unlinkat = 107
    mmap = 108
    munmap = 109
    # descriptors that are not sockets but wake loops
    eventfd = 120
    eventfd2 = 121
    timerfd_create = 122
    signalfd = 123
    signalfd4 = 124
    memfd_create = 125
    openat2 = 126
    creat = 127
    # io_uring: what passes it by is said
    io_uring_setup = 130
    io_uring_enter = 131
    # task events: seen by the engine, not called by the program
    task_new = 200
    """args: child tid, child tgid, clone flags (CLONE_*; 0 for fork). tid: the parent. Precedes
    every event of the child."""
    task_exec = 201
    """args: former tid (another than tid when a non-leader called exec). Blob: PATH (exe), COMM.
    Follows the CLOEXEC closes."""
    task_exit = 202
    """args: exit status as wait(2) gives it. One per thread; the process ends with its last."""
    task_signal = 203
    """args: signal number, si_code, si_pid. Delivered to tid (after any mask)."""
    task_stop = 204
    """args: signal number. Group-stop begins."""
    task_attach = 205
    """A thread comes under trace that existed before. args: 1 where nobody asked for it: it bound the watched port."""
    task_detach = 206
    """A thread leaves the trace alive; what it does later is not witnessed."""
    # Kernel events: what the kernel itself did to a socket, whoever ran then (tgid and tid are 0).
    # args: socket cookie (0: none yet), then as said below. Blob: SOCKADDR (local), PEER (both sockaddr_in6).
    sock_state = 210
    """args: cookie, former state, new state (TCP_*, net/tcp_states.h). A state change as it happened."""
    tcp_retransmit = 211
    """args: cookie, state. A segment was sent again."""
    tcp_reset_sent = 212
    """args: cookie, state. An RST went out."""
    tcp_reset_received = 213
    """args: cookie, state. An RST came in."""


FIRST_TASK_EVENT = 200
"""From here on: task and kernel events, no calls of the program."""

KERNEL_EVENTS = frozenset({Call.sock_state, Call.tcp_retransmit, Call.tcp_reset_sent, Call.tcp_reset_received})
"""Facts about sockets, from engines that can see them; neither data nor control events."""

READS = frozenset(
    {Call.read, Call.readv, Call.pread64, Call.preadv, Call.preadv2, Call.recvfrom, Call.recvmsg, Call.recvmmsg}
)
"""Take bytes from args[0]."""

WRITES = frozenset(
    {
        Call.write,
        Call.writev,
        Call.pwrite64,
        Call.pwritev,
        Call.pwritev2,
        Call.sendto,
        Call.sendmsg,
        Call.sendmmsg,
        Call.sendfile,
    }
)
"""Put bytes into args[0]."""

WAITS = frozenset(
    {
        Call.poll,
        Call.ppoll,
        Call.select,
        Call.pselect6,
        Call.epoll_wait,
        Call.epoll_pwait,
        Call.epoll_pwait2,
    }
)
"""Wait for readiness."""

EPOLL_WAITS = frozenset({Call.epoll_wait, Call.epoll_pwait, Call.epoll_pwait2})

DATA = READS | WRITES | WAITS | {Call.splice, Call.tee, Call.vmsplice, Call.getsockname, Call.getpeername}
"""Data events: many; assigned to connections in bulk. All others are control events: rare, replayed one by one."""

FD_IN_ARG0 = (READS | WRITES | EPOLL_WAITS) | {
    Call.bind,
    Call.listen,
    Call.accept,
    Call.accept4,
    Call.connect,
    Call.shutdown,
    Call.getsockopt,
    Call.setsockopt,
    Call.getsockname,
    Call.getpeername,
    Call.splice,
    Call.tee,
    Call.vmsplice,
    Call.close,
    Call.dup,
    Call.dup2,
    Call.dup3,
    Call.fcntl,
    Call.ioctl,
    Call.epoll_ctl,
}
"""Calls whose first argument is a descriptor."""


class CallGroup(StrEnum):
    """What calls are about: a log whose maker filtered them (`strace -e`) lacks whole groups."""

    NETWORK = "network"  # socket, bind, accept, send and recv and their like: strace's %network
    DESCRIPTORS = "descriptors"  # close, dup, fcntl, pipe, ...
    TRANSFERS = "transfers"  # read, write and their like
    WAITS = "waits"  # poll, select, epoll
    TASKS = "tasks"  # fork, exec, exit, wait, signals
    MEMORY = "memory"  # shared memory, and the opening of files


USUAL_GROUPS = frozenset({CallGroup.NETWORK, CallGroup.DESCRIPTORS, CallGroup.TRANSFERS, CallGroup.WAITS})
"""What judging a connection takes; a rule may ask for less or more."""

_FIRST_OF_GROUP = (
    (Call.socket, CallGroup.NETWORK),
    (Call.read, CallGroup.TRANSFERS),
    (Call.close, CallGroup.DESCRIPTORS),
    (Call.poll, CallGroup.WAITS),
    (Call.clone, CallGroup.TASKS),
    (Call.shmget, CallGroup.MEMORY),
    (Call.eventfd, CallGroup.DESCRIPTORS),
    (Call.openat2, CallGroup.MEMORY),
    (Call.io_uring_setup, CallGroup.DESCRIPTORS),
)
"""The numbers are handed out group by group: each begins here."""

GROUP_OF: Mapping[Call, CallGroup] = MappingProxyType(
    {
        call: next(group for first, group in reversed(_FIRST_OF_GROUP) if first <= call)
        for call in Call
        if Call.unknown < call < FIRST_TASK_EVENT
    }
)
"""The group of every syscall."""
