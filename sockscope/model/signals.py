"""Signals and ends of processes in words."""

from __future__ import annotations

import signal

_FIRST_REAL_TIME, _LAST_REAL_TIME = 32, 64
"""As the kernel counts, below glibc's SIGRTMIN. Source: signal(7)."""


def signal_name(number: int) -> str:
    """`SIGTERM`, `SIGRT_3`; a number that is no signal as it is."""
    try:
        return signal.Signals(number).name
    except ValueError:
        if _FIRST_REAL_TIME <= number <= _LAST_REAL_TIME:
            return f"SIGRT_{number - _FIRST_REAL_TIME}"
        return f"signal {number}"


def exit_words(status: int | None, *, exited: str = "exit") -> str:
    """How a process ended: `exit 1`, `killed by SIGABRT, core dumped`; `ended` where it is not known.

    Args:
        status: as wait(2) gives it.
        exited: what stands before the status that the process chose itself.
    """
    if status is None:
        return "ended"
    if status & 0x7F == 0:
        return f"{exited} {status >> 8 & 0xFF}"
    core = ", core dumped" if status & 0x80 else ""
    return f"killed by {signal_name(status & 0x7F)}{core}"
