"""What real servers are said to be, attached to late, under a few clients and at rest."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from sockscope.model.report import Report
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers

pytestmark = [pytest.mark.server, pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

TOLD = {
    "nginx": (
        "share one listener on 127.0.0.1:",
        "each runs one event loop in one thread",
        "the thread that accepts serves them all",
        "supervises: it started nginx[",
        "never accepts from it",
    ),
    "redis": ("runs one event loop in one thread", " of 5 threads made no call on a socket"),
    "gunicorn": (
        "share one listener on 127.0.0.1:",
        "each waits in select until somebody connects, then accepts",
        "each serves one connection after another",
        "supervises: it started ",
    ),
    "flask": ("waits in poll until somebody connects, then accepts", "starts a thread for each connection"),
    "http.server": ("waits in poll until somebody connects, then accepts", "starts a thread for each connection"),
    "haproxy": ("is a proxy: it passes on what it reads from 127.0.0.1:",),
}
CLIENTS = 8


def watch(name: str, folder: Path, *, clients: bool) -> Report:
    server = servers.SERVERS[name](folder)
    watcher = Watcher()
    trouble: list[BaseException] = []

    def act() -> None:
        try:
            if clients and name == "redis":
                servers.redis_benchmark(server.port, connections=CLIENTS, requests=50)
            elif clients:
                servers.count_connections(server.port, CLIENTS)
            time.sleep(0.7)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            trouble.append(error)
        finally:
            watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
    with servers.running(server) as pid:
        record(RecordOptions(pids=(pid,), engine=EngineChoice.AUTO), folder / "rec", watcher)
    if trouble:
        raise trouble[0]
    return make_report(load_session(folder / "rec"))


@pytest.mark.parametrize("name", TOLD)
def test_what_it_is(name: str, tmp_path: Path) -> None:
    report = watch(name, tmp_path, clients=True)
    said = "\n".join(report.architecture)
    for phrase in TOLD[name]:
        assert phrase in said, said
    assert "connections accepted" in said
    assert "not known yet" not in said


def test_nobody_asked(tmp_path: Path) -> None:
    report = watch("nginx", tmp_path, clients=False)
    first, loop, boss, unknown = report.architecture
    assert " share one listener on 127.0.0.1:" in first
    assert "accepted" not in first
    assert loop.startswith("each waits in epoll (fd ")
    assert loop.endswith("until somebody connects, then accepts")
    assert " supervises: it started nginx[" in boss
    assert unknown == "Nobody connected while it was watched: how connections are served is not known yet"
