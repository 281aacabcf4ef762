"""diagnose --port: processes that begin to serve the port while it is watched are diagnosed like the first."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockscope.model.findings import Finding
from sockscope.model.report import Report
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Recorded, Watcher, record
from tests.live.engines import BOTH, need
from tests.sources.syscalls.ptrace_support import assert_left_alone, wait_until

pytestmark = [pytest.mark.live, pytest.mark.parametrize("engine", BOTH)]

CPUS = os.sched_getaffinity(0)
SERVER = """
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
if sys.argv[2] == "prefork" and os.fork() == 0:
    # The parent only waits, as prefork servers do.
    os.close(0)
elif sys.argv[2] == "prefork":
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
    sys.exit()
else:
    print(listener.getsockname()[1], flush=True)
kept = []
while True:
    connection, _ = listener.accept()
    while data := connection.recv(100):
        connection.sendall(data)
    if sys.argv[2] == "sound":
        connection.close()
    else:
        kept.append(connection)
"""


class Server:
    """A server in a session of its own; started by nobody who is watched."""

    def __init__(self, port: int, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.pid = self.process.pid
        self.port = int(self.process.stdout.readline())

    def end(self) -> None:
        """It and all that it forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def server(port: int = 0, how: str = "leaky") -> Iterator[Server]:
    one = Server(port, how)
    try:
        yield one
    finally:
        one.end()


def request(port: int) -> None:
    """A client that says a word, hears it, and leaves."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"hello")
        assert client.recv(100)


def watched(port: int, engine: EngineChoice, folder: Path, act: Callable[[], None]) -> tuple[Report, Recorded]:
    """What diagnose --port says of what happens meanwhile."""
    watcher = Watcher()
    trouble: list[BaseException] = []

    def acting() -> None:
        try:
            act()
            # A program gets some time to close what was ended.
            time.sleep(2)
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            trouble.append(error)
        finally:
            watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=acting, daemon=True).start()
    recorded = record(RecordOptions(port=port, engine=engine, duration_s=60), folder, watcher)
    if trouble:
        raise trouble[0]
    return make_report(load_session(recorded.folder, info=recorded.info)), recorded


def time_to_notice(engine: EngineChoice) -> None:
    """ptrace looks twice a second; the kernel tells bpf at once."""
    time.sleep(1.5 if engine is EngineChoice.PTRACE else 0.2)


def leaks(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.rule == "close-wait-leak"]


def test_restarted_during_the_diagnosis(engine: EngineChoice, tmp_path: Path) -> None:
    need(engine)
    first = Server(0, "sound")
    second: list[Server] = []

    def restart() -> None:
        request(first.port)
        first.end()
        time.sleep(1.0)
        second.append(Server(first.port, "leaky"))
        time_to_notice(engine)
        for _ in range(3):
            request(first.port)

    try:
        report, recorded = watched(first.port, engine, tmp_path / "recording", restart)
        new = second[0]
        assert_left_alone(new.pid, CPUS)
        request_after = threading.Thread(target=request, args=(first.port,))
        request_after.start()
        request_after.join(5)
        assert not request_after.is_alive()
    finally:
        first.end()
        for one in second:
            one.end()
    (leak,) = leaks(report)
    assert leak.tgid == new.pid
    assert len(leak.connections) == 3
    assert new.pid in recorded.info.target.pids
    assert any(f"process {new.pid} began to serve port {first.port}" in note for note in recorded.info.notes)
    began = next(process for process in report.processes if process.tgid == new.pid)
    assert began.comm.startswith("python")
    assert began.started_ns is not None
    assert next(process for process in report.processes if process.tgid == first.pid).exited_ns is not None


def test_a_second_worker_started_by_somebody_else(engine: EngineChoice, tmp_path: Path) -> None:
    need(engine)
    with server(how="sound") as first:
        more: list[Server] = []

        def scale_up() -> None:
            more.append(Server(first.port, "leaky"))
            time_to_notice(engine)
            # The kernel spreads connections over both.
            for _ in range(24):
                request(first.port)

        try:
            report, recorded = watched(first.port, engine, tmp_path / "recording", scale_up)
            second = more[0]
            for pid in (first.pid, second.pid):
                assert_left_alone(pid, CPUS)
            held = [
                line
                for line in subprocess.run(
                    ["ss", "-tnp", "state", "close-wait"], capture_output=True, text=True
                ).stdout.splitlines()
                if f"pid={second.pid}," in line
            ]
        finally:
            for one in more:
                one.end()
    (leak,) = leaks(report)
    assert leak.tgid == second.pid
    assert len(leak.connections) == len(held) > 0
    fds = sorted(int(line.rsplit("fd=", 1)[1].split(")")[0]) for line in held)
    assert leak.fd in fds
    assert not [finding for finding in report.findings if finding.tgid == first.pid]
    assert recorded.info.syscalls.lost_count == 0


def test_a_late_server_that_forks_its_worker_at_once(engine: EngineChoice, tmp_path: Path) -> None:
    need(engine)
    with server(how="sound") as first:
        more: list[Server] = []

        def replace() -> None:
            first.end()
            more.append(Server(first.port, "prefork"))
            time_to_notice(engine)
            for _ in range(2):
                request(first.port)

        try:
            report, _ = watched(first.port, engine, tmp_path / "recording", replace)
        finally:
            for one in more:
                one.end()
    (leak,) = leaks(report)
    assert len(leak.connections) == 2
    assert leak.tgid != more[0].pid
    (worker,) = [process for process in report.processes if process.tgid == leak.tgid]
    assert worker.parent == more[0].pid


def test_nobody_takes_its_place(engine: EngineChoice, tmp_path: Path) -> None:
    need(engine)
    with server(how="sound") as first:

        def end() -> None:
            first.end()
            wait_until(lambda: first.process.poll() is not None, "never ended")
            time.sleep(1.0)

        report, recorded = watched(first.port, engine, tmp_path / "recording", end)
    assert f"at the end none of the watched processes was left to serve port {first.port}" in recorded.info.notes
    assert not leaks(report)
