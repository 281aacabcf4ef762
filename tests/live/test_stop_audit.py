"""Stops of small servers on the real kernel: threads, a child a connection, a pool, a container behind a shell."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from sockscope.fixture import free_port
from sockscope.model.findings import Severity
from sockscope.model.report import Report
from sockscope.model.stops import Disposition, StopAct, StopAudit, StopProcess
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from sockscope.reports.stop_words import sentences
from tests.live.engines import BOTH, need

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

BEGIN = """
import os, signal, socket, sys, threading, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
stopping = False
def stop(number, frame):
    global stopping
    stopping = True
def answer(conn):
    with conn:
        while request := conn.recv(4096):
            if request.startswith(b"slow"):
                print("SLOW", flush=True)
                time.sleep(0.4)
            conn.sendall(b"ok\\n")
"""

THREADS = (
    BEGIN
    + """
# The listener is closed first; running requests are answered; then it exits.
signal.signal(signal.SIGTERM, stop)
listener.settimeout(0.02)
running = []
print("READY", flush=True)
while not stopping:
    try:
        conn, _ = listener.accept()
    except TimeoutError:
        continue
    conn.settimeout(None)
    running.append(conn)
    threading.Thread(target=answer, args=(conn,), daemon=True).start()
listener.close()
time.sleep(0.6)
for conn in running:
    conn.close()
"""
)

FORKS = (
    BEGIN
    + """
# A child a connection; the parent passes the signal on and waits for each.
children = []
def stop(number, frame):
    listener.close()
    for child in children:
        os.kill(child, signal.SIGTERM)
    for child in children:
        os.waitpid(child, 0)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("READY", flush=True)
while True:
    conn, _ = listener.accept()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        listener.close()
        answer(conn)
        os._exit(0)
    children.append(child)
    conn.close()
"""
)

POOL = (
    BEGIN
    + """
# Three workers accept from one listener; the parent forgets about one of them.
workers = []
for _ in range(3):
    worker = os.fork()
    if not worker:
        while True:
            conn, _ = listener.accept()
            answer(conn)
    workers.append(worker)
def stop(number, frame):
    for worker in workers[:2]:
        os.kill(worker, signal.SIGTERM)
        os.waitpid(worker, 0)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("READY", flush=True)
while True:
    signal.pause()
"""
)

CONTAINED = (
    BEGIN
    + """
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
print("READY", flush=True)
while True:
    conn, _ = listener.accept()
    threading.Thread(target=answer, args=(conn,), daemon=True).start()
"""
)


@dataclass(kw_only=True)
class Stage:
    """A server started, a few clients, and the signal, under watch."""

    port: int
    root: int
    said: IO[str]
    clients: list[socket.socket] = field(default_factory=list)

    def client(self, request: bytes = b"hello\n", *, wait: bool = True) -> None:
        one = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        self.clients.append(one)
        one.sendall(request)
        if wait:
            assert one.recv(100) == b"ok\n"

    def await_line(self, line: str) -> None:
        assert self.said.readline() == f"{line}\n"

    def is_refused(self) -> bool:
        """Twice in a row: the first may have come while the listener was being closed, before the call returned."""
        return self._is_refused_once() and self._is_refused_once()

    def _is_refused_once(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def started(program: Path, port: int, *before: str) -> Iterator[subprocess.Popen[str]]:
    command = [*before, sys.executable, "-u", str(program), str(port)]
    if before:
        # A shell that stays above the server.
        command = [*before, "sh", "-c", f"{sys.executable} -u {program} {port}; :"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def audited(
    source: str,
    folder: Path,
    engine: EngineChoice,
    act: Callable[[Stage], None],
    *before: str,
    packets: bool = False,
) -> tuple[StopAudit, Report]:
    """What is said of the one stop of a server, whom `act` meets under watch."""
    need(engine)
    program = folder / "server.py"
    program.write_text(source)
    port = free_port()
    watcher = Watcher()
    trouble: list[BaseException] = []
    with started(program, port, *before) as process:
        assert process.stdout is not None
        stage = Stage(port=port, root=process.pid, said=process.stdout)

        def play() -> None:
            try:
                act(stage)
            except BaseException as error:  # noqa: BLE001 - carried over to the test
                trouble.append(error)
            finally:
                watcher.stop.set()

        watcher.on_ready = lambda tgids, seed: threading.Thread(target=play, daemon=True).start()
        options = RecordOptions(pids=(process.pid,), engine=engine, packets=packets)
        record(options, folder / "recording", watcher)
        for client in stage.clients:
            client.close()
    if trouble:
        raise trouble[0]
    report = make_report(load_session(folder / "recording"))
    (stop,) = report.stops
    return stop, report


def acts(stop: StopAudit, tgid: int) -> list[tuple[StopAct, bool]]:
    return [(step.act, step.is_listener) for step in stop.steps if step.tgid == tgid]


def children(stop: StopAudit) -> tuple[StopProcess, ...]:
    return stop.processes[1:]


@pytest.mark.parametrize("engine", BOTH)
def test_threads_and_a_server_that_ends_well(engine: EngineChoice, tmp_path: Path) -> None:
    def act(stage: Stage) -> None:
        stage.client()
        stage.client(b"slow\n", wait=False)
        stage.await_line("SLOW")
        os.kill(stage.root, signal.SIGTERM)
        eventually(stage.is_refused)
        eventually(lambda: gone(stage.root))

    stop, report = audited(THREADS, tmp_path, engine, act, packets=True)
    assert (stop.signal, len(stop.processes)) == (signal.SIGTERM, 1)
    assert stop.sender == os.getpid()
    assert stop.process.disposition is Disposition.HANDLER
    assert stop.listeners_first is True
    assert (StopAct.CLOSED, True) in acts(stop, stop.tgid)
    assert (StopAct.ANSWERED, False) in acts(stop, stop.tgid)
    clients = stop.clients
    assert (clients.open_count, clients.running_count, clients.answered_count, clients.cut_count) == (2, 1, 1, 0)
    assert clients.fin_count == 2
    assert clients.refused_count
    assert stop.process.status == 0
    assert stop.ended_ns is not None
    told = sentences(stop)
    assert "Listeners were closed first, then connections." in told
    assert not [finding for finding in report.findings if finding.rule == "abrupt-shutdown"]


@pytest.mark.parametrize("engine", BOTH)
def test_a_child_a_connection(engine: EngineChoice, tmp_path: Path) -> None:
    def act(stage: Stage) -> None:
        stage.client()
        stage.client(b"slow\n", wait=False)
        stage.await_line("SLOW")
        os.kill(stage.root, signal.SIGTERM)
        eventually(lambda: gone(stage.root))

    stop, _ = audited(FORKS, tmp_path, engine, act)
    assert len(children(stop)) == 2
    assert stop.clients.refused_count is None
    for child in children(stop):
        assert child.signalled_ns is not None
        assert child.status == signal.SIGTERM
        assert (child.waited_by, child.parent) == (stop.tgid, stop.tgid)
        assert acts(stop, child.tgid) == [(StopAct.SIGNALLED, False), (StopAct.ENDED, False)]
    mine = [act for act, _ in acts(stop, stop.tgid)]
    assert mine.index(StopAct.CLOSED) < mine.index(StopAct.SENT) < mine.index(StopAct.FETCHED)
    assert (stop.clients.open_count, stop.clients.cut_count) == (2, 1)
    assert f"Both were waited for by {stop.process.comm}[{stop.tgid}]." in sentences(stop)


@pytest.mark.parametrize("engine", BOTH)
def test_a_pool_of_which_one_is_left(engine: EngineChoice, tmp_path: Path) -> None:
    def act(stage: Stage) -> None:
        stage.client()
        os.kill(stage.root, signal.SIGTERM)
        eventually(lambda: gone(stage.root))
        time.sleep(0.2)

    stop, _ = audited(POOL, tmp_path, engine, act)
    assert len(children(stop)) == 3
    (left,) = (child for child in children(stop) if child.ended_ns is None)
    assert left.signalled_ns is None
    assert left.disposition is Disposition.DEFAULT
    assert stop.process.status == 0
    assert stop.last_ended_ns is None
    assert stop.listeners_first is None
    assert sum(child.waited_by == stop.tgid for child in children(stop)) == 2
    told = " ".join(sentences(stop))
    assert f"[{left.tgid}] still ran at the end of the session" in told
    assert f"No such signal came to {left.comm}[{left.tgid}]" in told


@pytest.mark.parametrize("engine", BOTH)
def test_a_pid_namespace_whose_first_process_is_a_shell(engine: EngineChoice, tmp_path: Path) -> None:
    def act(stage: Stage) -> None:
        stage.client()
        (shell,) = map(int, Path(f"/proc/{stage.root}/task/{stage.root}/children").read_text().split())
        time.sleep(0.1)
        os.kill(shell, signal.SIGTERM)
        time.sleep(1.2)
        os.kill(shell, signal.SIGKILL)
        eventually(lambda: gone(shell))

    stop, report = audited(CONTAINED, tmp_path, engine, act, "unshare", "--pid", "--fork", "--kill-child")
    assert (stop.process.comm, stop.process.ns_tgid) == ("sh", 1)
    assert stop.process.disposition is Disposition.UNHEARD
    assert stop.process.status == signal.SIGKILL
    (server,) = children(stop)
    assert (server.ns_tgid, server.signalled_ns, server.disposition) == (2, None, Disposition.HANDLER)
    assert stop.ended_ns is not None
    assert stop.ended_ns - stop.time_ns >= 1_000_000_000
    assert stop.steps[-1].connection_count + stop.steps[-2].connection_count == 1
    told = " ".join(sentences(stop))
    assert "does not hear SIGTERM" in told
    assert f"No such signal came to {server.comm}[{server.tgid}] (2 in its pid namespace)." in told
    assert "sigterm-ignored" in {finding.rule for finding in report.findings}


@pytest.mark.parametrize("engine", BOTH)
def test_a_worker_that_is_told_alone(engine: EngineChoice, tmp_path: Path) -> None:
    """A pool's parent is no part of its worker's stop."""

    def act(stage: Stage) -> None:
        workers = list(map(int, Path(f"/proc/{stage.root}/task/{stage.root}/children").read_text().split()))
        os.kill(workers[0], signal.SIGTERM)
        eventually(lambda: gone(workers[0]))

    stop, _ = audited(POOL, tmp_path, engine, act)
    assert [one.parent for one in stop.processes] == [-1]
    assert stop.process.status == signal.SIGTERM
    assert stop.process.disposition is Disposition.DEFAULT
    assert "Nobody was seen to wait" not in " ".join(sentences(stop))


@pytest.mark.parametrize("engine", BOTH)
def test_a_late_look_at_a_server_below_a_shell(engine: EngineChoice, tmp_path: Path) -> None:
    """Nobody has sent a signal yet, and the shell is not watched: /proc tells."""
    need(engine)
    program, port = tmp_path / "server.py", free_port()
    program.write_text(CONTAINED)
    with started(program, port, "unshare", "--pid", "--fork", "--kill-child") as process:
        (shell,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        (server,) = map(int, Path(f"/proc/{shell}/task/{shell}/children").read_text().split())
        options = RecordOptions(pids=(server,), engine=engine, packets=False, duration_s=1.3)
        record(options, tmp_path / "recording", Watcher())
        assert not gone(server)
    report = make_report(load_session(tmp_path / "recording"))
    assert not report.stops
    (finding,) = (one for one in report.findings if one.rule == "sigterm-ignored")
    assert (finding.severity, finding.tgid) == (Severity.INFO, server)
    assert f"sh[{shell}, 1 in its pid namespace] is PID 1" in finding.explanation
