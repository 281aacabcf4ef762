"""Replay of the calls that make, change and close descriptors. One function a call."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from sockscope.analysis.replay.control import EALREADY, EINPROGRESS, EINTR
from sockscope.analysis.replay.decode import epoll_event, fd_pair, section_of, socket_address, text_of
from sockscope.analysis.replay.state import ReplayState, Step
from sockscope.analysis.replay.tasks import part_table, watch
from sockscope.model.calls import Call
from sockscope.model.descriptors import Ended, How, OpenFile
from sockscope.model.events import Section
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import Address, Family

O_CLOEXEC = 0o2000000
O_NONBLOCK = 0o4000
SOCK_TYPE_MASK = 0xF
F_DUPFD, F_SETFD, F_SETFL, F_DUPFD_CLOEXEC = 0, 2, 4, 1030
FIONBIO, FIOCLEX, FIONCLEX = 0x5421, 0x5451, 0x5450
CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4
EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD = 1, 2, 3
EBADF = 9


# --- sockets ------------------------------------------------------------------------------------------------


def socket(state: ReplayState, step: Step) -> None:
    if step.ret < 0:
        return
    file = state.create(step, step.ret, FileKind.SOCKET, How.SOCKET, bool(step.a1 & O_CLOEXEC))
    _make_socket(file, step.a0, step.a1)


def socketpair(state: ReplayState, step: Step) -> None:
    numbers = fd_pair(step.blob)
    if step.ret < 0 or numbers is None:
        return
    ends = [state.create(step, n, FileKind.SOCKET, How.SOCKETPAIR, bool(step.a1 & O_CLOEXEC)) for n in numbers]
    for file, other in ((ends[0], ends[1]), (ends[1], ends[0])):
        _make_socket(file, step.a0, step.a1)
        file.pair = other.id


def _make_socket(file: OpenFile, family: int, flags: int) -> None:
    file.family = family
    file.socket_type = flags & SOCK_TYPE_MASK
    file.nonblock = bool(flags & O_NONBLOCK)


def accept(state: ReplayState, step: Step) -> None:
    if step.ret < 0:
        return
    flags = step.a3 if step.call == Call.accept4 else 0
    file = state.create(step, step.ret, FileKind.SOCKET, How.ACCEPT, bool(flags & O_CLOEXEC))
    file.nonblock = bool(flags & O_NONBLOCK)
    file.peer = socket_address(step.blob)
    if file.peer is not None:
        file.family = file.peer.family
    file.socket_type = 1
    if step.descriptor < 0:
        return
    listener = state.open_files[state.descriptors[step.descriptor].open_file]
    listener.kind = FileKind.SOCKET
    listener.listening = True
    file.listener = listener.id
    file.family = listener.family or file.family
    file.socket_type = listener.socket_type or 1
    if listener.local is not None and not is_wildcard(listener.local):
        file.local = listener.local
        if listener.local.family == Family.UNIX:
            _match_unix(state, listener.local.packed, file.id, state.unix_connecting, state.unix_accepted)


def is_wildcard(address: Address) -> bool:
    """Whether a listener there gives its connections another local address."""
    return address.family in (Family.INET, Family.INET6) and not any(address.packed)


def _match_unix(
    state: ReplayState, path: bytes, file: int, others: dict[bytes, deque[int]], own: dict[bytes, deque[int]]
) -> None:
    """Connects and accepts on one path are matched in turn, whichever returns first."""
    waiting = others.get(path)
    if waiting:
        state.pair_up(file, waiting.popleft())
    else:
        own.setdefault(path, deque()).append(file)


def connect(state: ReplayState, step: Step) -> None:
    if step.descriptor < 0 or step.ret not in (0, -EINPROGRESS, -EALREADY, -EINTR):
        return
    address = socket_address(step.blob)
    file = state.open_files[state.descriptors[step.descriptor].open_file]
    file.kind = FileKind.SOCKET
    if address is None:
        return
    if address.family == Family.UNSPEC:
        file.peer = None
        state.connects.pop(file.id, None)
        return
    file.peer = address
    file.family = file.family or address.family
    first = file.id not in state.connects
    if first:
        state.connects[file.id] = (step.event, step.enter_ns, step.ns)
    if address.family == Family.UNIX and step.ret == 0 and first:
        _match_unix(state, address.packed, file.id, state.unix_accepted, state.unix_connecting)


def bind(state: ReplayState, step: Step) -> None:
    address = socket_address(step.blob)
    if step.descriptor < 0 or step.ret != 0 or address is None:
        return
    file = state.open_files[state.descriptors[step.descriptor].open_file]
    file.kind = FileKind.SOCKET
    file.local = address
    file.family = file.family or address.family


def listen(state: ReplayState, step: Step) -> None:
    if step.descriptor >= 0 and step.ret == 0:
        file = state.open_files[state.descriptors[step.descriptor].open_file]
        file.kind = FileKind.SOCKET
        file.listening = True


# --- closing ------------------------------------------------------------------------------------------------


def close(state: ReplayState, step: Step) -> None:
    # Whatever else close returns (EINTR, EIO), the number is free: close(2).
    if step.descriptor < 0 or step.ret == -EBADF:
        return
    descriptor = state.descriptors[step.descriptor]
    # What was opened after the close was asked for cannot be meant (by io_uring that may be long before it happens).
    if descriptor.closed_ns is not None or descriptor.opened_ns > step.enter_ns:
        return
    state.release(descriptor, step.ns, step.event, Ended.CLOSE)


def close_range(state: ReplayState, step: Step) -> None:
    first, last, flags = step.a0 & 0xFFFF_FFFF, step.a1 & 0xFFFF_FFFF, step.a2
    if step.ret != 0:
        return
    table = part_table(state, step) if flags & CLOSE_RANGE_UNSHARE else step.table
    for fd in sorted(fd for fd in table.live if first <= fd <= last):
        descriptor = state.descriptors[table.live[fd]]
        if descriptor.how == How.SNAPSHOT and descriptor.opened_ns > step.ns:
            continue
        if flags & CLOSE_RANGE_CLOEXEC:
            descriptor.cloexec = True
        else:
            state.release(descriptor, step.ns, step.event, Ended.CLOSE_RANGE)


# --- copies and flags ---------------------------------------------------------------------------------------


def dup(state: ReplayState, step: Step) -> None:
    if step.ret < 0 or step.descriptor < 0 or step.ret == step.fd:
        return
    cloexec = step.call == Call.dup3 and bool(step.a2 & O_CLOEXEC)
    state.copy(step, step.ret, step.descriptor, How.DUP, cloexec)


def fcntl(state: ReplayState, step: Step) -> None:
    if step.ret < 0 or step.descriptor < 0:
        return
    command = step.a1 & 0xFFFF_FFFF
    if command in (F_DUPFD, F_DUPFD_CLOEXEC):
        state.copy(step, step.ret, step.descriptor, How.DUP, command == F_DUPFD_CLOEXEC)
    elif command == F_SETFD:
        state.descriptors[step.descriptor].cloexec = bool(step.a2 & 1)
    elif command == F_SETFL:
        state.open_files[state.descriptors[step.descriptor].open_file].nonblock = bool(step.a2 & O_NONBLOCK)


def ioctl(state: ReplayState, step: Step) -> None:
    if step.ret < 0 or step.descriptor < 0:
        return
    request = step.a1 & 0xFFFF_FFFF
    descriptor = state.descriptors[step.descriptor]
    if request == FIOCLEX:
        descriptor.cloexec = True
    elif request == FIONCLEX:
        descriptor.cloexec = False
    elif request == FIONBIO:
        value = section_of(step.blob, Section.INT)
        if value is not None and len(value) >= 4:
            state.open_files[descriptor.open_file].nonblock = struct.unpack_from("<i", value)[0] != 0


def pidfd_open(state: ReplayState, step: Step) -> None:
    if step.ret < 0:
        return
    file = state.create(step, step.ret, FileKind.PIDFD, How.OPEN, True)
    state.pidfd_tgid[file.id] = step.fd


def pidfd_getfd(state: ReplayState, step: Step) -> None:
    if step.ret < 0:
        return
    source = NO_ID
    pidfd = step.table.live.get(step.fd)
    if pidfd is not None:
        tgid = state.pidfd_tgid.get(state.descriptors[pidfd].open_file, NO_ID)
        table = state.table_of_process(tgid)
        if table is not None:
            source = table.live.get(step.a1 & 0xFFFF_FFFF, NO_ID)
    if source >= 0:
        state.copy(step, step.ret, source, How.PIDFD_GETFD, True)
    else:
        state.create(step, step.ret, FileKind.OTHER, How.PIDFD_GETFD, True).witnessed = False


# --- other files --------------------------------------------------------------------------------------------


def pipe(state: ReplayState, step: Step) -> None:
    numbers = fd_pair(step.blob)
    if step.ret < 0 or numbers is None:
        return
    flags = step.a1 if step.call == Call.pipe2 else 0
    for number in numbers:
        state.create(step, number, FileKind.PIPE, How.OPEN, bool(flags & O_CLOEXEC)).nonblock = bool(flags & O_NONBLOCK)


_MADE: dict[int, tuple[FileKind, int]] = {
    # call: kind, which argument holds the flags (-1: none)
    Call.eventfd: (FileKind.EVENTFD, -1),
    Call.eventfd2: (FileKind.EVENTFD, 1),
    Call.timerfd_create: (FileKind.TIMERFD, 1),
    Call.signalfd: (FileKind.SIGNALFD, -1),
    Call.signalfd4: (FileKind.SIGNALFD, 3),
    Call.epoll_create: (FileKind.EPOLL, -1),
    Call.epoll_create1: (FileKind.EPOLL, 0),
    Call.memfd_create: (FileKind.SHARED_MEMORY, -1),
    Call.io_uring_setup: (FileKind.IO_URING, -1),
    Call.open: (FileKind.OTHER, 1),
    Call.openat: (FileKind.OTHER, 2),
    Call.openat2: (FileKind.OTHER, -1),
    Call.creat: (FileKind.OTHER, -1),
}
_PATHS = frozenset({Call.open, Call.openat, Call.openat2, Call.creat})
MFD_CLOEXEC = 1


def make(state: ReplayState, step: Step) -> None:
    """The calls that return one new descriptor and leave nothing else to know."""
    if step.ret < 0:
        return
    kind, flag_argument = _MADE[step.call]
    if kind == FileKind.SIGNALFD and step.fd >= 0:
        return  # changes an existing one
    flags = (step.a0, step.a1, step.a2, step.a3)[flag_argument] if flag_argument >= 0 else 0
    if step.call == Call.memfd_create:
        flags = O_CLOEXEC if step.a1 & MFD_CLOEXEC else 0
    elif step.call == Call.io_uring_setup:
        flags = O_CLOEXEC  # always: io_uring_setup(2)
    elif step.call in _PATHS and text_of(step.blob, Section.PATH).startswith("/dev/shm/"):
        kind = FileKind.SHARED_MEMORY
    file = state.create(step, step.ret, kind, How.OPEN, bool(flags & O_CLOEXEC))
    file.nonblock = bool(flags & O_NONBLOCK)


# --- epoll --------------------------------------------------------------------------------------------------


def epoll_ctl(state: ReplayState, step: Step) -> None:
    if step.ret < 0 or step.descriptor < 0:
        return
    fd = _int(step.a2)
    epoll = state.open_files[state.descriptors[step.descriptor].open_file]
    epoll.kind = FileKind.EPOLL
    descriptor = state.known(step, fd, FileKind.OTHER)
    file = state.descriptors[descriptor].open_file
    state.targets.append(step.event)
    state.targets.append(file)
    operation = step.a1 & 0xFFFF_FFFF
    interests = state.by_epoll.setdefault(epoll.id, {})
    if operation == EPOLL_CTL_DEL:
        gone = interests.pop((fd, file), None)
        if gone is not None:
            gone.removed_ns = step.ns
            watchers = state.watched_by.get(file)
            if watchers is not None and (epoll.id, fd) in watchers:
                watchers.remove((epoll.id, fd))
        return
    events, data = epoll_event(step.blob)
    known = interests.get((fd, file))
    if known is None:
        watch(state, epoll.id, fd, file, events, data, step.ns, step.event)
    else:
        known.events = events
        known.data = data


def _int(argument: int) -> int:
    """A u64 argument as the int it was."""
    low = argument & 0xFFFF_FFFF
    return low - (1 << 32) if low & 0x8000_0000 else low


HANDLERS: dict[int, Callable[[ReplayState, Step], None]] = {
    Call.socket: socket,
    Call.socketpair: socketpair,
    Call.accept: accept,
    Call.accept4: accept,
    Call.connect: connect,
    Call.bind: bind,
    Call.listen: listen,
    Call.close: close,
    Call.close_range: close_range,
    Call.dup: dup,
    Call.dup2: dup,
    Call.dup3: dup,
    Call.fcntl: fcntl,
    Call.ioctl: ioctl,
    Call.pidfd_open: pidfd_open,
    Call.pidfd_getfd: pidfd_getfd,
    Call.pipe: pipe,
    Call.pipe2: pipe,
    Call.epoll_ctl: epoll_ctl,
    **dict.fromkeys(_MADE, make),
}
