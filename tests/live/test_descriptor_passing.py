"""A master that accepts and hands each connection to a worker (SCM_RIGHTS): one connection, one timeline."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sockscope.analysis.session import Session
from sockscope.fixture import free_port
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.report import Lane
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live.engines import BOTH, need
from tests.live.servers import wait_until_serving

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CLIENTS = 4
SERVER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
channels = []
for _ in range(2):
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        listener.close(); ours.close()
        while True:
            message, fds, _, _ = socket.recv_fds(theirs, 16, 1)
            if not message:
                os._exit(0)
            with socket.socket(fileno=fds[0]) as connection:
                connection.sendall(b"you said " + connection.recv(100))
    theirs.close()
    channels.append(ours)
served = 0
while True:
    connection, _ = listener.accept()
    socket.send_fds(channels[served % 2], [b"c"], [connection.fileno()])
    connection.close()
    served += 1
"""


def ask(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"hello")
        answer = b""
        while received := client.recv(100):
            answer += received
    assert answer == b"you said hello"


def watched(mode: str, engine: EngineChoice, folder: Path) -> tuple[Session, int]:
    script, port = folder / "server.py", free_port()
    script.write_text(SERVER)
    command = (sys.executable, str(script), str(port))
    watcher = Watcher()
    trouble: list[BaseException] = []

    def act() -> None:
        try:
            wait_until_serving(port)
            for _ in range(CLIENTS):
                ask(port)
            time.sleep(0.4)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            trouble.append(error)
        finally:
            watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
    if mode == "run":
        record(RecordOptions(command=command, engine=engine), folder / "rec", watcher)
    else:
        server = subprocess.Popen(command)
        try:
            wait_until_serving(port)
            time.sleep(0.2)
            record(RecordOptions(pids=(server.pid,), engine=engine), folder / "rec", watcher)
        finally:
            server.terminate()  # the workers' channels end with it, and so do they
            server.wait(10)
    if trouble:
        raise trouble[0]
    return load_session(folder / "rec"), port


def accepted(session: Session, port: int) -> list[Connection]:
    return [
        c
        for c in session.connections
        if c.protocol is Protocol.TCP and c.role is Role.SERVER and c.local is not None and c.local.port == port
    ]


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("mode", ["attach", "run"])
def test_one_connection_one_timeline(mode: str, engine: EngineChoice, tmp_path: Path) -> None:
    need(engine)
    session, port = watched(mode, engine, tmp_path)
    report = make_report(session)
    rows = {row.connection.id: row for row in report.connections}
    found = accepted(session, port)
    assert len(found) == CLIENTS
    workers = set()
    for connection in found:
        master, worker = rows[connection.id].processes
        workers.add(worker)
        assert (connection.read_bytes, connection.written_bytes) == (5, 14)
        items = list(report.timelines(connection.id))
        said = {item.words for item in items}
        ours, theirs = (f"{session.comm(tgid)}[{tgid}]" for tgid in (master, worker))
        copies = [session.descriptors[number] for number in session.open_files[connection.open_file].descriptors]
        fd = next(one.fd for one in copies if session.tgid_of_table(one.table) == worker)
        assert f"hands this connection on (SCM_RIGHTS) to {theirs}, which has it as fd {fd}" in said
        assert any(words.startswith(f"receives this connection as fd {fd} from {ours}") for words in said)
        # The FIN belongs to the last close, whose that may be: a quick worker is done before the master closes.
        first, last = [at for at, item in enumerate(items) if item.name == "close"]
        assert {items[first].actor, items[last].actor} == {ours, theirs}
        assert items[first].words.startswith("closes its copy: ")
        assert items[last].words == "closes the last copy: only now the connection ends (FIN)"
        fins = [
            n for n, item in enumerate(items) if item.lane is Lane.WIRE and item.actor == "->" and "FIN" in item.name
        ]
        assert fins
        assert fins[0] > last
    assert len(workers) == 2
    assert any(
        "accepts and hands each connection to another process (SCM_RIGHTS)" in line for line in report.architecture
    ), report.architecture
    assert not report.findings, [finding.title for finding in report.findings]
