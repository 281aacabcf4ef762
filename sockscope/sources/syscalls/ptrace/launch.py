"""Start a command under trace, with a seccomp filter so that only the traced set stops."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from sockscope.errors import CannotObserveError
from sockscope.sources.syscalls.ptrace import wire
from sockscope.sources.syscalls.ptrace.native import Native

EXEC_FAILED = 126
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""Ignored by a tracer, not by what it launches."""


def ignore_terminal() -> frozenset[signal.Signals]:
    """Ignore them from now on. Returns those (and SIGHUP, as under nohup) that were ignored before."""
    before = frozenset(n for n in (*TERMINAL_SIGNALS, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN)
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return before


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A child that waits, traced, to become the command."""

    pid: int
    gate: int

    def go(self) -> None:
        """Let it exec."""
        os.write(self.gate, b"!")
        os.close(self.gate)


def start(loop: Native, order: wire.Launch, numbers: list[int], ignored: frozenset[signal.Signals]) -> Child:
    """Fork, seize the child while it waits at a pipe, and return it.

    Args:
        numbers: syscalls that it stops at.
        ignored: signals that the command shall find ignored, as it would have without sockscope.

    Raises:
        CannotObserveError: the kernel refuses to trace even an own child.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(loop, order, numbers, ignored, reader, writer)
        finally:
            os._exit(EXEC_FAILED)
    os.close(reader)
    error = -loop.seize(pid, pid, -1, launched=True)
    if error:
        os.kill(pid, signal.SIGKILL)
        raise CannotObserveError(
            f"the kernel does not allow tracing: {os.strerror(error)}",
            help_text="in a container: docker run --cap-add SYS_PTRACE",
        )
    return Child(pid=pid, gate=writer)


def _become(
    loop: Native,
    order: wire.Launch,
    numbers: list[int],
    ignored: frozenset[signal.Signals],
    reader: int,
    writer: int,
) -> None:
    os.close(writer)
    # Ignored signals, unlike handlers, pass through exec. Python itself ignores the last two.
    for number in (*TERMINAL_SIGNALS, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    # End of file: the tracer died before the start.
    if os.read(reader, 1) != b"!":
        return
    if loop.install_filter(numbers):
        os.write(2, b"sockscope: the kernel refuses a seccomp filter\n")
        return
    try:
        os.execv(order.path, order.command)
    except OSError as error:
        os.write(2, f"sockscope: {order.command[0]}: {error.strerror}\n".encode())
