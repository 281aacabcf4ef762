"""Small programs under trace: started, driven, their events collected. For the live tests of the engines."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Events, Section
from sockscope.sources.syscalls.bpf.engine import BpfEngine
from sockscope.sources.syscalls.bpf.prerequisites import unavailable
from sockscope.sources.syscalls.engine import Engine, EngineOptions
from sockscope.sources.syscalls.ptrace.engine import PtraceEngine

TIMEOUT_S = 15.0
ENGINES = ("ptrace", "bpf")
"""For tests that expect the same of both: parametrize("engine", ENGINES)."""


@functools.cache
def _bpf_problem() -> tuple[str, str] | None:
    return unavailable()


def make_engine(name: str, options: EngineOptions) -> Engine:
    """An engine by its name; skips where it is not to be had."""
    if name == "ptrace":
        return PtraceEngine(options)
    problem = _bpf_problem()
    if problem is not None:
        pytest.skip(f"no bpf engine: {problem[0]}")
    return BpfEngine(options)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll until it holds; AssertionError names what never came."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def state(pid: int) -> str:
    """The state letter of /proc/PID/stat."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def tracer_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    raise AssertionError("no TracerPid")


def tids(pid: int) -> list[int]:
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))


def assert_left_alone(pid: int, cpus: set[int]) -> None:
    """No thread stopped or traced, every mask as it was."""
    for tid in tids(pid):
        assert state(tid) in "SRD"
        assert tracer_of(tid) == 0
        assert os.sched_getaffinity(tid) == cpus


def compile_c(source: str, folder: Path, *flags: str) -> str:
    """A C program's path; skips where there is no compiler or it refuses the flags."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "p.c").write_text(source)
    done = subprocess.run(
        [compiler, "-O1", "-pthread", *flags, "-o", str(folder / "p"), str(folder / "p.c")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cc {' '.join(flags)}: {done.stderr[:200]}")
    return str(folder / "p")


class Program:
    """A child that prints lines and reads lines; killed at the end."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
        )
        self.pid = self.process.pid

    @classmethod
    def python(cls, source: str) -> Program:
        return cls(sys.executable, "-uB", "-c", source)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def blocked_in(self, name: str, tid: int | None = None) -> None:
        """Wait until a thread sleeps in the kernel (its state says S)."""
        wait_until(lambda: state(tid or self.pid) == "S", f"never slept in {name}")
        time.sleep(0.05)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The session that it leads: its children too.
        os.killpg(self.pid, signal.SIGKILL)
        self.process.communicate()


class Trace:
    """An engine attached or launched, read in the background. Leaving it detaches."""

    def __init__(
        self,
        *,
        attach: list[int] | None = None,
        launch: list[str] | None = None,
        pin: bool = True,
        port: int | None = None,
        engine: str = "ptrace",
    ) -> None:
        self.engine = make_engine(engine, EngineOptions(payload_bytes=64, pin=pin, port=port))
        self._adopting: list[int] = []
        self.tgid = 0
        self._parts: list[Events] = []
        self._complete: list[tuple[int, int]] = []
        if attach is not None:
            self.engine.attach(attach)
        if launch is not None:
            self.tgid = self.engine.launch(launch)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for batch in self.engine.batches():
            for earlier, _ in self._complete[-1:]:
                ended = batch.events.records["exit_ns"]
                late = ended[(ended >= 0) & (ended <= earlier)]
                assert len(late) == 0, "an event came after its time was declared complete"
            self._complete.append((batch.complete_ns, len(batch.events)))
            self._parts.append(batch.events)
            if self._adopting:
                adopting, self._adopting = self._adopting, []
                self.engine.adopt(adopting)

    def adopt(self, tgids: list[int]) -> None:
        """In the reading thread, as the contract wants it."""
        self._adopting = tgids

    @property
    def events(self) -> Events:
        """What was recorded so far, in the order of time (an engine promises none)."""
        events = Events.concat(list(self._parts))
        ended = np.maximum(events.records["exit_ns"], events.records["enter_ns"])
        return Events(records=events.records[np.argsort(ended, kind="stable")], blob=events.blob)

    def wait_for(self, condition: Callable[[Events], bool], what: str) -> None:
        wait_until(lambda: condition(self.events), what)

    def finish(self) -> Events:
        """Detach, and everything that was recorded."""
        self.engine.stop()
        return self.join()

    def join(self) -> Events:
        """Wait for the end, without asking for it."""
        self._reader.join(TIMEOUT_S)
        assert not self._reader.is_alive(), "the batches never ended"
        self.engine.close()
        return self.events

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()
        self._reader.join(TIMEOUT_S)
        self.engine.close()


def rows(events: Events, call: Call, tid: int | None = None) -> list[int]:
    """Event ids of one call, in table order."""
    return [
        i
        for i in range(len(events))
        if events.call(i) is call and (tid is None or int(events.records[i]["tid"]) == tid)
    ]


def ret(events: Events, row: int) -> int:
    return int(events.records[row]["ret"])


def args(events: Events, row: int) -> list[int]:
    return [int(a) for a in events.records[row]["args"]]


def flags(events: Events, row: int) -> EventFlag:
    return EventFlag(int(events.records[row]["flags"]))


def section(events: Events, row: int, kind: Section) -> bytes:
    data = events.section(row, kind)
    assert data is not None, f"no {kind.name} in {events.call(row).name}"
    return data
