"""Help is there for every command, with examples, and quick: it loads none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = ["attach", "run", "diagnose", "snapshot", "analyze", "report", "rules", "doctor", "demo"]


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "sockscope", "--help"], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sockscope", command, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage: sockscope" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sockscope.cli import execute; execute(['--help']);"
        "print([m for m in ('numpy','pyarrow','scapy','jinja2','psutil','ptrace') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
