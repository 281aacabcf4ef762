"""The same programs and the same clients under both engines: the same events of every thread, the same connections,
the same findings.

What may differ, and why (`tests.live.equality` leaves it out):

- TRACER_EINTR: ptrace stops its target to attach, which breaks off epoll_wait; bpf stops nothing.
- NO_ENTRY: what a thread was in when it came under trace has no entry; ptrace breaks it off and sees the program come
  again, bpf sees it return.
- Kernel events (sock_state and its like) come from bpf alone.
- pids, times, pointers and ephemeral ports are another run's.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import pytest

from sockscope.fixture import free_port
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers
from tests.live.engines import BOTH, need
from tests.live.equality import Normal, differences
from tests.live.rehearsals import Rehearsals
from tests.sources.syscalls.ptrace_support import compile_c

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PYTHON = (sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name("equality_program.py")))
ODD = Path(__file__).with_name("equality_odd.c")
LONGEST_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server and its client.

    Attributes:
        command: what serves; the port is its last word.
        ask: the client's whole traffic.
        stays: the server does not end by itself.
    """

    command: tuple[str, ...]
    ask: Callable[[int], None]
    stays: bool


def converse(port: int) -> None:
    subprocess.run([*PYTHON, "client", str(port)], check=True, timeout=LONGEST_S, stdout=subprocess.DEVNULL)


def listen_to_the_end(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        while client.recv(4096):
            pass


def python_server(folder: Path) -> Subject:
    """Everything that servers do with sockets."""
    return Subject(command=(*PYTHON, "server"), ask=converse, stays=False)


def odd_server(folder: Path) -> Subject:
    """What they seldom do; at the end its threads are in calls that do not return."""
    program = compile_c(ODD.read_text(), folder, "-w")
    return Subject(command=(program,), ask=listen_to_the_end, stays=True)


SUBJECTS: Mapping[str, Callable[[Path], Subject]] = MappingProxyType({"python": python_server, "odd": odd_server})


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an engine's recording says, normalised."""

    threads: dict[str, list[str]]
    connections: list[str]
    findings: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A subject watched once: the `number`th time under this engine."""

    subject: str
    mode: str
    engine: EngineChoice
    number: int

    def perform(self, folder: Path) -> Told:
        folder.mkdir()
        return watched(SUBJECTS[self.subject](folder), self.engine, self.mode, folder / "recording")

    def __str__(self) -> str:
        return f"{self.subject}-{self.mode}-{self.engine.value}-{self.number}"


def watched(subject: Subject, engine: EngineChoice, mode: str, folder: Path) -> Told:
    """The server from its start (`run`) or from when it serves (`attach`) to its end or the client's."""
    port = free_port()
    command = (*subject.command, str(port))
    watcher = Watcher()
    tgids: list[int] = []
    trouble: list[BaseException] = []

    def act() -> None:
        try:
            servers.wait_until_serving(port)
            time.sleep(0.5)
            subject.ask(port)
            if subject.stays:
                time.sleep(0.5)
                watcher.stop.set()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            trouble.append(error)
            watcher.stop.set()

    def begin(found: tuple[int, ...], seed: object) -> None:
        tgids.append(found[0])
        threading.Thread(target=act, daemon=True).start()

    watcher.on_ready = begin
    if mode == "run":
        record(RecordOptions(command=command, engine=engine, duration_s=LONGEST_S), folder, watcher)
    else:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                servers.wait_until_serving(port)
                time.sleep(0.5)
                record(RecordOptions(pids=(server.pid,), engine=engine, duration_s=LONGEST_S), folder, watcher)
            finally:
                server.kill()
    if trouble:
        raise trouble[0]
    session = load_session(folder)
    assert session.info.syscalls.engine == engine.value
    assert not session.info.syscalls.lost_count, session.info.syscalls.lost
    normal = Normal(session, tgids[0], port, folder.parent)
    return Told(
        threads=normal.threads(),
        connections=normal.connections(),
        findings=[normal.finding(each) for each in make_report(session).findings],
    )


def pairs() -> list[tuple[Run, Run]]:
    """ptrace and itself, then ptrace and bpf."""
    first = [Run(subject=name, mode=mode, engine=BOTH[0], number=1) for name in SUBJECTS for mode in ("attach", "run")]
    return [
        *((run, replace(run, number=2)) for run in first),
        *((run, replace(run, engine=EngineChoice.BPF)) for run in first),
    ]


@pytest.mark.parametrize("pair", pairs(), ids=lambda pair: f"{pair[0]}-{pair[1].engine.value}")
def test_engines_tell_the_same(pair: tuple[Run, Run], rehearsals: Rehearsals) -> None:
    """ptrace against itself shows what is the same from run to run; then bpf against ptrace."""
    need(pair[1].engine)
    first, second = map(rehearsals.outcome, pair)
    told = differences(first.threads, second.threads)
    assert not told, "\n".join(told)
    assert len(first.threads) > 7
    # Which of two that come at once is the first is not the server's doing.
    for one, other in zip(sorted(first.connections), sorted(second.connections), strict=True):
        assert other == one
    assert second.findings == first.findings
