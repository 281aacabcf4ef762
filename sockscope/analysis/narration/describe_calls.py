"""Argument lists in strace's notation: sockets, descriptors, waits (the rest: `describe_system`)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from sockscope.analysis.narration import describe_values as v
from sockscope.analysis.narration.describe_parts import Formatter, ints, ints_and_flags, joined
from sockscope.analysis.narration.describe_system import SYSTEM_ARGUMENTS
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.payload import quote
from sockscope.model import constants as c
from sockscope.model.calls import READS, WRITES, Call
from sockscope.model.events import Section


def _address(view: View, index: int) -> str:
    raw = view.sections.get(Section.SOCKADDR)
    return v.sockaddr(raw) if raw else v.pointer(view.args[index])


def _payload(view: View, index: int, shown: int) -> str:
    """The buffer as far as it is known: for reads only what came, for failed writes what was offered."""
    reading = view.call in READS
    if Section.PAYLOAD not in view.sections:
        return '""' if reading and view.returned and view.ret == 0 and view.args[index] else v.pointer(view.args[index])
    whole = view.moved_bytes if reading else max(view.asked_bytes, view.moved_bytes)
    return quote(view.payload, more=whole > len(view.payload), limit=shown)


def _socket(view: View, _: int) -> str:
    family, kind, protocol = (view.int_arg(i) for i in range(3))
    # The protocol's meaning depends on the family.
    proto = v.name(protocol, c.IP_PROTOCOLS) if family in (2, 10) else str(protocol)
    text = joined(v.name(family, c.FAMILIES), _socket_type(kind), proto)
    if view.call == Call.socketpair:
        text += f", {_fd_pair(view, 3)}"
    return text


def _socket_type(kind: int) -> str:
    base = v.name(kind & c.SOCK_TYPE_MASK, c.SOCKET_TYPES)
    rest = kind & 0xFFFFFFFF & ~c.SOCK_TYPE_MASK
    return f"{base}|{v.flags(rest, c.SOCKET_FLAGS)}" if rest else base


def _fd_pair(view: View, index: int) -> str:
    raw = view.sections.get(Section.FD_PAIR, b"")
    if len(raw) == 8 and not view.errno:
        first, second = struct.unpack("<ii", raw)
        return f"[{first}, {second}]"
    return v.pointer(view.args[index])


def _bind(view: View, _: int) -> str:
    return joined(str(view.int_arg(0)), _address(view, 1), str(view.int_arg(2)))


def _accept(view: View, _: int) -> str:
    parts = [str(view.int_arg(0)), _address(view, 1)]
    if view.call == Call.accept4:
        parts.append(v.flags(view.args[3] & 0xFFFFFFFF, c.SOCKET_FLAGS))
    return joined(*parts)


def _shutdown(view: View, _: int) -> str:
    return joined(str(view.int_arg(0)), v.name(view.int_arg(1), c.SHUTDOWN_HOW))


def _sockopt(view: View, _: int) -> str:
    level, option = view.int_arg(1), view.int_arg(2)
    raw = view.sections.get(Section.OPTION)
    known = raw is not None and not (view.call == Call.getsockopt and (view.errno or not view.returned))
    return joined(
        str(view.int_arg(0)),
        v.name(level, c.SOCKOPT_LEVELS),
        v.option_name(level, option),
        v.option_value(level, option, raw) if known and raw is not None else v.pointer(view.args[3]),
        str(view.int_arg(4)) if view.call == Call.setsockopt else f"[{len(raw)}]" if known and raw else "...",
    )


def _name_of(view: View, _: int) -> str:
    return joined(str(view.int_arg(0)), _address(view, 1))


def _send_receive(view: View, shown: int) -> str:
    """sendto and recvfrom: the address only where there is one."""
    text = joined(
        str(view.int_arg(0)),
        _payload(view, 1, shown),
        str(view.args[2]),
        v.flags(view.args[3] & 0xFFFFFFFF, c.MSG_FLAGS),
    )
    return f"{text}, {_address(view, 4)}" if view.args[4] else text


def _message(view: View, shown: int) -> str:
    """sendmsg and recvmsg, and the first message of sendmmsg and recvmmsg."""
    parts = []
    if Section.SOCKADDR in view.sections:
        parts.append(f"msg_name={v.sockaddr(view.sections[Section.SOCKADDR])}")
    if Section.PAYLOAD in view.sections or Section.IOV_TOTAL in view.sections:
        parts.append(f"msg_iov={_vector(view, 1, shown)}")
    if view.sections.get(Section.CONTROL):
        parts.append(f"msg_control={v.control(view.sections[Section.CONTROL])}")
    if len(view.sections.get(Section.MSG_FLAGS, b"")) == 4:
        (got,) = struct.unpack("<I", view.sections[Section.MSG_FLAGS])
        parts.append(f"msg_flags={v.flags(got, c.MSG_FLAGS)}")
    message = f"{{{joined(*parts)}}}" if parts else v.pointer(view.args[1])
    flags_at = 2
    text = str(view.int_arg(0))
    if view.call in (Call.sendmmsg, Call.recvmmsg):
        flags_at = 3
        raw = view.sections.get(Section.MMSG_LENS, b"")
        lengths = struct.unpack(f"<{len(raw) // 4}I", raw[: len(raw) // 4 * 4])
        message = f"[{{msg_hdr={message}{f', msg_len={lengths[0]}' if lengths else ''}}}"
        message += f", ... msg_len={'+'.join(map(str, lengths[1:]))}]" if lengths[1:] else "]"
        message += f", {view.int_arg(2)}"
    return joined(text, message, v.flags(view.args[flags_at] & 0xFFFFFFFF, c.MSG_FLAGS))


def _vector(view: View, buffer_at: int, shown: int) -> str:
    """An iovec array: its first buffer and how much there is in all."""
    total = view.asked_bytes
    return f"[{{iov_base={_payload(view, buffer_at, shown)}}}{f', iov_total={total}' if total >= 0 else ''}]"


def _read_write(view: View, shown: int) -> str:
    if view.is_vector:
        parts = [str(view.int_arg(0)), _vector(view, 1, shown), str(view.int_arg(2))]
    else:
        parts = [str(view.int_arg(0)), _payload(view, 1, shown), str(view.args[2])]
    if view.call in (Call.pread64, Call.pwrite64, Call.preadv, Call.pwritev, Call.preadv2, Call.pwritev2):
        parts.append(v.offset(view.args[3]))
    if view.call in (Call.preadv2, Call.pwritev2):
        # The offset takes two registers there, the second empty on 64-bit machines.
        parts.append(v.flags(view.args[5] & 0xFFFFFFFF, c.RWF_FLAGS))
    return joined(*parts)


def _sendfile(view: View, _: int) -> str:
    return joined(str(view.int_arg(0)), str(view.int_arg(1)), v.pointer(view.args[2]), str(view.args[3]))


def _splice(view: View, _: int) -> str:
    if view.call == Call.splice:
        return joined(
            str(view.int_arg(0)),
            v.pointer(view.args[1]),
            str(view.int_arg(2)),
            v.pointer(view.args[3]),
            str(view.args[4]),
            v.flags(view.args[5] & 0xFFFFFFFF, c.SPLICE_FLAGS),
        )
    second = str(view.int_arg(1)) if view.call == Call.tee else v.pointer(view.args[1])
    return joined(str(view.int_arg(0)), second, str(view.args[2]), v.flags(view.args[3] & 0xFFFFFFFF, c.SPLICE_FLAGS))


def _fcntl(view: View, _: int) -> str:
    command = view.int_arg(1)
    parts = [str(view.int_arg(0)), v.name(command, c.FCNTL_COMMANDS)]
    title = c.FCNTL_COMMANDS.get(command, "")
    if title == "F_SETFL":
        value = view.args[2] & 0xFFFFFFFF
        parts.append(c.OPEN_MODES[value & 3] + (f"|{v.flags(value & ~3, c.OPEN_FLAGS)}" if value & ~3 else ""))
    elif title == "F_SETFD":
        parts.append(v.flags(view.args[2] & 0xFFFFFFFF, c.FD_FLAGS))
    elif title not in ("F_GETFD", "F_GETFL", "F_GETOWN", "F_GETSIG", "F_GETLEASE", "F_GETPIPE_SZ", "F_GET_SEALS"):
        small = title.startswith("F_DUPFD") or title in ("F_SETOWN", "F_SETSIG", "F_SETPIPE_SZ", "F_SETLEASE")
        parts.append(str(view.int_arg(2)) if small else f"{view.args[2]:#x}")
    return joined(*parts)


def _ioctl(view: View, _: int) -> str:
    request = view.args[1] & 0xFFFFFFFF
    parts = [str(view.int_arg(0)), c.IOCTLS.get(request) or f"{request:#x}"]
    raw = view.sections.get(Section.INT, b"")
    if len(raw) == 4:
        parts.append(f"[{struct.unpack('<i', raw)[0]}]")
    elif c.IOCTLS.get(request) not in ("FIOCLEX", "FIONCLEX"):
        parts.append(v.pointer(view.args[2]))
    return joined(*parts)


def _poll(view: View, _: int) -> str:
    raw = view.sections.get(Section.POLLFDS)
    if raw is None:
        fds = v.pointer(view.args[0])
    else:
        entries = [f"{{fd={fd}, events={v.flags(ev, c.POLL_EVENTS)}}}" for fd, ev, _ in v.poll_entries(raw)]
        if len(entries) < view.args[1]:
            entries.append("...")
        fds = f"[{joined(*entries)}]"
    count = str(view.args[1] & 0xFFFFFFFF)
    if view.call == Call.poll:
        return joined(fds, count, str(view.int_arg(2)))
    return joined(fds, count, _timeout(view, 2, "tv_nsec"), v.pointer(view.args[3]))


def _timeout(view: View, index: int, part: str) -> str:
    raw = view.sections.get(Section.TIMEOUT, b"")
    if not view.args[index] or len(raw) != 16:
        return v.pointer(view.args[index])
    return v.timespec(raw, part)


def _select(view: View, _: int) -> str:
    nfds = view.int_arg(0)
    raw = view.sections.get(Section.FDSETS_IN)
    parts = [str(nfds)]
    sets = v.fd_sets(raw, nfds) if raw is not None else ([], [], [])
    for index, fds in enumerate(sets, 1):
        known = raw is not None and view.args[index]
        parts.append(f"[{' '.join(map(str, fds))}]" if known else v.pointer(view.args[index]))
    parts.append(_timeout(view, 4, "tv_usec" if view.call == Call.select else "tv_nsec"))
    return joined(*parts)


def _epoll_ctl(view: View, _: int) -> str:
    entries = v.epoll_entries(view.sections.get(Section.EPOLL_EVENTS), view.sections.get(Section.EPOLL_EVENTS_ALIGNED))
    # DEL ignores the event; what the program passes there is noise.
    event = v.epoll_event(*entries[0]) if entries and view.int_arg(1) != 2 else v.pointer(view.args[3])
    return joined(str(view.int_arg(0)), v.name(view.int_arg(1), c.EPOLL_OPERATIONS), str(view.int_arg(2)), event)


def _epoll_wait(view: View, _: int) -> str:
    entries = v.epoll_entries(view.sections.get(Section.EPOLL_EVENTS), view.sections.get(Section.EPOLL_EVENTS_ALIGNED))
    if view.returned and view.ret == 0:
        ready = "[]"
    elif entries:
        shown = [v.epoll_event(*entry) for entry in entries]
        ready = f"[{joined(*shown, *(['...'] if len(entries) < view.ret else []))}]"
    else:
        ready = v.pointer(view.args[1])
    timeout = _timeout(view, 3, "tv_nsec") if view.call == Call.epoll_pwait2 else str(view.int_arg(3))
    text = joined(str(view.int_arg(0)), ready, str(view.int_arg(2)), timeout)
    return text if view.call == Call.epoll_wait else f"{text}, {v.pointer(view.args[4])}"


def _pipe(view: View, _: int) -> str:
    pair = _fd_pair(view, 0)
    return pair if view.call == Call.pipe else joined(pair, v.flags(view.args[1] & 0xFFFFFFFF, c.PIPE_FLAGS))


def _signalfd(view: View, _: int) -> str:
    text = joined(str(view.int_arg(0)), v.pointer(view.args[1]), str(view.args[2]))
    return text if view.call == Call.signalfd else f"{text}, {v.flags(view.args[3] & 0xFFFFFFFF, c.SIGNALFD_FLAGS)}"


def _close_range(view: View, _: int) -> str:
    first, last = view.args[0] & 0xFFFFFFFF, view.args[1] & 0xFFFFFFFF
    upper = "~0U" if last == 0xFFFFFFFF else str(last)
    return joined(str(first), upper, v.flags(view.args[2] & 0xFFFFFFFF, c.CLOSE_RANGE_FLAGS))


def _timerfd(view: View, _: int) -> str:
    return joined(v.name(view.int_arg(0), c.CLOCKS), v.flags(view.args[1] & 0xFFFFFFFF, c.TIMERFD_FLAGS))


_DATA: Mapping[Call, Formatter] = {
    call: _read_write for call in (READS | WRITES) if call.name.startswith(("read", "write", "pread", "pwrite"))
}

ARGUMENTS: Final[Mapping[Call, Formatter]] = {
    **_DATA,
    **SYSTEM_ARGUMENTS,
    Call.socket: _socket,
    Call.socketpair: _socket,
    Call.bind: _bind,
    Call.connect: _bind,
    Call.listen: ints(2),
    Call.accept: _accept,
    Call.accept4: _accept,
    Call.shutdown: _shutdown,
    Call.getsockopt: _sockopt,
    Call.setsockopt: _sockopt,
    Call.getsockname: _name_of,
    Call.getpeername: _name_of,
    Call.sendto: _send_receive,
    Call.recvfrom: _send_receive,
    Call.sendmsg: _message,
    Call.recvmsg: _message,
    Call.sendmmsg: _message,
    Call.recvmmsg: _message,
    Call.sendfile: _sendfile,
    Call.splice: _splice,
    Call.tee: _splice,
    Call.vmsplice: _splice,
    Call.close: ints(1),
    Call.close_range: _close_range,
    Call.dup: ints(1),
    Call.dup2: ints(2),
    Call.dup3: ints_and_flags(2, c.PIPE_FLAGS),
    Call.fcntl: _fcntl,
    Call.ioctl: _ioctl,
    Call.pidfd_getfd: ints(3),
    Call.pidfd_open: ints_and_flags(1, c.PIDFD_FLAGS),
    Call.pipe: _pipe,
    Call.pipe2: _pipe,
    Call.poll: _poll,
    Call.ppoll: _poll,
    Call.select: _select,
    Call.pselect6: _select,
    Call.epoll_create: ints(1),
    Call.epoll_create1: ints_and_flags(0, c.EPOLL_CREATE_FLAGS),
    Call.epoll_ctl: _epoll_ctl,
    Call.epoll_wait: _epoll_wait,
    Call.epoll_pwait: _epoll_wait,
    Call.epoll_pwait2: _epoll_wait,
    Call.eventfd: ints(1),
    Call.eventfd2: ints_and_flags(1, c.EVENTFD_FLAGS),
    Call.timerfd_create: _timerfd,
    Call.signalfd: _signalfd,
    Call.signalfd4: _signalfd,
}
"""Every call; what is missing here is shown with raw arguments."""
