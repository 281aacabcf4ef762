"""What the user must act on. Everything else (a vanished process, EFAULT, truncation) is data."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The documented exit codes of every command."""

    OK = 0
    FINDINGS = 1
    USAGE = 2
    CANNOT_OBSERVE = 3
    DAMAGED_INPUT = 4


class SockscopeError(Exception):
    """An error with a reason, a mend and an exit code.

    Args:
        message: what is wrong and where, one line, no full stop.
        help_text: what to do next, one line; None where nothing can be advised.
        detail: what others said of it (a verifier's log), several lines; shown last.
    """

    exit_code = ExitCode.CANNOT_OBSERVE

    def __init__(self, message: str, *, help_text: str | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.help_text = help_text
        self.detail = detail


class UsageError(SockscopeError):
    """The command line asks for something that cannot be (exit 2)."""

    exit_code = ExitCode.USAGE


class CannotObserveError(SockscopeError):
    """Permission, no such process, nothing listens there (exit 3)."""


class TargetGoneError(CannotObserveError):
    """The process has ended (exit 3); of several targets the others can still be watched."""


class DamagedInputError(SockscopeError):
    """A recording or capture that cannot be read at all (exit 4)."""

    exit_code = ExitCode.DAMAGED_INPUT
