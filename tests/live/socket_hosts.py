"""Real sockets in processes of our own, for the tests of socket states."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def eventually(holds: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Whether it becomes true in time: the kernel needs a moment for a FIN."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


@contextmanager
def python_process(body: str, *, prefix: tuple[str, ...] = ()) -> Iterator[tuple[int, list[str]]]:
    """Run Python that prints one line when it is ready and then waits on its stdin; (pid, the line's words)."""
    program = f"import os, select, socket, sys, time\n{body}\nsys.stdin.read()\n"
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().split()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@contextmanager
def listener(backlog: int = 8) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server


@contextmanager
def forked() -> Iterator[int]:
    """A child that shares all our open files and does nothing."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
