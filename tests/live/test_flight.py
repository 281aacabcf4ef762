"""The flight recorder on the real kernel: it writes when a finding fires, when asked to, and at its end."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sockscope import fixture
from sockscope.model.findings import Severity
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LEAK = "close-wait-leak"
WAIT_S = 40.0


@dataclass
class Recorder:
    """`sockscope attach --keep`, running."""

    process: subprocess.Popen[str]
    folder: Path
    lines: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def hear(self, pattern: str, count: int = 1) -> list[str]:
        """The lines that match, once there are so many."""

        def found() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, WAIT_S), (pattern, self.lines)
            return found()

    def written(self, why: str) -> list[Path]:
        return sorted(p for p in self.folder.iterdir() if p.name.endswith(why))

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


@pytest.fixture
def leaking(tmp_path: Path) -> Iterator[tuple[fixture.Play, Recorder]]:
    """The leak, watched by a flight recorder from before its clients come."""
    with fixture.Play(fixture.load(LEAK)) as play:
        pid = play.start_server()
        recorder = start(pid, tmp_path / "flight", "error")
        try:
            play.drive(pid)
            yield play, recorder
        finally:
            recorder.process.kill()
            recorder.process.wait()


def start(pid: int, folder: Path, fail_on: str) -> Recorder:
    command = [
        sys.executable, "-m", "sockscope", "attach", str(pid), "--engine", "ptrace", "--keep", "60s",
        "--output", str(folder), "--fail-on", fail_on, "--json", "-",
    ]  # fmt: skip
    with (folder.parent / "end.json").open("w") as end:
        process = subprocess.Popen(command, stdout=end, stderr=subprocess.PIPE, text=True)
    recorder = Recorder(process, folder)
    threading.Thread(target=recorder.listen, daemon=True).start()
    recorder.hear("watching process")
    return recorder


def seized(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


def rules(folder: Path) -> list[str]:
    report = make_report(load_session(folder))
    return sorted(f.rule for f in report.findings if f.severity > Severity.INFO)


def test_a_finding_is_written_once_and_named(leaking: tuple[fixture.Play, Recorder]) -> None:
    _, recorder = leaking
    (said,) = recorder.hear(f"sockscope: {LEAK}: ")
    assert "5 connections in CLOSE_WAIT" in said
    recorder.hear(r"recording written to .*-close-wait-leak$")
    (folder,) = recorder.written(LEAK)
    assert rules(folder) == [LEAK]
    time.sleep(6)
    assert recorder.end() == 1
    assert recorder.written(LEAK) == [folder]
    (end,) = recorder.written("-end")
    assert rules(end) == [LEAK]
    found = json.loads((recorder.folder.parent / "end.json").read_text())["findings"]
    assert [f["rule"] for f in found] == [LEAK]
    assert not list(recorder.folder.glob(".flight-*"))


def test_asked_twice_it_writes_twice_and_goes_on(leaking: tuple[fixture.Play, Recorder]) -> None:
    _, recorder = leaking
    for count in (1, 2):
        recorder.process.send_signal(signal.SIGUSR1)
        recorder.hear(r"recording written to .*-sigusr1(-2)?$", count)
    first, second = recorder.written("sigusr1") + recorder.written("sigusr1-2")
    assert rules(first) == rules(second) == [LEAK]
    assert stat.S_IMODE(recorder.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in first.iterdir()} == {0o600}
    session = load_session(first)
    assert len(session.packets) > 0
    assert all(c.flow >= 0 for c in session.connections if c.witnessed)
    done = subprocess.run(
        [sys.executable, "-m", "sockscope", "analyze", str(first)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert LEAK in done.stdout
    assert recorder.process.poll() is None
    assert recorder.end(signal.SIGTERM) == 1


def test_killed_it_leaves_what_was_written_whole(leaking: tuple[fixture.Play, Recorder]) -> None:
    play, recorder = leaking
    recorder.process.send_signal(signal.SIGUSR1)
    recorder.hear("recording written to")
    recorder.process.kill()
    recorder.process.wait()
    (folder,) = recorder.written("sigusr1")
    assert rules(folder) == [LEAK]
    assert play.server is not None
    assert play.server.poll() is None
    # What it had not finished goes with the next session there.
    assert list(recorder.folder.glob(".flight-*"))
    deadline = time.monotonic() + WAIT_S
    while seized(play.server.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    following = start(play.server.pid, recorder.folder, "never")
    assert len(list(recorder.folder.glob(".flight-*"))) == 1
    following.end()
    assert not list(recorder.folder.glob(".flight-*"))
    assert folder.is_dir()


def test_a_sound_server_writes_nothing_but_the_end(tmp_path: Path) -> None:
    with fixture.Play(fixture.load(LEAK), "sound") as play:
        pid = play.start_server()
        recorder = start(pid, tmp_path / "flight", "warning")
        play.drive(pid)
        time.sleep(6)
        assert recorder.end() == 0
    assert [p.name.rpartition("-")[2] for p in recorder.folder.iterdir()] == ["end"]


def test_without_it_sigusr1_is_what_it_was(tmp_path: Path) -> None:
    with fixture.Play(fixture.load(LEAK)) as play:
        pid = play.start_server()
        process = subprocess.Popen(
            [sys.executable, "-m", "sockscope", "attach", str(pid), "--engine", "ptrace"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + WAIT_S
        while not seized(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(WAIT_S) == -signal.SIGUSR1
        assert play.server is not None
        assert play.server.poll() is None
