"""What is copied beside the arguments of each call: `copy_plan` said of strace's text. Pure."""

from __future__ import annotations

import re
import signal
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.sources.syscalls.strace_log import messages, waiting
from sockscope.sources.syscalls.strace_log.addresses import address_length, sockaddr
from sockscope.sources.syscalls.strace_log.arguments import Change, Group, Value
from sockscope.sources.syscalls.strace_log.options import option
from sockscope.sources.syscalls.strace_log.parts import Parts
from sockscope.sources.syscalls.strace_log.signatures import Arguments
from sockscope.sources.syscalls.strace_log.texts import Text
from sockscope.sources.syscalls.strace_log.values import U64, after, before, number, whole, word_number


class Shown(NamedTuple):
    """One call as strace showed it.

    Attributes:
        top: its arguments, as parsed.
        args: its registers.
        ret: its result, None where it has none.
        result, text: the result and the arguments as printed.
    """

    call: Call
    top: Group
    args: Arguments
    ret: int | None
    result: bytes
    text: bytes

    def item(self, place: int) -> Value | None:
        return self.top.items[place] if place < len(self.top.items) else None

    @property
    def succeeded(self) -> bool:
        return self.ret is not None and self.ret >= 0


def _address_in(place: int, length: int) -> Callable[[Shown, Parts], None]:
    def add(shown: Shown, parts: Parts) -> None:
        raw = sockaddr(shown.item(place), number(shown.item(length)))
        if raw:
            parts.add(Section.SOCKADDR, raw)

    return add


def _address_out(place: int, length: int) -> Callable[[Shown, Parts], None]:
    def add(shown: Shown, parts: Parts) -> None:
        raw = sockaddr(shown.item(place), address_length(shown.item(length))) if shown.succeeded else None
        if raw:
            parts.add(Section.SOCKADDR, raw)

    return add


def _sends(shown: Shown, parts: Parts) -> None:
    messages.payload(shown.item(1), shown.args[2], shown.ret, parts, receives=False)


def _receives(shown: Shown, parts: Parts) -> None:
    messages.payload(shown.item(1), shown.args[2], shown.ret, parts, receives=True)


_sent_to = _address_in(4, 5)
_received_from = _address_out(4, 5)


def _sendto(shown: Shown, parts: Parts) -> None:
    _sends(shown, parts)
    _sent_to(shown, parts)


def _recvfrom(shown: Shown, parts: Parts) -> None:
    _receives(shown, parts)
    _received_from(shown, parts)


class _Mover(Protocol):
    """A section of `messages`."""

    def __call__(self, value: Value | None, ret: int | None, parts: Parts, *, receives: bool) -> None: ...


def _moves(section: _Mover, *, receives: bool) -> Callable[[Shown, Parts], None]:
    def add(shown: Shown, parts: Parts) -> None:
        section(shown.item(1), shown.ret, parts, receives=receives)

    return add


_writes_vector = _moves(messages.iovecs, receives=False)
_reads_vector = _moves(messages.iovecs, receives=True)


def _getsockopt(shown: Shown, parts: Parts) -> None:
    if shown.succeeded:
        option(shown.args[1], shown.args[2], shown.item(3), address_length(shown.item(4)), parts)


def _setsockopt(shown: Shown, parts: Parts) -> None:
    option(shown.args[1], shown.args[2], shown.item(3), number(shown.item(4)), parts)


def _pair(place: int) -> Callable[[Shown, Parts], None]:
    def add(shown: Shown, parts: Parts) -> None:
        value = after(shown.item(place))
        if not shown.succeeded or not isinstance(value, Group) or len(value.items) < 2:
            return
        first, second = (number(each) for each in value.items[:2])
        if first is not None and second is not None:
            parts.add(Section.FD_PAIR, struct.pack("<II", first & 0xFFFF_FFFF, second & 0xFFFF_FFFF))

    return add


def _ioctl(shown: Shown, parts: Parts) -> None:
    value = shown.item(2)
    held = number(value) if isinstance(value, Group | Change) else None
    if shown.succeeded and held is not None:
        parts.add(Section.INT, struct.pack("<I", held & 0xFFFF_FFFF))


_STATUS = re.compile(
    rb"\[\{?(?:(WIFEXITED|WIFSIGNALED|WIFSTOPPED|WIFCONTINUED)\(s\)(?:[^]]*?==\s*(\w+))?|(0x[0-9a-f]{1,8}|\d{1,10}))"
)
_CORE = 0x80


def _wait(shown: Shown, parts: Parts) -> None:
    """`[{WIFEXITED(s) && WEXITSTATUS(s) == 0}]`. Source: wait(2); strace src/wait.c."""
    found = _STATUS.search(shown.text) if shown.succeeded and b"[" in shown.text else None
    if found is None:
        return
    if found[3]:
        status = word_number(found[3]) or 0
    else:
        value = (word_number(found[2]) if found[2] else None) or 0
        status = {
            b"WIFEXITED": (value & 0xFF) << 8,
            b"WIFSIGNALED": value & 0x7F | (_CORE if b"WCOREDUMP" in shown.text else 0),
            b"WIFSTOPPED": (value & 0xFF) << 8 | 0x7F,
            b"WIFCONTINUED": 0xFFFF,
        }[found[1]]
        if found[1] == b"WIFSTOPPED" and b"PTRACE_EVENT" in shown.text:
            status = signal.SIGTRAP << 8 | 0x7F
    parts.add(Section.INT, struct.pack("<I", status & 0xFFFF_FFFF))


def _poll(shown: Shown, parts: Parts) -> None:
    told = waiting.detail(shown.result) if shown.ret else None
    if shown.call is Call.ppoll:
        waiting.timeout(shown.item(2), parts)
    waiting.pollfds(shown.item(0), shown.ret, told, parts)


def _select(shown: Shown, parts: Parts) -> None:
    told = waiting.detail(shown.result) if shown.ret else None
    sets = [shown.item(place) for place in (1, 2, 3)]
    waiting.fd_sets(shown.args[0], sets, shown.ret, told, parts)
    waiting.timeout(shown.item(4), parts)


def _epoll_ctl(shown: Shown, parts: Parts) -> None:
    waiting.epoll_event(shown.item(3), parts)


def _epoll_wait(shown: Shown, parts: Parts) -> None:
    waiting.epoll_events(shown.item(1), shown.ret, parts)
    if shown.call is Call.epoll_pwait2:
        waiting.timeout(shown.item(3), parts)


_CLONE_FIELDS: Final = (
    b"flags",
    b"pidfd",
    b"child_tid",
    b"parent_tid",
    b"exit_signal",
    b"stack",
    b"stack_size",
    b"tls",
    b"set_tid",
    b"set_tid_size",
    b"cgroup",
)
"""struct clone_args. Source: include/uapi/linux/sched.h."""


def _clone3(shown: Shown, parts: Parts) -> None:
    value = before(shown.item(0))
    if not isinstance(value, Group) or value.opener != b"{":
        return
    raw = struct.pack("<11Q", *(whole(value.field(name)) & U64 for name in _CLONE_FIELDS))
    size = shown.args[1] if 0 < shown.args[1] <= len(raw) else len(raw)
    parts.add(Section.CLONE_ARGS, raw[:size])


def _path(place: int) -> Callable[[Shown, Parts], None]:
    def add(shown: Shown, parts: Parts) -> None:
        value = shown.item(place)
        if isinstance(value, Text):
            if value.cut:
                parts.cut()
            parts.add(Section.PATH, value.data.split(b"\0", 1)[0][:4096])

    return add


SECTIONS: Final[Mapping[Call, Callable[[Shown, Parts], None]]] = MappingProxyType(
    {
        Call.bind: _address_in(1, 2),
        Call.connect: _address_in(1, 2),
        Call.accept: _address_out(1, 2),
        Call.accept4: _address_out(1, 2),
        Call.getsockname: _address_out(1, 2),
        Call.getpeername: _address_out(1, 2),
        Call.getsockopt: _getsockopt,
        Call.setsockopt: _setsockopt,
        Call.socketpair: _pair(3),
        Call.sendto: _sendto,
        Call.recvfrom: _recvfrom,
        Call.sendmsg: _moves(messages.message, receives=False),
        Call.recvmsg: _moves(messages.message, receives=True),
        Call.sendmmsg: _moves(messages.messages, receives=False),
        Call.recvmmsg: _moves(messages.messages, receives=True),
        Call.read: _receives,
        Call.pread64: _receives,
        Call.write: _sends,
        Call.pwrite64: _sends,
        Call.readv: _reads_vector,
        Call.preadv: _reads_vector,
        Call.preadv2: _reads_vector,
        Call.writev: _writes_vector,
        Call.pwritev: _writes_vector,
        Call.pwritev2: _writes_vector,
        Call.vmsplice: _writes_vector,
        Call.pipe: _pair(0),
        Call.pipe2: _pair(0),
        Call.ioctl: _ioctl,
        Call.wait4: _wait,
        Call.poll: _poll,
        Call.ppoll: _poll,
        Call.select: _select,
        Call.pselect6: _select,
        Call.epoll_ctl: _epoll_ctl,
        Call.epoll_wait: _epoll_wait,
        Call.epoll_pwait: _epoll_wait,
        Call.epoll_pwait2: _epoll_wait,
        Call.clone3: _clone3,
        Call.execve: _path(0),
        Call.execveat: _path(1),
        Call.open: _path(0),
        Call.creat: _path(0),
        Call.openat: _path(1),
        Call.openat2: _path(1),
        Call.unlink: _path(0),
        Call.unlinkat: _path(1),
        Call.memfd_create: _path(0),
    }
)
"""A call that is not named has nothing beside its arguments."""
