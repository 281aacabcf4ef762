"""Who begins to serve a port is found: by a new listener, or by one that is handed on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sockscope.sources.sockets.port_watch import PortWatch, _runs
from tests.sources.syscalls.ptrace_support import wait_until

pytestmark = pytest.mark.live

SERVER = """
import os, socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(("127.0.0.1", int(sys.argv[1])))
s.listen()
if len(sys.argv) > 2: os.fork()
print(s.getsockname()[1], flush=True)
sys.stdin.read()
"""
HOLDER = "import sys; print('ready', flush=True); sys.stdin.read()"


@contextmanager
def server(port: int, *more: str) -> Iterator[tuple[int, int]]:
    """(pid, port) of a server with SO_REUSEPORT."""
    command = [sys.executable, "-c", SERVER, str(port), *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.communicate("")


def test_a_restart_and_a_sibling_with_its_children() -> None:
    with server(0) as (first, port):
        watch = PortWatch(port, [first])
        watch.look()
        assert watch.servers() == {first}
        with server(port, "fork") as (second, _):
            watch.look()
            found = watch.servers()
            assert {first, second} < found
            assert len(found) == 3
    wait_until(lambda: not [tgid for tgid in found if _runs(tgid)], "the servers did not end")
    watch.look()
    assert watch.servers() == frozenset()
    with server(port) as (third, _):
        watch.look()
        assert watch.servers() == {third}


def test_a_listener_that_is_handed_on_and_one_of_an_old_process() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    try:
        with server(0) as (bystander, _):
            watch = PortWatch(port, [bystander])
            watch.look()
            # We hold the listener ourselves, and are not to be followed.
            assert watch.servers() == {bystander}
            command = [sys.executable, "-c", HOLDER]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()]
            ) as activated:
                assert activated.stdout is not None
                activated.stdout.readline()
                watch.look()
                assert watch.servers() == {bystander, activated.pid}
                activated.communicate(b"")
    finally:
        listener.close()


def test_its_thread_ends() -> None:
    with server(0) as (first, port):
        watch = PortWatch(port, [first])
        watch.start()
        watch.stop()
        watch.stop()
        assert os.path.exists(f"/proc/{first}")
