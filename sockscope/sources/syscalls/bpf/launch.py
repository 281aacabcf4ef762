"""Start a command that waits at a gate until it is followed.

A small Python waits and then becomes the command: this process has threads, so it must not fork by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

_GATE = """
import os, signal, sys
gate, locale, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
command = sys.argv[4:]
os.set_inheritable(gate, False)
# Python itself ignores the last two; handlers end with the exec, what was ignored before stays so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
# Python may have set it by itself (PEP 538).
os.environ.pop("LC_CTYPE", None)
if locale:
    os.environ["LC_CTYPE"] = locale[1:]
os.write(gate, b".")
# End of file: sockscope ended before the start.
if os.read(gate, 1) == b"!":
    try:
        os.execv(path, command)
    except OSError as error:
        os.write(2, f"sockscope: {command[0]}: {error.strerror}\\n".encode())
os._exit(126)
"""
POLL_S = 0.01


class Child:
    """A child that waits to become the command.

    It has this process's environment, directory, signal mask, and every descriptor that is inheritable.

    Args:
        path: of the program.
        command: its arguments, argv[0] included.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, path: str, command: Sequence[str]) -> None:
        self._gate, theirs = socket.socketpair()
        gate = theirs.fileno()
        locale = os.environ.get("LC_CTYPE")
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                # Isolated: neither the environment nor the directory may change what it does before.
                [
                    *(sys.executable, "-I", "-S", "-c", _GATE),
                    *(str(gate), "" if locale is None else f"={locale}", path, *command),
                ],
                os.environ,
                # Onto itself: inherited, by this child alone.
                file_actions=[(os.POSIX_SPAWN_DUP2, gate, gate)],
            )
        except BaseException:
            self._gate.close()
            raise
        finally:
            theirs.close()
        # Whoever follows it from now on sees nothing of its own start.
        self._gate.recv(1)
        self.status: int | None = None
        """Wait status, once it has ended and `poll` or `wait` was called."""
        self.started = False

    def go(self) -> None:
        """Let it exec."""
        self.started = True
        # It may have been killed at the gate.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._gate.send(b"!")
        self._gate.close()

    def poll(self) -> int | None:
        """Its wait status; None while it lives."""
        if self.status is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.status = status
        return self.status

    def wait(self, timeout_s: float) -> int | None:
        """As `poll`, after waiting for its end for at most so long."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return self.status

    def abandon(self) -> None:
        """End it, if it still waits at the gate."""
        if self.started:
            return
        self._gate.close()
        if self.wait(1.0) is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(1.0)
