"""The copy plans as data: every call has a sane one, and the packed form says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sockscope.sources.syscalls.ptrace
from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, EventFlag, Section
from sockscope.sources.syscalls.abi import MAX_NUMBER, Machine, abi_of
from sockscope.sources.syscalls.copy_plan import OP, OPS_MAX, PLAN, PLAN_BYTES, Filter, How, When, pack_plans, plans_of

HEADER = (Path(sockscope.sources.syscalls.ptrace.__file__).parent / "csrc" / "engine.h").read_text()


def c_enum(name: str) -> list[str]:
    """The names of one enum of engine.h, in order."""
    match = re.search(rf"enum {name} {{(.*?)}}", HEADER, re.DOTALL)
    assert match is not None
    return [word.split("=")[0].strip() for word in match.group(1).split(",")]


@pytest.mark.parametrize("machine", Machine)
def test_plans_fit_what_the_loop_reads(machine: Machine) -> None:
    for call, ops in plans_of(abi_of(machine)).items():
        assert len(ops) <= OPS_MAX, call
        for op in ops:
            assert 0 <= op.ptr < 6
            assert 0 <= op.len < 6
            assert op.unit < 256
            assert op.cap < 1 << 16
            if op.how is How.FIXED:
                assert op.unit <= op.cap


@pytest.mark.parametrize("machine", Machine)
def test_packed_plans_say_the_same(machine: Machine) -> None:
    abi = abi_of(machine)
    plans = plans_of(abi)
    table = pack_plans(abi)
    assert len(table) == PLAN_BYTES * MAX_NUMBER
    for number in range(MAX_NUMBER):
        call, count, kept, packed = PLAN.unpack_from(table, number * PLAN_BYTES)
        assert call == abi.calls.get(number, Call.unknown)
        ops = plans.get(Call(call), ())
        assert count == len(ops)
        assert Filter(kept) is {Call.mmap: Filter.SHARED_MAP, Call.ioctl: Filter.KNOWN_IOCTL}.get(
            Call(call), Filter.KEEP
        )
        for i, op in enumerate(ops):
            fields = OP.unpack_from(packed, i * OP.size)
            assert fields == (op.section, op.how, op.when, op.ptr, op.len, op.unit, op.cap)


def test_what_a_call_changes_is_copied_before_it() -> None:
    plans = plans_of(abi_of(Machine.X86_64))
    for call in (Call.select, Call.pselect6, Call.execve, Call.execveat, Call.clone3):
        assert plans[call][0].when is When.ENTRY, call


def test_epoll_events_are_packed_on_x86_64_alone() -> None:
    x86, arm = (plans_of(abi_of(machine))[Call.epoll_pwait][0] for machine in (Machine.X86_64, Machine.AARCH64))
    assert (x86.section, x86.unit) == (Section.EPOLL_EVENTS, 12)
    assert (arm.section, arm.unit) == (Section.EPOLL_EVENTS_ALIGNED, 16)


def test_the_loop_and_python_share_their_numbers() -> None:
    assert c_enum("how") == [f"HOW_{how.name}" for how in How]
    assert [int(how) for how in How] == list(range(1, len(How) + 1))
    assert c_enum("when") == ["AT_ENTRY", "AT_SUCCESS", "AT_ANY_END"]
    assert EVENT_DTYPE.fields is not None
    assert f"sizeof(struct event) == {EVENT_DTYPE.itemsize}" in HEADER
    assert f"offsetof(struct event, flags) == {EVENT_DTYPE.fields['flags'][1]}" in HEADER
    assert f"sizeof(struct plan) == {PLAN_BYTES}" in HEADER
    assert f"#define MAX_NR {MAX_NUMBER}" in HEADER
    for flag in (EventFlag.ENTERED_ONLY, EventFlag.NO_ENTRY, EventFlag.TRUNCATED, EventFlag.TRACER_EINTR):
        assert f"{flag.name} = {int(flag)}" in HEADER
    assert f"SEC_PATH = {int(Section.PATH)}" in HEADER
    assert f"SEC_COMM = {int(Section.COMM)}" in HEADER
    assert f"TASK_NEW = {int(Call.task_new)}" in HEADER
