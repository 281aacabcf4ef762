"""The sampler of /proc over real processes: zombies, pid namespaces, signals, and that it harms nobody."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sockscope.model.facts import PROCESS_FACT_DTYPE, Facts, Relation
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import RecordOptions
from sockscope.pipeline.record import Watcher, record
from sockscope.sources.processes.look import Looker
from sockscope.sources.processes.sampler import FactSampler

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PARENT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: sys.exit())
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
child = os.fork()
if child == 0:
    os._exit(3)
print(child, flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def newest(rows: npt.NDArray[np.void], tgid: int) -> np.void:
    mine: npt.NDArray[np.void] = rows[rows["tgid"] == tgid]
    assert len(mine), f"{tgid} not among {np.unique(rows['tgid'])}"
    newest: np.void = mine[-1]
    return newest


def children_of(tgid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{tgid}/task/{tgid}/children").read_text().split()]


def in_pid_namespace(process: subprocess.Popen[str]) -> tuple[int, int]:
    """The shell that is PID 1 in there, and its child."""
    eventually(lambda: bool(children_of(process.pid)))
    shell = children_of(process.pid)[0]
    eventually(lambda: bool(children_of(shell)))
    return shell, children_of(shell)[0]


def test_an_untraced_zombie_is_seen_in_every_look() -> None:
    with started(sys.executable, "-u", "-c", PARENT) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        eventually(lambda: Path(f"/proc/{child}/stat").read_text().split()[2] == "Z")
        sampler = FactSampler([process.pid], period_s=0.05)
        sampler.start()
        gathered: list[Facts] = []

        def often_enough() -> bool:
            gathered.append(sampler.drain())
            return sum(int((part.processes["tgid"] == child).sum()) for part in gathered) >= 3

        eventually(often_enough)
        last = sampler.stop()
        assert process.poll() is None
        for part in [*gathered, last]:
            mine = part.processes[part.processes["tgid"] == child]
            assert set(mine["state"].tolist()) <= {b"Z"}
        zombie, parent = newest(last.processes, child), newest(last.processes, process.pid)
        assert (zombie["ppid"], zombie["relation"]) == (process.pid, Relation.CHILD)
        assert parent["relation"] == Relation.TARGET
        assert parent["sig_caught"] >> (signal.SIGTERM - 1) & 1
        assert parent["sig_ignored"] >> (signal.SIGUSR1 - 1) & 1
        assert parent["init_tgid"] == 0
        assert parent["ns_tgid"] == process.pid
        assert parent["nofile"] > 0
        assert len(last.namespaces)
        assert last.namespaces["netns"][-1] == os.stat("/proc/self/ns/net").st_ino
        assert last.namespaces["somaxconn"][-1] == int(Path("/proc/sys/net/core/somaxconn").read_text())


def test_the_first_process_of_a_pid_namespace_is_found_above() -> None:
    with started("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", "sleep 60; :") as process:
        shell, server = in_pid_namespace(process)
        rows = Looker().processes([server])
        found, init = newest(rows, server), newest(rows, shell)
        assert (found["init_tgid"], init["init_tgid"]) == (shell, shell)
        assert (found["ns_tgid"] > 1, init["ns_tgid"]) == (True, 1)
        assert init["relation"] == Relation.INIT
        assert not init["sig_caught"] >> (signal.SIGTERM - 1) & 1


def test_one_that_came_into_the_namespace_from_outside() -> None:
    with started("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", "sleep 60; :") as process:
        shell, server = in_pid_namespace(process)
        with started("nsenter", "--target", str(server), "--pid", "sleep", "60") as guest:
            eventually(lambda: bool(children_of(guest.pid)))
            inner = children_of(guest.pid)[0]
            assert newest(Looker().processes([inner]), inner)["init_tgid"] == shell


def test_without_lists_of_children_all_processes_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    looker = Looker()
    monkeypatch.undo()
    with started(sys.executable, "-u", "-c", PARENT) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert newest(looker.processes([process.pid]), child)["relation"] == Relation.CHILD


def test_one_that_is_gone_has_no_row() -> None:
    with started("sleep", "60") as process:
        sampler = FactSampler([process.pid], period_s=0.05)
        sampler.start()
        process.kill()
        process.wait()
        sampler.drain()
        sampler.look_soon()
        time.sleep(0.2)
        sampler.drain()
        assert not len(sampler.stop().processes)
        assert Looker().processes([process.pid]).dtype == PROCESS_FACT_DTYPE


@pytest.mark.parametrize("sockets", [True, False])
def test_a_recording_has_them_with_and_without_socket_states(tmp_path: Path, sockets: bool) -> None:
    with started(sys.executable, "-u", "-c", PARENT) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        options = RecordOptions(pids=(process.pid,), duration_s=0.3, sockets=sockets, packets=False)
        record(options, tmp_path / "r", Watcher())
        facts = load_session(tmp_path / "r").facts
        times = facts.processes["time_ns"][facts.processes["tgid"] == process.pid]
        assert len(times) >= 2
        assert newest(facts.processes, child)["state"] == b"Z"
        assert np.all(np.diff(facts.processes["time_ns"]) >= 0)
        assert len(facts.namespaces) >= 2
        assert process.poll() is None
