"""A unix stream server: who its clients are, whether they came before the watching or while it went on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sockscope.model.connections import Protocol, Role
from sockscope.model.report import ConnectionRow, Report
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Recorded, Watcher, record
from tests.live.engines import BOTH, need

pytestmark = [pytest.mark.live, pytest.mark.parametrize("engine", BOTH)]

SERVER = """
import os, socket, struct, sys
left, right = socket.socketpair()
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1].replace("@", "\\0"))
listener.listen()
print("READY", flush=True)
kept = []
while True:
    connection, _ = listener.accept()
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    left.sendall(b"one more")
    right.recv(100)
    connection.sendall(b"you said " + connection.recv(100))
    kept.append(connection)
"""


def ask(name: str) -> socket.socket:
    """A client that has its answer and stays."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(name.replace("@", "\0"))
    client.sendall(b"hello")
    assert client.recv(100) == b"you said hello"
    return client


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    held: list[socket.socket] = []
    yield held
    for client in held:
        client.close()


def watched(options: RecordOptions, folder: Path, visit: object) -> Recorded:
    """Record, with clients that come once the target is under watch."""
    assert callable(visit)
    watcher = Watcher()

    def act() -> None:
        try:
            visit()
        finally:
            watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
    return record(options, folder, watcher)


def told(report: Report, role: Role) -> list[ConnectionRow]:
    rows = [row for row in report.connections if row.connection.protocol is Protocol.UNIX]
    return [row for row in rows if row.connection.role is role]


def test_attached_late(engine: EngineChoice, tmp_path: Path, clients: list[socket.socket]) -> None:
    need(engine)
    name = f"@sockscope-test-{os.getpid()}"
    folder = tmp_path / "recording"
    command = [sys.executable, "-c", SERVER, name]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        closing(server.stdout or sys.stdin) as out,
    ):
        try:
            assert out.readline() == "READY\n"
            clients.append(ask(name))

            def visit() -> None:
                clients.append(ask(name))
                with ask(name):
                    pass

            recorded = watched(RecordOptions(pids=(server.pid,), engine=engine), folder, visit)
        finally:
            server.kill()
    report = make_report(load_session(folder, info=recorded.info))
    served = told(report, Role.SERVER)
    assert [str(row.connection.local) for row in served] == [name] * 3
    # Us, under the name that the kernel has for us; asked by those that came while it was watched.
    comm = Path("/proc/self/comm").read_text().strip()
    us = f"{comm}[{os.getpid()}]"
    assert [row.far.partition(" (uid")[0].partition(",")[0] for row in served] == [us] * 3
    assert all(row.far.endswith(f", client of {name}") for row in served)
    assert sum(f"(uid {os.getuid()})" in row.far for row in served) == 2
    assert {row.far for row in told(report, Role.UNKNOWN)} == {
        f"unix pair with {report.processes[0].comm}[{server.pid}]"
    }
    story = [item.words for item in report.timelines(served[1].connection.id)]
    assert any("a client connected" in words for words in story)
    assert any(words.startswith(f"who connected was process {os.getpid()} of user {os.getuid()}") for words in story)
    assert not report.findings


def test_run_from_the_start(engine: EngineChoice, tmp_path: Path, clients: list[socket.socket]) -> None:
    need(engine)
    name = str(tmp_path / "server.sock")
    folder = tmp_path / "recording"

    def visit() -> None:
        for _ in range(200):
            if any(line.endswith(name) for line in Path("/proc/net/unix").read_text().splitlines()):
                break
            threading.Event().wait(0.05)
        for _ in range(2):
            clients.append(ask(name))

    recorded = watched(RecordOptions(command=(sys.executable, "-c", SERVER, name), engine=engine), folder, visit)
    report = make_report(load_session(folder, info=recorded.info))
    served = told(report, Role.SERVER)
    comm = Path("/proc/self/comm").read_text().strip()
    expected = f"{comm}[{os.getpid()}] (uid {os.getuid()}), client of {name}"
    assert [row.far for row in served] == [expected] * 2
    assert [(row.connection.read_bytes, row.connection.written_bytes) for row in served] == [(5, 14)] * 2
