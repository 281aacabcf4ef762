"""A tiny object, compiled once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sockscope.sources.bpf.libbpf import libbpf_problem


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.bpf.c`, compiled."""
    pytest.importorskip("ziglang", reason="compiles BPF programs")
    problem = libbpf_problem()
    if problem is not None:
        pytest.skip(problem[0])
    target = tmp_path_factory.mktemp("bpf") / "tiny.bpf.o"
    source = Path(__file__).with_name("tiny.bpf.c")
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding", "-mcpu=v3"),
            *("-O2", "-g", "-fno-unwind-tables", "-Werror", "-c", "-o", str(target), str(source)),
        ],
        check=True,
    )
    return target
