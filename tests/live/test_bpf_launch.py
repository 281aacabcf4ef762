"""What is this engine's own way with a launched command: its end, and sockscope's end before it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sockscope.model.calls import Call
from sockscope.sources.syscalls.bpf import engine
from sockscope.sources.syscalls.engine import EngineOptions
from tests.sources.syscalls.ptrace_support import Trace, args, make_engine, rows, wait_until

pytestmark = pytest.mark.live


def test_who_does_not_end_by_sigterm_is_killed_with_all_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "TERM_TIMEOUT_S", 0.5)
    mark = tmp_path / "mark"
    command = f"trap '' TERM; (echo $$ >{mark}; while :; do sleep 0.05; done) & while :; do sleep 0.05; done"
    with Trace(engine="bpf", launch=["bash", "-c", command]) as trace:
        wait_until(lambda: mark.exists() and bool(mark.read_text()), "never started")
        events = trace.finish()
        assert trace.engine.exit_status() == signal.SIGKILL
    started = {trace.tgid} | {args(events, row)[0] for row in rows(events, Call.task_new)}
    ended = {int(events.records[row]["tid"]) for row in rows(events, Call.task_exit)}
    assert started == ended
    killed = [row for row in rows(events, Call.task_exit) if args(events, row)[0] == signal.SIGKILL]
    assert len(killed) >= 2
    assert not rows(events, Call.task_detach)


def test_a_daemon_is_asked_after_the_command(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    daemon = f"trap 'echo asked >>{mark}; exit 0' TERM; echo up >{mark}; while :; do sleep 0.05; done"
    with Trace(engine="bpf", launch=["bash", "-c", 'setsid bash -c "$0" & exit 4', daemon]) as trace:
        wait_until(lambda: mark.exists() and bool(mark.read_text()), "never started")
        wait_until(lambda: trace.engine.exit_status() is not None, "the command did not end")
        trace.finish()
        assert os.waitstatus_to_exitcode(trace.engine.exit_status() or 0) == 4
    assert mark.read_text() == "up\nasked\n"


def test_a_command_outlives_a_killed_sockscope() -> None:
    """Nothing is stopped for it and no filter is left in it: it just goes on."""
    make_engine("bpf", EngineOptions()).close()
    code = """
from sockscope.sources.syscalls.bpf.engine import BpfEngine
from sockscope.sources.syscalls.engine import EngineOptions
e = BpfEngine(EngineOptions())
print(e.launch(["sleep", "100"]), flush=True)
for _ in e.batches(): pass
"""
    observer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert observer.stdout is not None
    tgid = int(observer.stdout.readline())
    try:
        wait_until(lambda: Path(f"/proc/{tgid}/comm").read_text() == "sleep\n", "never started")
        observer.kill()
        observer.wait(10)
        assert Path(f"/proc/{tgid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"
    finally:
        os.kill(tgid, signal.SIGKILL)
        observer.communicate()


def test_a_waiting_command_ends_with_a_killed_sockscope() -> None:
    make_engine("bpf", EngineOptions()).close()
    code = """
import sys
from sockscope.sources.syscalls.bpf.engine import BpfEngine
from sockscope.sources.syscalls.engine import EngineOptions
e = BpfEngine(EngineOptions())
print(e.launch(["sleep", "100"]), flush=True)
sys.stdin.readline()
"""
    observer = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert observer.stdout is not None
    tgid = int(observer.stdout.readline())
    observer.kill()
    observer.communicate()
    wait_until(lambda: not os.path.exists(f"/proc/{tgid}/exe"), "it waits still")
