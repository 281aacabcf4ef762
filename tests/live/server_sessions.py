"""Real servers, watched: what is recorded while clients load them, and while they are reloaded and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from sockscope.model.connections import Connection, Role
from sockscope.model.findings import Finding
from sockscope.model.info import SessionInfo
from sockscope.model.report import Report
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers
from tests.live.servers import Server
from tests.live.steady_clients import Tally

CONNECTIONS = 25
LONGEST_S = 40.0
LINES = 4
"""Of the steady clients: ten answers each."""
PGBENCH_CLIENTS = 3


class How(StrEnum):
    """What the server goes through while it is watched."""

    ATTACH = "attach"
    """Load, and the watching ends before the server."""
    DIAGNOSE = "diagnose"
    """The same, found by its port."""
    RUN = "run"
    """From the first syscall; the engine ends what it launched by SIGTERM."""
    LIFE = "life"
    """Attached; reloaded and stopped as its manual says, while clients go on asking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What came of a session.

    Attributes:
        accepted: the server's connections.
        made: how many connections were made at least.
        statuses: of those requests whose answer was looked at.
        touched: what the watching left behind on the server's processes, in words.
        tally: the steady clients'; None where there were none.
        exit_status: the server's, where it ended by itself.
    """

    findings: tuple[Finding, ...]
    info: SessionInfo
    accepted: tuple[Connection, ...]
    made: int
    statuses: tuple[int, ...] = ()
    touched: tuple[str, ...] = ()
    tally: Tally | None = None
    exit_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCase:
    """One session."""

    name: str
    how: How
    engine: EngineChoice

    def __str__(self) -> str:
        return f"{self.how.value}-{self.name}-{self.engine.value}"

    def perform(self, folder: Path) -> Watched:
        with servers.ground() as ground:
            server = servers.SERVERS[self.name](ground)
            if self.how is How.RUN:
                with servers.running(server.behind[0]) if server.behind else contextlib.nullcontext():
                    return _loaded(RecordOptions(command=server.command, engine=self.engine), server, folder)
            with servers.running(server) as pid:
                if self.how is How.DIAGNOSE:
                    return _loaded(RecordOptions(port=server.port, engine=self.engine), server, folder)
                if self.how is How.LIFE:
                    return _lived(RecordOptions(pids=(pid,), engine=self.engine), server, folder)
                return _attached(RecordOptions(pids=(pid,), engine=self.engine), server, folder)


def accepted(report: Report, port: int) -> list[Connection]:
    return [
        row.connection
        for row in report.connections
        if row.connection.role is Role.SERVER and row.connection.local and row.connection.local.port == port
    ]


def load(server: Server) -> tuple[int, list[int]]:
    """Real clients; how many connections were made at least (those that were counted), and statuses."""
    if server.speaks == "redis":
        servers.redis_benchmark(server.port, connections=CONNECTIONS, requests=3000)
        return 2 * CONNECTIONS, []  # one set of clients a test
    if server.speaks == "postgres":
        command = servers.pgbench(server, "--connect", "--client=3", "--transactions=10")
        return _pgbench_tally(subprocess.run(command, capture_output=True, text=True, check=True).stdout).answered, []
    if server.name in ("nginx", "haproxy"):
        servers.wrk(server.port, 1, connections=4)
    statuses = servers.curl_many(server.port, 5)
    servers.count_connections(server.port, CONNECTIONS)
    return CONNECTIONS + 5, statuses


def _watch(options: RecordOptions, folder: Path, act: Callable[[int], None]) -> Report:
    """Record while `act` (given the target's first tgid) runs in a thread; what it raises is raised."""
    watcher = Watcher()
    trouble: list[BaseException] = []

    def acting(tgid: int) -> None:
        try:
            act(tgid)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            trouble.append(error)
        finally:
            watcher.stop.set()

    watcher.on_ready = lambda tgids, seed: threading.Thread(target=acting, args=(tgids[0],), daemon=True).start()
    record(options, folder, watcher)
    if trouble:
        raise trouble[0]
    return make_report(load_session(folder))


def _loaded(options: RecordOptions, server: Server, folder: Path) -> Watched:
    made: list[int] = []
    statuses: list[int] = []

    def act(tgid: int) -> None:
        servers.wait_until_serving(server.port)
        time.sleep(0.5)
        count, seen = load(server)
        made.append(count)
        statuses.extend(seen)
        time.sleep(1.5)

    report = _watch(options, folder, act)
    return Watched(
        findings=report.findings,
        info=report.info,
        accepted=tuple(accepted(report, server.port)),
        made=made[0],
        statuses=tuple(statuses),
    )


def _attached(options: RecordOptions, server: Server, folder: Path) -> Watched:
    """Also: the server is as it was before, and goes on serving."""
    (pid,) = options.pids
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    masks = {p.pid: p.cpu_affinity() for p in family}
    watched = _loaded(options, server, folder)
    after = servers.curl_many(server.port, 1) if server.speaks == "http" else []
    return Watched(
        findings=watched.findings,
        info=watched.info,
        accepted=watched.accepted,
        made=watched.made,
        statuses=(*watched.statuses, *after),
        touched=tuple(_touched(pid, masks)),
    )


def _touched(pid: int, masks: dict[int, list[int]]) -> Iterator[str]:
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if status["TracerPid"] != "0":
            yield f"{process.pid} is traced by {status['TracerPid']}"
        if status["State"][0] in "tT":
            yield f"{process.pid} is stopped: {status['State']}"
        if process.pid in masks and process.cpu_affinity() != masks[process.pid]:
            yield f"{process.pid} may run on {process.cpu_affinity()}, before: {masks[process.pid]}"


def _lived(options: RecordOptions, server: Server, folder: Path) -> Watched:
    tallies: list[Tally] = []

    def act(tgid: int) -> None:
        with _steady(server) as clients:
            clients.await_answers()
            if server.reload is not None:
                _reload(server, tgid)
                clients.await_answers()
            if not server.drains:
                tallies.append(clients.stop())
                time.sleep(0.2)
            os.kill(tgid, server.stop)
            _await(lambda: not _is_alive(tgid), f"process {tgid} did not end")
            if server.drains:
                tallies.append(clients.stop())
        time.sleep(0.3)

    report = _watch(options, folder, act)
    ended = [process for process in report.processes if process.tgid == options.pids[0]]
    return Watched(
        findings=report.findings,
        info=report.info,
        accepted=tuple(accepted(report, server.port)),
        made=tallies[0].connections,
        tally=tallies[0],
        exit_status=ended[0].exit_status if ended else None,
    )


@dataclass(frozen=True, slots=True)
class Clients:
    """That go on asking."""

    process: subprocess.Popen[str]
    server: Server

    def await_answers(self) -> None:
        """Until some more have come."""
        assert self.process.stdout is not None
        if self.server.speaks == "postgres":
            # It says nothing before its end.
            time.sleep(0.5)
            return
        for _ in range(LINES):
            assert self.process.stdout.readline() == "answered\n"

    def stop(self) -> Tally:
        """They ask no more; what they got."""
        said, _ = self.process.communicate("\n", timeout=LONGEST_S)
        return _pgbench_tally(said) if self.server.speaks == "postgres" else Tally(**json.loads(said.splitlines()[-1]))


@contextmanager
def _steady(server: Server) -> Iterator[Clients]:
    if server.speaks == "postgres":
        command = servers.pgbench(server, f"--client={PGBENCH_CLIENTS}", "--transactions=300")
    else:
        command = (sys.executable, "-m", "tests.live.steady_clients", server.speaks, str(server.port))
    clients = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if server.speaks == "postgres":
            _await(lambda: _connected(server.port) >= PGBENCH_CLIENTS, "pgbench did not connect")
        yield Clients(clients, server)
    finally:
        clients.kill()
        clients.wait()


def _connected(port: int) -> int:
    """Connections that a server has there now."""
    ends = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(local.endswith(f":{port:04X}") and state == "01" for local, _, state in ends)


def _reload(server: Server, tgid: int) -> None:
    """Ask, and wait until other children do its work."""
    assert server.reload is not None
    process = psutil.Process(tgid)
    before = {child.pid for child in process.children()}
    os.kill(tgid, server.reload)
    if before and server.renews:

        def renewed() -> bool:
            now = {child.pid for child in process.children()}
            return bool(now) and not now & before

        _await(renewed, f"{server.name} has its old children still")
    time.sleep(0.3)


def _pgbench_tally(said: str) -> Tally:
    """Of its report. It says no more of a transaction than whether it failed."""
    found = dict(re.findall(r"^number of ([a-z ]+): (\d+)", said, re.MULTILINE))
    return Tally(
        answered=int(found["transactions actually processed"]),
        errors=int(found["failed transactions"]),
        connections=int(found["clients"]),
    )


def _is_alive(tgid: int) -> bool:
    try:
        return psutil.Process(tgid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _await(true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.05)
