"""Help is there for every command, with examples, and quick: it loads none of the heavy libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

COMMANDS = ["attach", "run", "diagnose", "snapshot", "analyze", "report", "rules", "doctor", "demo"]


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "sockscope", "--help"], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)


@cache
def helped(command: str) -> str:
    """What it says of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "sockscope", command, "--help"], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    assert "Usage: sockscope" in helped(command)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sockscope.cli import execute; execute(['--help']);"
        "print([m for m in ('numpy','pyarrow','scapy','jinja2','psutil','ptrace') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_stand_on_lines_of_their_own(command: str) -> None:
    _, _, below = helped(command).partition("Examples:\n")
    lines = [line.strip().removeprefix("sudo ") for line in below.splitlines() if line.strip()]
    assert lines
    assert all(line.startswith(f"sockscope {command}") for line in lines)


@pytest.mark.parametrize("arguments", [["rules"], ["demo", "--list"]])
def test_lists_are_a_line_each_for_other_programs(arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", "sockscope", *arguments], capture_output=True, text=True, check=True, env=environment
    )
    assert len([line for line in done.stdout.splitlines() if line.startswith("fin-withheld ")]) == 1


def test_rules_come_by_severity_and_lines_end_with_their_text() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sockscope", "rules"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    lines = done.stdout.splitlines()
    assert lines.index("error") < lines.index("warning") < lines.index("info")
    assert all(line == line.rstrip() and len(line) <= 80 for line in lines)
