"""Syscall numbers: the kernel's own, both ways."""

from __future__ import annotations

import pytest

from sockscope.model.calls import FIRST_TASK_EVENT, Call
from sockscope.sources.syscalls.abi import MAX_NUMBER, NOT_TRACED, Machine, abi_of

# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
KNOWN = {
    Machine.X86_64: {
        0: Call.read,
        3: Call.close,
        7: Call.poll,
        42: Call.connect,
        56: Call.clone,
        59: Call.execve,
        231: Call.exit_group,
        232: Call.epoll_wait,
        288: Call.accept4,
    },
    Machine.AARCH64: {
        20: Call.epoll_create1,
        22: Call.epoll_pwait,
        57: Call.close,
        63: Call.read,
        73: Call.ppoll,
        202: Call.accept,
        220: Call.clone,
        221: Call.execve,
        242: Call.accept4,
    },
}


@pytest.mark.parametrize("machine", Machine)
def test_known_numbers(machine: Machine) -> None:
    abi = abi_of(machine)
    for number, call in KNOWN[machine].items():
        assert abi.calls[number] is call
        assert abi.numbers[call] == number


@pytest.mark.parametrize("machine", Machine)
def test_newer_calls_have_the_same_number_everywhere(machine: Machine) -> None:
    abi = abi_of(machine)
    assert [abi.numbers[call] for call in (Call.io_uring_setup, Call.clone3, Call.close_range, Call.epoll_pwait2)] == [
        425,
        435,
        436,
        441,
    ]


@pytest.mark.parametrize("machine", Machine)
def test_the_maps_are_inverse_and_small(machine: Machine) -> None:
    abi = abi_of(machine)
    assert {call: number for number, call in abi.calls.items()} == dict(abi.numbers)
    assert all(0 <= number < MAX_NUMBER for number in abi.calls)
    assert not NOT_TRACED & set(abi.numbers)
    assert abi.restart_syscall not in abi.calls
    assert abi.rt_sigreturn not in abi.calls


def test_x86_64_has_every_call_of_the_model() -> None:
    wanted = {call for call in Call if Call.unknown < call < FIRST_TASK_EVENT} - NOT_TRACED
    assert set(abi_of(Machine.X86_64).numbers) == wanted


def test_aarch64_lacks_only_what_the_kernel_never_had_there() -> None:
    missing = set(abi_of(Machine.X86_64).numbers) - set(abi_of(Machine.AARCH64).numbers)
    assert missing == {
        *(Call.dup2, Call.pipe, Call.poll, Call.select, Call.epoll_create, Call.epoll_wait, Call.fork, Call.vfork),
        *(Call.open, Call.unlink, Call.eventfd, Call.signalfd, Call.creat),
    }
