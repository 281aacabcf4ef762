"""Both engines, for tests that run over each: what may be skipped where, and why."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import pytest

from sockscope.pipeline.options import EngineChoice
from sockscope.sources.syscalls.bpf.prerequisites import unavailable

CAP_SYS_ADMIN = 21

BOTH = (EngineChoice.PTRACE, EngineChoice.BPF)


@lru_cache(maxsize=1)
def bpf_problem() -> str | None:
    """Why the bpf engine is not to be had here, in its own words; None where it is."""
    problem = unavailable()
    return problem[0] if problem else None


def need(engine: EngineChoice) -> None:
    """Skip the test where its engine cannot be had."""
    problem = bpf_problem() if engine is EngineChoice.BPF else None
    if problem is not None:
        pytest.skip(f"bpf: {problem}")


def machine_has_all() -> bool:
    """Everything the bpf engine is documented to need: privilege, the kernel's types, libbpf's shared library."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    if not (effective >> CAP_SYS_ADMIN & 1) or not Path("/sys/kernel/btf/vmlinux").exists():
        return False
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return False
    return True
