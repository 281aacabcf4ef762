"""A command launched under ptrace does not outlive its tracer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources.syscalls.ptrace_support import wait_until

pytestmark = pytest.mark.live


@pytest.mark.parametrize("victim", ["main", "tracer"])
def test_a_killed_observer_takes_the_command_with_it(victim: str) -> None:
    """Its filter would turn every traced call into ENOSYS without a tracer."""
    code = """
import subprocess
import sys
from sockscope.sources.syscalls.engine import EngineOptions
from sockscope.sources.syscalls.ptrace.engine import PtraceEngine
e = PtraceEngine(EngineOptions())
tgid = e.launch(["sleep", "100"])
print(tgid, e._helpers[0].process.pid, flush=True)
for _ in e.batches(): pass
"""
    root = Path(__file__).parents[2]
    observer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert observer.stdout is not None
    tgid, tracer = map(int, observer.stdout.readline().split())
    wait_until(lambda: b"sleep" in Path(f"/proc/{tgid}/cmdline").read_bytes()[:6], "never started")
    os.kill(observer.pid if victim == "main" else tracer, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{tgid}"), "the command lives")
    observer.wait(10)
    observer.stdout.close()
