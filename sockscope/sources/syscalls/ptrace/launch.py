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


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A child that waits, traced, to become the command."""

    pid: int
    gate: int

    def go(self) -> None:
        """Let it exec."""
        os.write(self.gate, b"!")
        os.close(self.gate)


def start(loop: Native, order: wire.Launch, numbers: list[int]) -> Child:
    """Fork, seize the child while it waits at a pipe, and return it.

    Raises:
        CannotObserveError: the kernel refuses to trace even an own child.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(loop, order, numbers, reader, writer)
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


def _become(loop: Native, order: wire.Launch, numbers: list[int], reader: int, writer: int) -> None:
    os.close(writer)
    # Ignored signals, unlike handlers, would pass through exec.
    for number in (*TERMINAL_SIGNALS, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
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
