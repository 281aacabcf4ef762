"""Effective capabilities of this process. Source: capabilities(7), proc_pid_status(5)."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path


class Cap(IntEnum):
    NET_ADMIN = 12
    NET_RAW = 13
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    PERFMON = 38
    BPF = 39


def effective_capabilities(status: str | None = None) -> int:
    """The CapEff mask. Args: status: text of /proc/self/status; None: read it."""
    text = Path("/proc/self/status").read_text() if status is None else status
    for line in text.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def has(cap: Cap) -> bool:
    return bool(effective_capabilities() >> cap & 1)


def read_text(path: str) -> str | None:
    """A small /proc or /sys file without its line break; None where it is not there."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
