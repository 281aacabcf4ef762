"""The system call numbers that csrc/uring_kernel.h repeats lead to the copy plans of the calls it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sockscope.model.calls import Call
from sockscope.sources.syscalls import bpf
from sockscope.sources.syscalls.abi import Machine, abi_of

HEADER = Path(bpf.__file__).parent / "csrc" / "uring_kernel.h"


@pytest.mark.parametrize(("machine", "place"), [(Machine.X86_64, 0), (Machine.AARCH64, 1)])
def test_numbers_are_the_architectures(machine: Machine, place: int) -> None:
    text = HEADER.read_text().split("#if defined(__TARGET_ARCH_x86)")[1].split("#endif")[0].split("#else")[place]
    written = {name: int(number) for name, number in re.findall(r"NR_(\w+) = (\d+)", text)}
    assert len(written) >= 19
    assert written == {name: abi_of(machine).numbers[Call[name]] for name in written}
