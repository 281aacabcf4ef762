"""A server that is asked while sockscope's engine watches it from a process of its own: for the tests of its end."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.sources.syscalls.ptrace_support import Program

SERVER = """
import os, socket, threading
s = socket.create_server(("127.0.0.1", 0), backlog=64)
for _ in range(2):
    if os.fork() == 0: break
def serve():
    while True:
        c, _ = s.accept()
        c.sendall(c.recv(100)); c.close()
threading.Thread(target=serve).start()
os.write(1, f"{os.getpid()} {s.getsockname()[1]}\\n".encode())
serve()
"""


def ask(port: int) -> None:
    """One request, answered whole; raises where it is not."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"


def start_server(program: Program) -> tuple[list[int], int]:
    """(pids of the server's processes, port)."""
    lines = [program.line().split() for _ in range(3)]
    return [int(pid) for pid, _ in lines], int(lines[0][1])


def start_observer(source: str, pids: list[int]) -> tuple[subprocess.Popen[str], str]:
    """A program with the pids as its arguments, in a session of its own; and the first line it says."""
    observer = subprocess.Popen(
        [sys.executable, "-c", source, *map(str, pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    assert observer.stdout is not None
    return observer, observer.stdout.readline()
