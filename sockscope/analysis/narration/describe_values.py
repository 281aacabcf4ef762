"""Values in strace's notation: flags, addresses, control messages, option values, results."""

from __future__ import annotations

import errno
import ipaddress
import os
import struct

from sockscope.analysis.narration.describe_view import signed32, signed64
from sockscope.analysis.narration.payload import quote
from sockscope.model import constants as c
from sockscope.model.events import UNSEEN_POINTER
from sockscope.model.signals import signal_name
from sockscope.model.sockaddr import dotted


def pointer(value: int) -> str:
    """An address; dots where the source told only that there is something."""
    if value == UNSEEN_POINTER:
        return "..."
    return f"{value:#x}" if value else "NULL"


def name(value: int, names: c.Names) -> str:
    """The constant's name, or the number."""
    return names.get(value) or (str(value) if -1 <= value < 1024 else f"{value:#x}")


def flags(value: int, names: c.Names) -> str:
    """`A|B|0x40000`: named bits in the table's order, what has no name in hex; `0` for none."""
    if not value & (value - 1) and (value in names or not value):
        # One bit, or none: what most calls have.
        return names[value] if value else "0"
    left = value
    found = set()
    # Names of several bits first: O_SYNC contains O_DSYNC.
    for bits in sorted(names, key=int.bit_count, reverse=True):
        if bits and left & bits == bits:
            found.add(bits)
            left &= ~bits
    parts = [names[bits] for bits in names if bits in found]
    if left:
        parts.append(f"{left:#x}")
    return "|".join(parts) or "0"


def errno_name(number: int) -> str:
    if number in c.RESTARTS:
        return c.RESTARTS[number][0]
    return errno.errorcode.get(number, f"errno {number}")


def result(ret: int) -> str:
    """`3`, or `-1 EAGAIN (Resource temporarily unavailable)`."""
    if not -4096 < ret < 0:
        return str(ret)
    if -ret in c.RESTARTS:
        short, long = c.RESTARTS[-ret]
        return f"? {short} ({long})"
    if -ret not in errno.errorcode:
        return f"-1 (errno {-ret})"
    return f"-1 {errno.errorcode[-ret]} ({os.strerror(-ret)})"


def wait_status(status: int) -> str:
    """strace's notation of a wait status. Source: wait(2)."""
    status &= 0xFFFFFFFF
    if status == 0xFFFF:
        return "{WIFCONTINUED(s)}"
    if status & 0x7F == 0:
        return f"{{WIFEXITED(s) && WEXITSTATUS(s) == {status >> 8 & 0xFF}}}"
    if status & 0xFF == 0x7F:
        return f"{{WIFSTOPPED(s) && WSTOPSIG(s) == {signal_name(status >> 8 & 0xFF)}}}"
    core = " && WCOREDUMP(s)" if status & 0x80 else ""
    return f"{{WIFSIGNALED(s) && WTERMSIG(s) == {signal_name(status & 0x7F)}{core}}}"


def sockaddr(raw: bytes) -> str:
    """`{sa_family=AF_INET, sin_port=htons(80), sin_addr="127.0.0.1"}`. Source: ip(7), ipv6(7), unix(7)."""
    if len(raw) < 2:
        return "{}"
    (family,) = struct.unpack_from("<H", raw)
    head = f"sa_family={name(family, c.FAMILIES)}"
    if family == 2 and len(raw) >= 8:
        (port,) = struct.unpack_from("!H", raw, 2)
        return f'{{{head}, sin_port=htons({port}), sin_addr="{dotted(raw[4:8])}"}}'
    if family == 10 and len(raw) >= 24:
        port, flow = struct.unpack_from("!HI", raw, 2)
        text = f'{head}, sin6_port=htons({port}), sin6_addr="{ipaddress.IPv6Address(raw[8:24])}"'
        if flow:
            text += f", sin6_flowinfo={flow:#x}"
        scope = struct.unpack_from("<I", raw, 24)[0] if len(raw) >= 28 else 0
        return f"{{{text}, sin6_scope_id={scope}}}" if scope else f"{{{text}}}"
    if family == 1:
        path = raw[2:]
        if not path:
            return f"{{{head}}}"
        if path[:1] == b"\0":
            return f"{{{head}, sun_path=@{quote(path[1:], limit=108)}}}"
        return f"{{{head}, sun_path={quote(path.split(bytes(1), 1)[0], limit=108)}}}"
    if family == 16 and len(raw) >= 12:
        pid, groups = struct.unpack_from("<II", raw, 4)
        return f"{{{head}, nl_pid={pid}, nl_groups={groups:#010x}}}"
    return f"{{{head}, sa_data={quote(raw[2:], limit=32)}}}"


def control_messages(raw: bytes) -> list[tuple[int, int, bytes]]:
    """(level, type, data) of each whole cmsghdr; a cut one yields what is there. Source: cmsg(3)."""
    found = []
    at = 0
    while at + 16 <= len(raw):
        length, level, kind = struct.unpack_from("<Qii", raw, at)
        if length < 16:
            break
        found.append((level, kind, raw[at + 16 : at + min(length, len(raw) - at)]))
        at += (length + 7) & ~7
    return found


def passed_fds(raw: bytes) -> list[int]:
    """Descriptors in SCM_RIGHTS messages."""
    fds: list[int] = []
    for level, kind, data in control_messages(raw):
        if (level, kind) == (c.SOL_SOCKET, c.SCM_RIGHTS):
            fds.extend(struct.unpack(f"<{len(data) // 4}i", data[: len(data) // 4 * 4]))
    return fds


def control(raw: bytes) -> str:
    parts = []
    for level, kind, data in control_messages(raw):
        names = c.CONTROL_TYPES if level == c.SOL_SOCKET else c.OPTIONS_BY_LEVEL.get(level, {})
        head = f"cmsg_level={name(level, c.SOCKOPT_LEVELS)}, cmsg_type={name(kind, names)}"
        if (level, kind) == (c.SOL_SOCKET, c.SCM_RIGHTS):
            body = "[" + ", ".join(map(str, struct.unpack(f"<{len(data) // 4}i", data[: len(data) // 4 * 4]))) + "]"
        elif (level, kind) == (c.SOL_SOCKET, c.SCM_CREDENTIALS) and len(data) >= 12:
            pid, uid, gid = struct.unpack_from("<iII", data)
            body = f"{{pid={pid}, uid={uid}, gid={gid}}}"
        else:
            body = quote(data, limit=32)
        parts.append(f"{{{head}, cmsg_data={body}}}")
    return f"[{', '.join(parts)}]"


def option_name(level: int, option: int) -> str:
    return name(option, c.OPTIONS_BY_LEVEL.get(level, {}))


def option_value(level: int, option: int, raw: bytes) -> str:
    """`[1]`, `{l_onoff=1, l_linger=0}`, `{tv_sec=2, tv_usec=0}`. Source: socket(7), tcp(7)."""
    title = option_name(level, option)
    if title == "SO_LINGER" and len(raw) >= 8:
        onoff, linger = struct.unpack_from("<ii", raw)
        return f"{{l_onoff={onoff}, l_linger={linger}}}"
    if title in c.TIMEVAL_OPTIONS and len(raw) >= 16:
        seconds, micros = struct.unpack_from("<qq", raw)
        return f"{{tv_sec={seconds}, tv_usec={micros}}}"
    if title in c.TEXT_OPTIONS:
        return quote(raw.split(bytes(1), 1)[0])
    if title == "SO_PEERCRED" and len(raw) >= 12:
        pid, uid, gid = struct.unpack_from("<iII", raw)
        return f"{{pid={pid}, uid={uid}, gid={gid}}}"
    if title == "TCP_INFO" and raw:
        return f"{{tcpi_state={raw[0]}, ...}}"
    if len(raw) == 4:
        (number,) = struct.unpack("<i", raw)
        if title == "SO_ERROR" and number > 0:
            return f"[{errno_name(number)}]"
        if title == "SO_DOMAIN":
            return f"[{name(number, c.FAMILIES)}]"
        if title == "SO_TYPE":
            return f"[{name(number, c.SOCKET_TYPES)}]"
        if title == "SO_PROTOCOL":
            return f"[{name(number, c.IP_PROTOCOLS)}]"
        return f"[{number}]"
    if len(raw) == 1:
        return f"[{raw[0]}]"
    if len(raw) == 8 and title == "SO_COOKIE":
        return f"[{struct.unpack('<Q', raw)[0]}]"
    return quote(raw, limit=32) if raw else '""'


def poll_entries(raw: bytes) -> list[tuple[int, int, int]]:
    """(fd, events, revents) of each whole struct pollfd."""
    return [
        (fd, events & 0xFFFF, revents & 0xFFFF) for fd, events, revents in struct.iter_unpack("<ihh", _whole(raw, 8))
    ]


def epoll_entries(packed: bytes | None, aligned: bytes | None) -> list[tuple[int, int]]:
    """(events, data) of each whole struct epoll_event, 12 bytes (x86_64) or 16 (aarch64)."""
    if packed is not None:
        return list(struct.iter_unpack("<IQ", _whole(packed, 12)))
    if aligned is not None:
        return list(struct.iter_unpack("<I4xQ", _whole(aligned, 16)))
    return []


def epoll_fd(data: int) -> int:
    """The descriptor that a program most likely put into epoll_data; -1 where it looks like a pointer.

    libev keeps a generation in the upper half, CPython leaves noise there: only the lower half is judged.
    """
    low = data & 0xFFFFFFFF
    return low if low < 1 << 20 else -1


def epoll_event(events: int, data: int) -> str:
    shown = flags(events, c.EPOLL_EVENTS)
    if epoll_fd(data) < 0:
        return f"{{{shown}, data={data:#x}}}"
    upper = f", u64={data:#x}" if data >> 32 else ""
    return f"{{{shown}, fd/data={data & 0xFFFFFFFF}{upper}}}"


def fd_sets(raw: bytes, nfds: int) -> tuple[list[int], list[int], list[int]]:
    """Descriptors in the read, write and except sets, as far as they were copied."""
    size = (max(0, min(nfds, 1 << 20)) + 63) // 64 * 8
    found = []
    for which in range(3):
        bits = int.from_bytes(raw[which * size : (which + 1) * size], "little")
        fds = []
        while bits:
            lowest = bits & -bits
            fds.append(lowest.bit_length() - 1)
            bits ^= lowest
        found.append(fds)
    return found[0], found[1], found[2]


def timespec(raw: bytes, part: str) -> str:
    """`{tv_sec=1, tv_nsec=0}`; `part` is tv_nsec or tv_usec."""
    seconds, rest = struct.unpack("<qq", raw)
    return f"{{tv_sec={seconds}, {part}={rest}}}"


def descriptor_at(value: int) -> str:
    """A dirfd."""
    fd = signed32(value)
    return "AT_FDCWD" if fd == c.AT_FDCWD else str(fd)


def offset(value: int) -> str:
    return str(signed64(value))


def _whole(raw: bytes, size: int) -> bytes:
    return raw[: len(raw) // size * size]
