"""Syscall numbers of each architecture, mapped to `Call` and back. Pure.

Source: python-ptrace's tables, and include/uapi/asm-generic/unistd.h for what is newer than they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType

from sockscope.model.calls import FIRST_TASK_EVENT, Call


class Machine(StrEnum):
    """Architectures that can be traced, as `os.uname().machine` names them."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


MAX_NUMBER = 512
"""Numbers from here on are x32's duplicates (x86_64) or not assigned."""

NEWER = MappingProxyType(
    {
        425: "io_uring_setup",
        426: "io_uring_enter",
        434: "pidfd_open",
        435: "clone3",
        436: "close_range",
        437: "openat2",
        438: "pidfd_getfd",
        441: "epoll_pwait2",
    }
)
"""The same on every architecture since Linux 5.1."""

RENAMED = MappingProxyType({"timerfd": "timerfd_create"})
"""Names that python-ptrace's x86_64 table has from a kernel before the call's release."""

NOT_TRACED = frozenset({Call.munmap})
"""Has a Call, but happens with every free of a large block and says nothing that exit does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abi:
    """One architecture.

    Attributes:
        calls: syscall number → Call, of the traced set.
        numbers: the inverse.
        restart_syscall, rt_sigreturn: numbers the tracer must see though they are not recorded.
        epoll_event_bytes: sizeof(struct epoll_event): packed on x86_64 alone.
    """

    machine: Machine
    calls: Mapping[int, Call]
    numbers: Mapping[Call, int]
    restart_syscall: int
    rt_sigreturn: int
    epoll_event_bytes: int


def _names(machine: Machine) -> Mapping[int, str]:
    if machine is Machine.X86_64:
        from ptrace.syscall.linux.x86_64 import SYSCALL_NAMES
    else:
        from ptrace.syscall.linux.aarch64 import SYSCALL_NAMES
    table: dict[int, str] = {n: RENAMED.get(name, name) for n, name in SYSCALL_NAMES.items() if n < MAX_NUMBER}
    return {**table, **NEWER}


@lru_cache(maxsize=len(Machine))
def abi_of(machine: Machine) -> Abi:
    """The tables of one architecture."""
    names = _names(machine)
    by_name = {call.name: call for call in Call if Call.unknown < call < FIRST_TASK_EVENT and call not in NOT_TRACED}
    calls = {number: by_name[name] for number, name in names.items() if name in by_name}
    special = {name: number for number, name in names.items() if name in ("restart_syscall", "rt_sigreturn")}
    return Abi(
        machine=machine,
        calls=MappingProxyType(calls),
        numbers=MappingProxyType({call: number for number, call in calls.items()}),
        restart_syscall=special["restart_syscall"],
        rt_sigreturn=special["rt_sigreturn"],
        epoll_event_bytes=12 if machine is Machine.X86_64 else 16,
    )
