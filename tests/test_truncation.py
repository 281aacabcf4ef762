"""A mapped file that is cut while it is read ends the program with words and the exit code for damaged input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sockscope.errors import ExitCode

READ = """
import os, sys
from sockscope.sources.packets import raw_space
raw_space.MAP_FROM_BYTES = 1
files = [open(name, "rb") for name in sys.argv[1:]]
data = raw_space.load([file.fileno() for file in files]).data
os.truncate(sys.argv[1], 4096)
print("reading", flush=True)
data.sum()
print("read")
"""

RECORDING = """
import os, sys
from pathlib import Path
from sockscope.recording.reader import _mapped
source = _mapped(Path(sys.argv[1]))
os.truncate(sys.argv[1], 4096)
print("reading", flush=True)
bytes(source.read_buffer(1 << 20))
print("read")
"""


@pytest.mark.parametrize("program", [READ, RECORDING], ids=["capture", "recording"])
def test_it_is_said_which(tmp_path: Path, program: str) -> None:
    cut, other = tmp_path / "cut.pcap", tmp_path / "other.pcap"
    for path in (cut, other):
        path.write_bytes(b"x" * (1 << 20))
    run = subprocess.run([sys.executable, "-c", program, cut, other], capture_output=True, text=True)
    assert run.returncode == ExitCode.DAMAGED_INPUT
    assert run.stdout == "reading\n"
    assert run.stderr == (
        f"sockscope: {cut} was cut short while it was being read\n"
        "  → copy it first, or analyze it when nobody writes to it any more\n"
    )


def test_one_that_is_deleted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gone.pcap"
    path.write_bytes(b"x" * (1 << 20))
    program = READ.replace("os.truncate(sys.argv[1], 4096)", "os.unlink(sys.argv[1])")
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "reading\nread\n", "")
