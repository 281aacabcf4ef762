"""What is copied from the target's memory for each call, as data. Pure.

An engine's inner loop reads the packed form (`pack_plans`), so what is copied is said once, here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

from sockscope.model.calls import Call
from sockscope.model.events import Section
from sockscope.sources.syscalls.abi import MAX_NUMBER, Abi


class How(IntEnum):
    """How the length of a copy is found. Values are shared with csrc/engine.h."""

    FIXED = 1  # `unit` bytes
    LEN_ARG = 2  # args[len] bytes
    LEN_PTR = 3  # *(u4 *)args[len] bytes (value-result socklen_t)
    RET = 4  # ret x `unit` bytes
    COUNT = 5  # args[len] x `unit` bytes
    PAYLOAD = 6  # ret bytes (args[len] where it failed), at most the payload prefix
    IOV = 7  # struct iovec x args[len]: IOV_TOTAL and a payload prefix
    MSG = 8  # struct msghdr: name, iovecs, control, flags; `unit` 1: receives
    MMSG = 9  # struct mmsghdr x ret: MMSG_LENS and the first one's parts; `unit` 1: receives
    PATH = 10  # a NUL-terminated string
    FDSETS = 11  # the three sets of select


class When(IntEnum):
    """When the memory holds what is wanted."""

    ENTRY = 1  # the call changes it, or the memory is gone afterwards
    SUCCESS = 2  # output
    END = 3  # input that the call leaves alone: read at the end, also of a failed or unfinished call


class Filter(IntEnum):
    """Which of these calls are worth a record."""

    KEEP = 0
    SHARED_MAP = 1  # mmap: MAP_SHARED of a descriptor
    KNOWN_IOCTL = 2  # requests about sockets and descriptors


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One copy.

    Attributes:
        ptr: which argument points to it.
        len: which argument says how much (see `How`).
        unit: bytes an element, or a flag (see `How`).
        cap: at most so many bytes; what is longer is flagged TRUNCATED.
    """

    section: Section
    how: How
    when: When
    ptr: int
    len: int = 0
    unit: int = 1
    cap: int = 128


OP = struct.Struct("<BBBBBBH")
OPS_MAX = 6
PLAN = struct.Struct("<HBB48s")
PLAN_BYTES = PLAN.size

SOCKADDR_CAP = 128
OPTION_CAP = 256
POLLFD_CAP = 8192
EPOLL_CAP = 8192


def _address_in(ptr: int, length: int) -> Op:
    return Op(section=Section.SOCKADDR, how=How.LEN_ARG, when=When.END, ptr=ptr, len=length, cap=SOCKADDR_CAP)


def _address_out(ptr: int, length: int) -> Op:
    return Op(section=Section.SOCKADDR, how=How.LEN_PTR, when=When.SUCCESS, ptr=ptr, len=length, cap=SOCKADDR_CAP)


def _path(ptr: int, when: When = When.END) -> tuple[Op, ...]:
    return (Op(section=Section.PATH, how=How.PATH, when=when, ptr=ptr),)


def _timeout(ptr: int, when: When) -> Op:
    return Op(section=Section.TIMEOUT, how=How.FIXED, when=when, ptr=ptr, unit=16)


def _payload(when: When) -> tuple[Op, ...]:
    return (Op(section=Section.PAYLOAD, how=How.PAYLOAD, when=when, ptr=1, len=2),)


def _iov(when: When) -> tuple[Op, ...]:
    return (Op(section=Section.PAYLOAD, how=How.IOV, when=when, ptr=1, len=2),)


def _msg(how: How, when: When) -> tuple[Op, ...]:
    return (Op(section=Section.PAYLOAD, how=how, when=when, ptr=1, unit=int(when is When.SUCCESS)),)


def _pair(ptr: int) -> tuple[Op, ...]:
    return (Op(section=Section.FD_PAIR, how=How.FIXED, when=When.SUCCESS, ptr=ptr, unit=8),)


POLLFDS = Op(section=Section.POLLFDS, how=How.COUNT, when=When.END, ptr=0, len=1, unit=8, cap=POLLFD_CAP)
# FDSETS are named by their how; ptr and len are the call's own.
SELECT_SETS = (
    Op(section=Section.FDSETS_IN, how=How.FDSETS, when=When.ENTRY, ptr=1),
    Op(section=Section.FDSETS, how=How.FDSETS, when=When.SUCCESS, ptr=1),
    _timeout(4, When.ENTRY),
)


def plans_of(abi: Abi) -> Mapping[Call, tuple[Op, ...]]:
    """Every copy of every call; a call that is not named copies nothing."""
    events = Section.EPOLL_EVENTS if abi.epoll_event_bytes == 12 else Section.EPOLL_EVENTS_ALIGNED
    size = abi.epoll_event_bytes
    ready = Op(section=events, how=How.RET, when=When.SUCCESS, ptr=1, unit=size, cap=EPOLL_CAP)
    interest = Op(section=events, how=How.FIXED, when=When.END, ptr=3, unit=size)
    option_out = Op(section=Section.OPTION, how=How.LEN_PTR, when=When.SUCCESS, ptr=3, len=4, cap=OPTION_CAP)
    option_in = Op(section=Section.OPTION, how=How.LEN_ARG, when=When.END, ptr=3, len=4, cap=OPTION_CAP)
    return MappingProxyType(
        {
            Call.bind: (_address_in(1, 2),),
            Call.connect: (_address_in(1, 2),),
            Call.accept: (_address_out(1, 2),),
            Call.accept4: (_address_out(1, 2),),
            Call.getsockname: (_address_out(1, 2),),
            Call.getpeername: (_address_out(1, 2),),
            Call.getsockopt: (option_out,),
            Call.setsockopt: (option_in,),
            Call.socketpair: _pair(3),
            Call.sendto: (*_payload(When.END), _address_in(4, 5)),
            Call.recvfrom: (*_payload(When.SUCCESS), _address_out(4, 5)),
            Call.sendmsg: _msg(How.MSG, When.END),
            Call.recvmsg: _msg(How.MSG, When.SUCCESS),
            Call.sendmmsg: _msg(How.MMSG, When.END),
            Call.recvmmsg: _msg(How.MMSG, When.SUCCESS),
            Call.read: _payload(When.SUCCESS),
            Call.pread64: _payload(When.SUCCESS),
            Call.write: _payload(When.END),
            Call.pwrite64: _payload(When.END),
            Call.readv: _iov(When.SUCCESS),
            Call.preadv: _iov(When.SUCCESS),
            Call.preadv2: _iov(When.SUCCESS),
            Call.writev: _iov(When.END),
            Call.pwritev: _iov(When.END),
            Call.pwritev2: _iov(When.END),
            Call.vmsplice: _iov(When.END),
            Call.pipe: _pair(0),
            Call.pipe2: _pair(0),
            Call.ioctl: (Op(section=Section.INT, how=How.FIXED, when=When.SUCCESS, ptr=2, unit=4),),
            Call.wait4: (Op(section=Section.INT, how=How.FIXED, when=When.SUCCESS, ptr=1, unit=4),),
            Call.poll: (POLLFDS,),
            Call.ppoll: (POLLFDS, _timeout(2, When.ENTRY)),
            Call.select: SELECT_SETS,
            Call.pselect6: SELECT_SETS,
            Call.epoll_ctl: (interest,),
            Call.epoll_wait: (ready,),
            Call.epoll_pwait: (ready,),
            Call.epoll_pwait2: (ready, _timeout(3, When.END)),
            Call.clone3: (
                Op(section=Section.CLONE_ARGS, how=How.LEN_ARG, when=When.ENTRY, ptr=0, len=1, cap=SOCKADDR_CAP),
            ),
            # exec replaces the memory that holds its path.
            Call.execve: _path(0, When.ENTRY),
            Call.execveat: _path(1, When.ENTRY),
            Call.open: _path(0),
            Call.creat: _path(0),
            Call.openat: _path(1),
            Call.openat2: _path(1),
            Call.unlink: _path(0),
            Call.unlinkat: _path(1),
            Call.memfd_create: _path(0),
        }
    )


FILTERS: Mapping[Call, Filter] = MappingProxyType({Call.mmap: Filter.SHARED_MAP, Call.ioctl: Filter.KNOWN_IOCTL})


def pack_plans(abi: Abi) -> bytes:
    """The plans as csrc/engine.h's `struct plan[512]`, indexed by syscall number; zeros where not traced."""
    plans = plans_of(abi)
    table = bytearray(PLAN_BYTES * MAX_NUMBER)
    for number, call in abi.calls.items():
        ops = plans.get(call, ())
        packed = b"".join(OP.pack(o.section, o.how, o.when, o.ptr, o.len, o.unit, o.cap) for o in ops)
        PLAN.pack_into(table, number * PLAN_BYTES, call, len(ops), FILTERS.get(call, Filter.KEEP), packed)
    return bytes(table)
