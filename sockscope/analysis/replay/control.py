"""Which events are replayed one by one, and lookup tables by call number."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import FD_IN_ARG0, KERNEL_EVENTS, READS, WAITS, WRITES, Call

CALL_LIMIT = 1 << 16
"""`call` is a u2: every value has a place in the tables, known to this version or not."""

Flags = npt.NDArray[np.bool_]


def by_call(calls: Iterable[Call]) -> Flags:
    """A table for `table[records["call"]]`: shape (65536,), True for these calls."""
    table = np.zeros(CALL_LIMIT, np.bool_)
    table[[int(c) for c in calls]] = True
    return table


RELEASES = frozenset({Call.close, Call.close_range, Call.exit, Call.exit_group})
"""Take effect at their entry: what they free can be handed out again before they return."""

CREATES = frozenset(
    {
        Call.socket,
        Call.socketpair,
        Call.accept,
        Call.accept4,
        Call.dup,
        Call.dup2,
        Call.dup3,
        Call.pidfd_getfd,
        Call.pidfd_open,
        Call.pipe,
        Call.pipe2,
        Call.epoll_create,
        Call.epoll_create1,
        Call.openat,
        Call.open,
        Call.openat2,
        Call.creat,
        Call.eventfd,
        Call.eventfd2,
        Call.timerfd_create,
        Call.signalfd,
        Call.signalfd4,
        Call.memfd_create,
        Call.io_uring_setup,
    }
)

TASKS = frozenset({Call.task_new, Call.task_exec, Call.task_exit, Call.task_attach, Call.unshare})

CHANGES = frozenset({Call.bind, Call.listen, Call.connect, Call.fcntl, Call.ioctl, Call.epoll_ctl})

REPLAYED = (RELEASES | CREATES | TASKS | CHANGES) - {Call.exit, Call.exit_group}
"""Change a files table, an open file or an interest list. (exit is seen as task_exit.)"""

CARRIES_RIGHTS = frozenset({Call.sendmsg, Call.recvmsg, Call.sendmmsg, Call.recvmmsg})
SENDS_RIGHTS = frozenset({Call.sendmsg, Call.sendmmsg})

SOCKET_CALLS = frozenset(
    {
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
        Call.sendto,
        Call.sendmsg,
        Call.sendmmsg,
        Call.recvfrom,
        Call.recvmsg,
        Call.recvmmsg,
    }
)
"""Succeed on sockets only, so they tell what an unknown descriptor is."""

MESSAGE_COUNT = frozenset({Call.sendmmsg, Call.recvmmsg})
"""Return a count of messages, not of bytes."""

IS_REPLAYED = by_call(REPLAYED)
IS_KERNEL = by_call(KERNEL_EVENTS)
IS_RELEASE = by_call(RELEASES)
MAY_CARRY_RIGHTS = by_call(CARRIES_RIGHTS)
MAY_SEND_RIGHTS = by_call(SENDS_RIGHTS)
HAS_FD = by_call(FD_IN_ARG0)
IS_READ = by_call(READS)
IS_WRITE = by_call(WRITES)
IS_WAIT = by_call(WAITS)
IS_SOCKET_CALL = by_call(SOCKET_CALLS)
COUNTS_MESSAGES = by_call(MESSAGE_COUNT)
EOPNOTSUPP = 95
EBADF = 9
EINTR = 4
EINPROGRESS = 115
EALREADY = 114
for _table in (
    IS_REPLAYED,
    IS_KERNEL,
    IS_RELEASE,
    MAY_CARRY_RIGHTS,
    MAY_SEND_RIGHTS,
    HAS_FD,
    IS_READ,
    IS_WRITE,
    IS_WAIT,
    IS_SOCKET_CALL,
    COUNTS_MESSAGES,
):
    _table.flags.writeable = False
