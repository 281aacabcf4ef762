"""The flight recorder without a kernel: what it writes, where, and what it does when it cannot."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sockscope.errors import UsageError
from sockscope.model.calls import Call
from sockscope.model.events import Events
from sockscope.model.info import SessionInfo, SyscallCoverage, Target
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets
from sockscope.pipeline import flight, flight_dump
from sockscope.pipeline.flight import FlightRecorder
from sockscope.pipeline.flight_check import Checked, Checker, Fired
from sockscope.pipeline.options import Alarm
from sockscope.recording.reader import read_recording
from tests.analysis.builders import SOCK_STREAM, Script

NOW = time.monotonic_ns()
INFO = SessionInfo(
    target=Target(pids=(100,)),
    started_realtime_ns=1_700_000_000_000_000_000,
    started_ns=NOW - 3_600_000_000_000,
    ended_ns=NOW,
    clock_samples=((NOW - 3_600_000_000_000, 1_700_000_000_000_000_000), (NOW, 1_700_003_600_000_000_000)),
    syscalls=SyscallCoverage(engine="test"),
)
LEAK = Fired(rule="close-wait-leak", severity=3, tgid=100, comm="srv", title="5 connections in CLOSE_WAIT")


def some_events(age_s: float, fd: int = 7) -> Events:
    script = Script()
    script.event(100, 100, Call.socket, 2, SOCK_STREAM, ret=fd)
    script.event(100, 100, Call.write, fd, ret=3)
    events = script.events()
    for name in ("enter_ns", "exit_ns"):
        events.records[name] += NOW - int(age_s * 1e9) - int(events.records["exit_ns"].min())
    return events


class Desk:
    """A recorder and what it said."""

    def __init__(self, folder: Path, keep_s: float = 10, alarm: Alarm | None = None) -> None:
        self.said: list[str] = []
        self.recorder = FlightRecorder(folder, keep_s, alarm, self.said.append)
        self.recorder.begin(INFO, Seed.empty())
        self.folder = folder

    def tick(self, *, asked: bool = False) -> None:
        self.recorder.tick(NOW, asked=asked, info=lambda: INFO, cut=list)

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline, self.said
            self.tick()
            time.sleep(0.01)

    def names(self) -> list[str]:
        return sorted(p.name[18:] for p in self.folder.iterdir() if not p.name.startswith("."))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "flight")
    yield made
    made.recorder.close()


@pytest.fixture
def watchful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """One that looks for findings all the time."""
    monkeypatch.setattr(flight, "CHECK_EVERY_S", 0.0)
    made = Desk(tmp_path / "watchful", alarm=Alarm(bar=2))
    yield made
    made.recorder.close()


def judged(monkeypatch: pytest.MonkeyPatch, *verdicts: Checked) -> None:
    """The rules say this, one check after another, at once."""
    left = iter([*verdicts, *[Checked()] * 1000])
    monkeypatch.setattr(Checker, "check", lambda self, folder: next(left))


def test_asked_it_writes_what_it_holds_and_goes_on(desk: Desk) -> None:
    desk.recorder.write_events(some_events(3))
    desk.tick(asked=True)
    desk.until(lambda: len(desk.names()) == 1)
    desk.recorder.write_events(some_events(1, 8))
    desk.tick(asked=True)
    desk.until(lambda: len(desk.names()) == 2)
    desk.recorder.finish(INFO, Sockets.empty())
    assert [name.partition("-")[0] for name in desk.names()] == ["end", "sigusr1", "sigusr1"]
    assert all("recording written to" in line for line in desk.said)
    counts = sorted(len(read_recording(p).events) for p in desk.folder.iterdir() if not p.name.startswith("."))
    assert counts == [2, 4, 4]


def test_the_window_is_what_the_recording_is_of(desk: Desk) -> None:
    for age_s in range(3000, 0, -5):
        desk.recorder.write_events(some_events(age_s, 7 + age_s % 50))
        desk.recorder.tick(NOW - age_s * 1_000_000_000, asked=False, info=lambda: INFO, cut=list)
    desk.tick()
    desk.recorder.finish(INFO, Sockets.empty())
    info = desk.recorder.info
    assert 9e9 < info.ended_ns - info.started_ns < 16e9
    assert info.started_realtime_ns == pytest.approx(1_700_003_600_000_000_000 - (NOW - info.started_ns), abs=1e6)
    assert "of 60 min; of what was before" in info.notes[0]
    recording = read_recording(desk.recorder.folder)
    assert recording.info == info
    assert info.syscalls.event_count == len(recording.events)


def test_each_fault_of_a_program_is_written_once(watchful: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    again = replace(LEAK, tgid=200)
    quiet = replace(LEAK, rule="missing-fin", severity=1)
    other = replace(LEAK, comm="other")
    judged(monkeypatch, *(Checked(fired=(one,)) for one in (LEAK, again, quiet, other)))
    watchful.until(lambda: len(watchful.said) >= 4)
    for _ in range(20):
        watchful.tick()
    assert watchful.said[0] == "close-wait-leak: srv[100]: 5 connections in CLOSE_WAIT"
    assert watchful.said[2] == "close-wait-leak: other[100]: 5 connections in CLOSE_WAIT"
    assert len(watchful.said) == 4
    assert watchful.recorder.fired_count == 2
    assert [name.removesuffix("-2") for name in watchful.names()] == ["close-wait-leak"] * 2


def test_there_is_an_end_to_what_findings_write(watchful: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "MOST_ALARMS", 3)
    judged(monkeypatch, *(Checked(fired=(replace(LEAK, comm=f"c{n}"),)) for n in range(6)))
    watchful.until(lambda: watchful.recorder.fired_count == 6)
    watchful.tick()
    assert len(watchful.names()) == 3
    assert watchful.said[-1] == "no recording of it: 3 were written already"


def test_a_check_that_fails_is_counted(watchful: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, Checked(problem="ended with -9"), Checked(problem="ended with -9"))
    for _ in range(50):
        watchful.tick()
        time.sleep(0.005)
    watchful.recorder.finish(INFO, Sockets.empty())
    assert "flight recorder: 2 times the look for findings failed" in watchful.recorder.info.notes


def test_without_room_nothing_is_looked_for(watchful: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch)
    monkeypatch.setattr(flight, "_free_bytes", lambda folder: 1000)
    for _ in range(3):
        watchful.tick()
    watchful.recorder.finish(INFO, Sockets.empty())
    assert any("times no look for findings, for want of disk space" in note for note in watchful.recorder.info.notes)


def test_a_full_disk_does_not_end_the_session(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.recorder.write_events(some_events(1))
    real = flight_dump.write
    monkeypatch.setattr(flight, "write", lambda shot, folder: "recording in x stopped: the disk is full")
    desk.tick(asked=True)
    desk.until(lambda: bool(desk.said))
    assert desk.said == ["flight recorder: recording in x stopped: the disk is full; going on"]
    monkeypatch.setattr(flight, "write", real)
    desk.tick(asked=True)
    desk.until(lambda: len(desk.names()) == 1)


def test_what_a_killed_session_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".flight-999999999-0" / "draft-1").mkdir(parents=True)
    (tmp_path / f".flight-{os.getpid()}-0").mkdir()
    one = Desk(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".flight-{os.getpid()}-0", f".flight-{os.getpid()}-1"]
    one.recorder.close()
    one.recorder.close()
    assert [p.name for p in tmp_path.iterdir()] == [f".flight-{os.getpid()}-0"]


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        Desk(tmp_path / "file")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="is a recording"):
        Desk(tmp_path)


def test_the_rules_run_elsewhere(desk: Desk) -> None:
    desk.recorder.write_events(some_events(1))
    desk.tick(asked=True)
    desk.until(lambda: len(desk.names()) == 1)
    (folder,) = (p for p in desk.folder.iterdir() if not p.name.startswith("."))
    checked = Checker(ignore={"missing-fin"}).check(folder)
    assert (checked.problem, checked.fired) == ("", ())
    assert Checker().check(folder / "none").problem == "ended with 1"
    stopped = Checker()
    stopped.stop()
    assert stopped.check(folder).problem == "stopped"
