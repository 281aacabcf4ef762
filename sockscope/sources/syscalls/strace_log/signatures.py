"""What the arguments of each call are, and which register each is in. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from sockscope.model.calls import FIRST_TASK_EVENT, Call
from sockscope.model.events import UNSEEN_POINTER
from sockscope.sources.syscalls.abi import NEWER, NOT_TRACED
from sockscope.sources.syscalls.strace_log.arguments import Group, NotUnderstood
from sockscope.sources.syscalls.strace_log.values import (
    U64,
    after,
    before,
    number,
    pointer,
    word_number,
)

Arguments: TypeAlias = tuple[int, int, int, int, int, int]

_OTHER_NAMES: Final[Mapping[str, Call]] = {
    "send": Call.sendto,
    "recv": Call.recvfrom,
    "pread": Call.pread64,
    "pwrite": Call.pwrite64,
    "fcntl64": Call.fcntl,
    "sendfile64": Call.sendfile,
    "_newselect": Call.select,
    "mmap2": Call.mmap,
    "ppoll_time64": Call.ppoll,
    "pselect6_time64": Call.pselect6,
    "recvmmsg_time64": Call.recvmmsg,
}
"""Of other architectures and of older versions of strace."""

_UNNAMED: Final = {
    form.format(number): Call[name] for number, name in NEWER.items() for form in ("syscall_{:#x}", "syscall_{}")
}
"""How a strace older than the call writes it: `syscall_0x1b9(0xa, 0x7ffe50, ...)`."""

CALLS: Final[Mapping[str, Call]] = MappingProxyType(
    {call.name: call for call in Call if Call.unknown < call < FIRST_TASK_EVENT and call not in NOT_TRACED}
    | dict(_OTHER_NAMES)
    | _UNNAMED
)
"""Every call that is recorded, by strace's name."""

NAMES_NO_FD: Final = frozenset(
    {
        Call.kill,
        Call.tkill,
        Call.tgkill,
        Call.wait4,
        Call.waitid,
        Call.clone,
        Call.clone3,
        Call.fork,
        Call.vfork,
    }
)
"""Calls whose numbers are processes: -Y names these too."""

# See `signature_of`. A call whose descriptor (d) is not known says nothing.
_SIGNATURES: Final[Mapping[Call, str]] = {
    Call.socket: "nnn",
    Call.socketpair: "nnnp",
    Call.bind: "dpn",
    Call.listen: "dn",
    Call.accept: "dpp",
    Call.accept4: "dppn",
    Call.connect: "dpn",
    Call.shutdown: "dn",
    Call.getsockopt: "dnnpp",
    Call.setsockopt: "dnnpn",
    Call.getsockname: "dpp",
    Call.getpeername: "dpp",
    Call.sendto: "dpnnpn",
    Call.sendmsg: "dpn",
    Call.sendmmsg: "dpnn",
    Call.recvfrom: "dpnnpp",
    Call.recvmsg: "dpn",
    Call.recvmmsg: "dpnnp",
    Call.read: "dpn",
    Call.write: "dpn",
    Call.readv: "dpn",
    Call.writev: "dpn",
    Call.pread64: "dpnn",
    Call.pwrite64: "dpnn",
    Call.preadv: "dpnn",
    Call.pwritev: "dpnn",
    Call.preadv2: "dpnn-n",
    Call.pwritev2: "dpnn-n",
    Call.sendfile: "ddpn",
    Call.splice: "dpdpnn",
    Call.tee: "ddnn",
    Call.vmsplice: "dpnn",
    Call.close: "d",
    Call.close_range: "nnn",
    Call.dup: "d",
    Call.dup2: "dd",
    Call.dup3: "ddn",
    Call.fcntl: "dnx",
    Call.ioctl: "dnx",
    Call.pidfd_getfd: "ddn",
    Call.pidfd_open: "nn",
    Call.pipe: "p",
    Call.pipe2: "pn",
    Call.poll: "pnn",
    Call.ppoll: "pnppn",
    Call.select: "npppp",
    Call.pselect6: "nppppp",
    Call.epoll_create: "n",
    Call.epoll_create1: "n",
    Call.epoll_ctl: "dndp",
    Call.epoll_wait: "dpnn",
    Call.epoll_pwait: "dpnnpn",
    Call.epoll_pwait2: "dpnppn",
    Call.clone3: "pn",
    Call.execve: "ppp",
    Call.execveat: "npppn",
    Call.exit: "n",
    Call.exit_group: "n",
    Call.wait4: "npnp",
    Call.waitid: "nnpnp",
    Call.unshare: "n",
    Call.kill: "nn",
    Call.tkill: "nn",
    Call.tgkill: "nnn",
    Call.shmget: "nnn",
    Call.shmat: "npn",
    Call.shmdt: "p",
    Call.shmctl: "nnp",
    Call.openat: "npnn",
    Call.open: "pnn",
    Call.openat2: "nppn",
    Call.creat: "pn",
    Call.unlink: "p",
    Call.unlinkat: "npn",
    Call.mmap: "pnnnnn",
    Call.eventfd: "n",
    Call.eventfd2: "nn",
    Call.timerfd_create: "nn",
    Call.signalfd: "npn",
    Call.signalfd4: "npnn",
    Call.memfd_create: "pn",
    Call.io_uring_setup: "np",
    Call.io_uring_enter: "nnnnpn",
}


_PLANS: Final[Mapping[Call, tuple[tuple[int, str], ...]]] = MappingProxyType(
    {
        call: tuple((place, kind) for place, kind in enumerate(_SIGNATURES.get(call, "")) if kind != "-")
        for call in CALLS.values()
    }
)
"""The register and the kind of each argument that strace prints."""

_CLONE_REGISTERS: Final[Mapping[bytes, int]] = {
    b"flags": 0,
    b"child_stack": 1,
    b"parent_tidptr": 2,
    b"parent_tid": 2,
    b"child_tidptr": 3,
    b"child_tid": 3,
    b"tls": 4,
}
"""clone's arguments by strace's names; the order is x86_64's. Source: clone(2), NOTES."""

_KNOWN_IOCTLS: Final = frozenset({0x5421, 0x5452, 0x541B, 0x5411, 0x5451, 0x5450})
"""FIONBIO, FIOASYNC, FIONREAD, TIOCOUTQ, FIOCLEX, FIONCLEX: as csrc/copy.c has them."""
_MAP_SHARED: Final = 1


def signature_of(call: Call) -> str:
    """A letter a register: n a number, p a pointer, d a descriptor, x a number or a pointer, - none."""
    return "npppp" if call is Call.clone else _SIGNATURES.get(call, "")


def arguments_of(call: Call, top: Group) -> Arguments:
    """The six registers.

    Raises:
        NotUnderstood: the call's descriptor is missing, or is no number.
    """
    if call is Call.clone:
        return _clone(top)
    registers = [0, 0, 0, 0, 0, 0]
    for (place, kind), value in zip(_PLANS[call], top.items, strict=False):
        if isinstance(value, bytes):
            found = word_number(value)
            if found is None:
                if kind == "d":
                    raise NotUnderstood(f"{call.name}: argument {place + 1} is no descriptor")
                found = UNSEEN_POINTER if kind == "p" else 0
            registers[place] = found & U64
        elif kind == "d":
            raise NotUnderstood(f"{call.name}: argument {place + 1} is no descriptor")
        else:
            registers[place] = (number(before(value)) or 0) & U64 if kind == "n" else UNSEEN_POINTER
    if not top.items and _SIGNATURES.get(call, "")[:1] == "d":
        raise NotUnderstood(f"{call.name} without a descriptor")
    first, second, third, fourth, fifth, sixth = registers
    return first, second, third, fourth, fifth, sixth


def _clone(top: Group) -> Arguments:
    registers = [0, 0, 0, 0, 0, 0]
    for place, (name, value) in enumerate(zip(top.names, top.items, strict=True)):
        register = _CLONE_REGISTERS.get(name, place if not name and place < 5 else -1)
        if register == 0:
            registers[0] = number(value) or 0
        elif register > 0:
            registers[register] = pointer(after(value)) & U64
    first, second, third, fourth, fifth, sixth = registers
    return first & U64, second, third, fourth, fifth, sixth


def of_interest(call: Call, args: Arguments) -> bool:
    """What `copy_plan.FILTERS` keeps."""
    if call is Call.ioctl:
        return args[1] & 0xFFFF_FFFF in _KNOWN_IOCTLS
    if call is Call.mmap:
        return bool(args[3] & _MAP_SHARED) and not args[4] & 0x8000_0000
    return True
