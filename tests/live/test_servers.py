"""Sound servers under load: every connection seen, nothing above info, a clean detach."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from sockscope.model.connections import Connection, Role
from sockscope.model.findings import Severity
from sockscope.model.report import Report
from sockscope.pipeline.analyze import load_session, make_report
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers
from tests.live.engines import BOTH, need

pytestmark = [pytest.mark.server, pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CONNECTIONS = 25


def load(server: servers.Server) -> int:
    """Real clients; how many connections were made at least (those that were counted)."""
    if server.name == "redis":
        servers.redis_benchmark(server.port, connections=CONNECTIONS, requests=3000)
        return 2 * CONNECTIONS  # one set of clients a test
    if server.name in ("nginx", "haproxy"):
        servers.wrk(server.port, 1, connections=4)
    assert set(servers.curl_many(server.port, 5)) == {200}
    servers.count_connections(server.port, CONNECTIONS)
    return CONNECTIONS + 5


def watch(options: RecordOptions, server: servers.Server, folder: Path) -> tuple[Report, int]:
    watcher = Watcher()
    made: list[int] = []
    trouble: list[BaseException] = []

    def act() -> None:
        try:
            servers.wait_until_serving(server.port)
            time.sleep(0.5)
            made.append(load(server))
            time.sleep(1.5)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            trouble.append(error)
        finally:
            watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
    record(options, folder, watcher)
    if trouble:
        raise trouble[0]
    return make_report(load_session(folder)), made[0]


def accepted(report: Report, port: int) -> list[Connection]:
    return [
        row.connection
        for row in report.connections
        if row.connection.role is Role.SERVER and row.connection.local and row.connection.local.port == port
    ]


def assert_sound(report: Report) -> None:
    loud = [
        f"{f.rule} ({f.severity.label}): {f.title}: {f.explanation}"
        for f in report.findings
        if f.severity > Severity.INFO
    ]
    assert not loud, "\n".join(loud)
    assert not report.info.syscalls.lost_count, report.info.syscalls.lost
    assert report.info.packets.lost_count == 0


def assert_complete(report: Report, server: servers.Server, made: int) -> None:
    """The tracer's connections, the wire's and the client's own count agree."""
    ours = accepted(report, server.port)
    assert len(ours) >= made
    assert all(c.open_file >= 0 for c in ours), [c for c in ours if c.open_file < 0][:3]
    assert all(c.flow >= 0 for c in ours if c.witnessed), [c for c in ours if c.witnessed and c.flow < 0][:3]
    assert len({c.flow for c in ours if c.flow >= 0}) == len([c for c in ours if c.flow >= 0])


def assert_untouched(pid: int, masks: dict[int, list[int]]) -> None:
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["TracerPid"] == "0"
        assert status["State"][0] not in "tT"
        if process.pid in masks:
            assert process.cpu_affinity() == masks[process.pid]


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("name", servers.SERVERS)
def test_attach(name: str, engine: EngineChoice, tmp_path: Path) -> None:
    need(engine)
    server = servers.SERVERS[name](tmp_path)
    with servers.running(server) as pid:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        masks = {p.pid: p.cpu_affinity() for p in family}
        report, made = watch(RecordOptions(pids=(pid,), engine=engine), server, tmp_path / "rec")
        assert_untouched(pid, masks)
        if name != "redis":
            assert servers.curl_many(server.port, 1) == [200]
    assert_sound(report)
    assert_complete(report, server, made)


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("name", servers.SERVERS)
def test_diagnose_by_port(name: str, engine: EngineChoice, tmp_path: Path) -> None:
    need(engine)
    server = servers.SERVERS[name](tmp_path)
    with servers.running(server):
        report, made = watch(RecordOptions(port=server.port, engine=engine), server, tmp_path / "rec")
    assert_sound(report)
    assert_complete(report, server, made)


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("name", servers.SERVERS)
def test_run(name: str, engine: EngineChoice, tmp_path: Path) -> None:
    """From the first syscall to a graceful stop: the engine ends what it launched by SIGTERM."""
    need(engine)
    server = servers.SERVERS[name](tmp_path)
    with servers.running(server.behind[0]) if server.behind else contextlib.nullcontext():
        report, made = watch(RecordOptions(command=server.command, engine=engine), server, tmp_path / "rec")
    assert_sound(report)
    assert_complete(report, server, made)


@pytest.mark.parametrize("engine", BOTH)
def test_flask_lesson(engine: EngineChoice, tmp_path: Path) -> None:
    """Attach at rest, then two pages, one a 404: idle polling and its period, accept4, the thread, recv, each send."""
    need(engine)
    server = servers.flask(tmp_path)
    with servers.running(server) as pid:
        watcher = Watcher()

        def act() -> None:
            time.sleep(2.5)
            servers.curl_many(server.port, 2, ["/", "/missing"])
            time.sleep(1)
            watcher.stop.set()

        watcher.on_ready = lambda tgids, seed: threading.Thread(target=act, daemon=True).start()
        record(RecordOptions(pids=(pid,), engine=engine), tmp_path / "rec", watcher)
    report = make_report(load_session(tmp_path / "rec"))
    assert_sound(report)
    assert any("poll" in line and "500 ms" in line for line in report.idle_words), report.idle_words
    ours = accepted(report, server.port)
    assert len(ours) == 2
    for connection, status in zip(ours, ("200", "404"), strict=True):
        items = report.timelines(connection.id)
        names = [item.name for item in items if item.lane == "syscall"]
        order = [names.index(wanted) for wanted in ("poll", "accept4", "recvfrom", "sendto")]
        assert order == sorted(order), names
        assert any(name.startswith(("clone", "task_new", "new thread")) for name in names), names
        assert names.count("sendto") >= 2
        told = " | ".join(item.words for item in items)
        assert status in told, told
        assert "header" in told, told
        assert "body" in told, told
