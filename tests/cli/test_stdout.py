"""Standard output that is closed, full, or no longer read: no traceback, and no exit code that says "findings"."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = f"{sys.executable} -m sockscope"
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("command", ["rules", "rules missing-fin", "--help", "demo --list"])
def test_a_reader_that_leaves(command: str) -> None:
    # The reader is gone before the first byte.
    assert shell(f"{COMMAND} {command} | true; exit ${{PIPESTATUS[0]}}").returncode == 0


@full
@pytest.mark.parametrize("command", ["rules", "rules missing-fin", "--help", "demo --list"])
def test_a_full_disk(command: str) -> None:
    done = shell(f"{COMMAND} {command} >/dev/full")
    assert done.returncode == 2
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("closing", [">&-", "<&- >&- 2>&-"])
def test_closed_descriptors(closing: str) -> None:
    assert shell(f"{COMMAND} rules {closing}").returncode == 0
