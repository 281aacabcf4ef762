"""The terminal goes away, a target that stands still or lives elsewhere: what the user finds afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sources.syscalls.ptrace_support import tracer_of, wait_until

pytestmark = pytest.mark.live


SLOW_S = 60.0
"""For an interpreter and all that it imports, on a machine that does much else."""


@contextmanager
def attach(pid: int, *arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """sockscope on that process, which is under trace already; ended afterwards in any case."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "sockscope", "attach", str(pid)),
            *("--engine", "ptrace", "--no-packets", *map(str, arguments)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            # Or it has ended instead: what it said is told by whoever looks at its exit status.
            wait_until(lambda: tracer_of(pid) != 0 or process.poll() is not None, "never attached", SLOW_S)
            yield process
        finally:
            process.kill()


@pytest.fixture
def hangups_count() -> Iterator[None]:
    """Under nohup SIGHUP is ignored, and that is inherited; a handler is not."""
    former = signal.signal(signal.SIGHUP, lambda number, frame: None)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("hangups_count")
def test_a_hangup_ends_the_watching_and_leaves_nothing(tmp_path: Path) -> None:
    target = subprocess.Popen(["sleep", "600"])
    try:
        with attach(target.pid, "--json", str(tmp_path / "out.json"), TMPDIR=str(tmp_path)) as process:
            time.sleep(0.3)
            process.send_signal(signal.SIGHUP)
            _, errors = process.communicate(timeout=SLOW_S)
        assert process.returncode == 0, errors
        assert json.loads((tmp_path / "out.json").read_text())["schema"] == "sockscope/1"
        assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
        assert tracer_of(target.pid) == 0
    finally:
        target.kill()
        target.wait()


def test_a_stopped_target_is_told(tmp_path: Path) -> None:
    target = subprocess.Popen(["sleep", "600"])
    try:
        target.send_signal(signal.SIGSTOP)
        with attach(target.pid, "--duration", "0.3") as process:
            out, errors = process.communicate(timeout=SLOW_S)
        assert process.returncode == 0, errors
        assert f"kill -CONT {target.pid}" in " ".join(out.split())
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{target.pid}/status").read_text(), "does not stand any more")
    finally:
        target.kill()
        target.wait()


def test_a_server_in_another_network_namespace_is_told() -> None:
    server = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); time.sleep(1.5)"
    launched = [sys.executable, "-m", "sockscope", "run", "unshare", "-n", sys.executable, "-c", server]
    done = subprocess.run(launched, capture_output=True, text=True, timeout=60, check=False)
    assert "nsenter -n" in " ".join(done.stdout.split()), done.stdout + done.stderr
    plain = subprocess.run([*launched[:4], "sleep", "0.3"], capture_output=True, text=True, timeout=60, check=False)
    assert "namespace" not in plain.stdout, plain.stdout
