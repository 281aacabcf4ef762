"""The same program and the same client under both engines: the same events of every thread, the same connections, the
same findings.

What may differ, and why (`tests.live.equality` leaves it out):

- TRACER_EINTR: ptrace stops its target to attach, which breaks off epoll_wait; bpf stops nothing.
- NO_ENTRY: what a thread was in when it came under trace has no entry; ptrace breaks it off and sees the program come
  again, bpf sees it return.
- Kernel events (sock_state and its like) come from bpf alone.
- pids, times, pointers and ephemeral ports are another run's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sockscope.fixture import free_port
from sockscope.pipeline.analyze import load_session, make_report
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import servers
from tests.live.engines import need
from tests.live.equality import Normal, differences

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PYTHON = (sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name("equality_program.py")))
LONGEST_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an engine's recording says, normalised."""

    threads: dict[str, list[str]]
    connections: list[str]
    findings: list[str]


def watched(engine: EngineChoice, mode: str, folder: Path) -> Told:
    """The program from its start (`run`) or from when it serves (`attach`) to its end."""
    port = free_port()
    command = (*PYTHON, "server", str(port))
    watcher = Watcher()
    tgids: list[int] = []
    trouble: list[BaseException] = []

    def act() -> None:
        try:
            servers.wait_until_serving(port)
            time.sleep(0.5)
            subprocess.run([*PYTHON, "client", str(port)], check=True, timeout=LONGEST_S, stdout=subprocess.DEVNULL)
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
    normal = Normal(session, tgids[0], port)
    return Told(
        threads=normal.threads(),
        connections=normal.connections(),
        findings=[normal.finding(each) for each in make_report(session).findings],
    )


@pytest.mark.parametrize("mode", ["attach", "run"])
@pytest.mark.parametrize("engine", [EngineChoice.PTRACE, EngineChoice.BPF])
def test_engines_tell_the_same(engine: EngineChoice, mode: str, tmp_path: Path) -> None:
    """ptrace against itself shows what is the same from run to run; then bpf against ptrace."""
    need(engine)
    first = watched(EngineChoice.PTRACE, mode, tmp_path / "first")
    second = watched(engine, mode, tmp_path / "second")
    told = differences(first.threads, second.threads)
    assert not told, "\n".join(told)
    assert len(first.threads) > 7
    for one, other in zip(first.connections, second.connections, strict=True):
        assert other == one
    assert second.findings == first.findings
    assert {line.split()[0] for line in first.findings} >= {"close-wait-leak", "write-after-peer-close"}
