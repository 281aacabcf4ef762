"""/proc/PID read and parsed: stat, status, fdinfo. Parsers take bytes, so that they can be tested alone.

A process that is gone, or that may not be read, is data: readers return None for it.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

from sockscope.model.seed import FileKind

O_NONBLOCK = 0o4000
O_CLOEXEC = 0o2000000
_ACCESS_MODE = 0o3

# eventpoll.c ep_show_fdinfo(): tfd is decimal, events, data and ino are hexadecimal.
_INTEREST = re.compile(
    rb"^tfd:\s*(\d+)\s+events:\s*([0-9a-f]+)\s+data:\s*([0-9a-f]+)(?:\s+pos:\S+\s+ino:([0-9a-f]+))?", re.MULTILINE
)
_FLAGS = re.compile(rb"^flags:\s*([0-7]+)", re.MULTILINE)

_ANON_KINDS = {
    "[eventpoll]": FileKind.EPOLL,
    "[eventfd]": FileKind.EVENTFD,
    "[timerfd]": FileKind.TIMERFD,
    "[signalfd]": FileKind.SIGNALFD,
    "[io_uring]": FileKind.IO_URING,
    "[pidfd]": FileKind.PIDFD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interest:
    """One registration in an epoll instance, as fdinfo prints it."""

    fd: int
    events: int
    data: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """/proc/PID/stat. `start_ticks`: clock ticks after boot (CLOCK_BOOTTIME)."""

    comm: str
    state: str
    ppid: int
    flags: int
    start_ticks: int


def read_file(path: str) -> bytes | None:
    """A whole /proc file; None where it is gone or refused."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return read_all(handle)
    except OSError:
        return None
    finally:
        os.close(handle)


def read_all(handle: int) -> bytes:
    """To the end: /proc gives at most a page or so at a time."""
    data = os.read(handle, 1 << 16)
    # A short answer is not the end of a seq_file.
    while data and (more := os.read(handle, 1 << 16)):
        data += more
    return data


def read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def parse_stat(data: bytes) -> Stat | None:
    """The comm may hold blanks and parentheses: it ends at the last one. Source: proc_pid_stat(5)."""
    begin, end = data.find(b"("), data.rfind(b")")
    fields = data[end + 1 :].split()
    if begin < 0 or end < begin or len(fields) < 20:
        return None
    try:
        return Stat(
            comm=data[begin + 1 : end].decode("utf-8", "backslashreplace"),
            state=fields[0].decode("ascii", "replace"),
            ppid=int(fields[1]),
            flags=int(fields[6]),
            start_ticks=int(fields[19]),
        )
    except ValueError:
        return None


def read_stat(tgid: int) -> Stat | None:
    data = read_file(f"/proc/{tgid}/stat")
    return parse_stat(data) if data else None


def parse_ns_tgid(status: bytes) -> int | None:
    """The innermost number of NSpid, where the process lives in a pid namespace of its own; else None."""
    for line in status.splitlines():
        if line.startswith(b"NSpid:"):
            numbers = line.split()[1:]
            return int(numbers[-1]) if len(numbers) > 1 and numbers[-1].isdigit() else None
    return None


def parse_flags(fdinfo: bytes) -> int:
    """Open flags (O_*), with O_CLOEXEC for this descriptor; 0 where there are none."""
    found = _FLAGS.search(fdinfo)
    return int(found[1], 8) if found else 0


def parse_interests(fdinfo: bytes) -> list[Interest]:
    """The `tfd:` lines of an epoll instance. Source: proc_pid_fdinfo(5)."""
    return [
        Interest(fd=int(fd), events=int(events, 16), data=int(data, 16), inode=int(inode or b"0", 16))
        for fd, events, data, inode in _INTEREST.findall(fdinfo)
    ]


def access_mode(flags: int) -> int:
    """O_RDONLY, O_WRONLY or O_RDWR."""
    return flags & _ACCESS_MODE


def kind_of_link(target: str) -> tuple[FileKind, int]:
    """What `readlink /proc/PID/fd/N` says: the kind, and the inode of a socket or pipe (else 0)."""
    if target.startswith("socket:["):
        return FileKind.SOCKET, _bracketed(target)
    if target.startswith("pipe:["):
        return FileKind.PIPE, _bracketed(target)
    if target.startswith("anon_inode:"):
        return _ANON_KINDS.get(target.removeprefix("anon_inode:"), FileKind.OTHER), 0
    if target.startswith("pidfd:["):
        # pidfs, since 6.9
        return FileKind.PIDFD, 0
    if target.startswith(("/dev/shm/", "/SYSV", "/memfd:")):
        return FileKind.SHARED_MEMORY, 0
    return FileKind.OTHER, 0


def _bracketed(target: str) -> int:
    number = target[target.find("[") + 1 : -1]
    return int(number) if number.isdigit() else 0


def started_monotonic_ns(start_ticks: int) -> int:
    """Start time on CLOCK_MONOTONIC: /proc counts from boot with the time asleep, CLOCK_MONOTONIC without."""
    asleep = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return start_ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK") - asleep


def sees_every_process() -> bool:
    """Whether this is the first pid namespace (its inode is fixed: include/uapi/linux/nsfs.h, PROC_PID_INIT_INO)."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == 0xEFFFFFFC
    except OSError:
        return False


def children_of_all() -> dict[int, list[int]]:
    """Parent → children, of every process there is."""
    out: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            out.setdefault(stat.ppid, []).append(int(name))
    return out
