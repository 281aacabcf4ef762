"""Facts of /proc on disk and in a flight recorder's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sockscope.errors import DamagedInputError
from sockscope.model.facts import NETNS_FACT_DTYPE, PROCESS_FACT_DTYPE, SEGMENT_FACT_DTYPE, Facts
from sockscope.model.info import SessionInfo, Target
from sockscope.model.seed import Seed
from sockscope.recording import layout
from sockscope.recording.keep_facts import KeptFacts
from sockscope.recording.reader import read_recording
from sockscope.recording.writer import Writer

INFO = SessionInfo(target=Target(pids=(7,)), started_realtime_ns=5, started_ns=1, ended_ns=2)
SECOND = 1_000_000_000


def processes(*times_ns: int) -> npt.NDArray[np.void]:
    rows = np.zeros(len(times_ns), PROCESS_FACT_DTYPE)
    rows["time_ns"] = times_ns
    rows["state"] = b"Z"
    rows["comm"] = b"pool (a) b"
    rows["sig_caught"] = 1 << 63
    rows["nofile"] = (1 << 64) - 1
    return rows


def namespaces(*times_ns: int) -> npt.NDArray[np.void]:
    rows = np.zeros(len(times_ns), NETNS_FACT_DTYPE)
    rows["time_ns"] = times_ns
    return rows


def segments(*times_ns: int) -> npt.NDArray[np.void]:
    rows = np.zeros(len(times_ns), SEGMENT_FACT_DTYPE)
    rows["time_ns"] = times_ns
    rows["path"] = b"/dev/shm/x"
    rows["creator"] = -1
    return rows


def write(folder: Path, *parts: Facts) -> None:
    writer = Writer(folder)
    writer.begin(INFO, Seed.empty())
    for part in parts:
        writer.write_facts(part)
    writer.finish(INFO)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    first = Facts(processes=processes(1, 1), namespaces=namespaces(1), segments=segments(1))
    second = Facts(processes=processes(2))
    write(tmp_path / "r", first, Facts(), second)
    facts = read_recording(tmp_path / "r").facts
    assert np.array_equal(facts.processes, processes(1, 1, 2))
    assert np.array_equal(facts.namespaces, namespaces(1))
    assert np.array_equal(facts.segments, segments(1))


def test_recordings_without_them_are_whole(tmp_path: Path) -> None:
    write(tmp_path / "r")
    recording = read_recording(tmp_path / "r")
    assert not recording.damage
    assert not len(recording.facts.processes)
    assert recording.facts.processes.dtype == PROCESS_FACT_DTYPE
    assert not (tmp_path / "r" / layout.PROCESSES).exists()


def test_a_cut_file_gives_its_whole_batches(tmp_path: Path) -> None:
    write(tmp_path / "r", Facts(processes=processes(1)), Facts(processes=processes(2)))
    path = tmp_path / "r" / layout.PROCESSES
    path.write_bytes(path.read_bytes()[:-200])
    recording = read_recording(tmp_path / "r")
    assert recording.facts.processes["time_ns"].tolist() == [1]
    assert any(layout.PROCESSES in line for line in recording.damage)


def test_noise_in_place_of_a_file(tmp_path: Path) -> None:
    write(tmp_path / "r", Facts(processes=processes(1), namespaces=namespaces(1)))
    (tmp_path / "r" / layout.PROCESSES).write_bytes(b"\xff" * 333)
    recording = read_recording(tmp_path / "r")
    assert not len(recording.facts.processes)
    assert len(recording.facts.namespaces) == 1
    assert any(layout.PROCESSES in line for line in recording.damage)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    write(tmp_path / "r")
    wrong = pa.RecordBatch.from_pydict({"time_ns": pa.array(["not a number"])})
    with pa.ipc.new_stream(str(tmp_path / "r" / layout.PROCESSES), wrong.schema) as stream:
        stream.write_batch(wrong)
    with pytest.raises(DamagedInputError, match=r"processes\.arrows"):
        read_recording(tmp_path / "r")


def test_a_flight_recorder_holds_the_window() -> None:
    kept = KeptFacts(10 * SECOND)
    for at in range(60):
        ns = at * SECOND
        kept.add(Facts(processes=processes(ns), namespaces=namespaces(ns), segments=segments(ns)))
    held = kept.held()
    assert held.processes["time_ns"].tolist() == [at * SECOND for at in range(49, 60)]
    assert held.namespaces["time_ns"].tolist() == [at * SECOND for at in range(49, 60)]
    # What there was at the start, and what there is now.
    assert held.segments["time_ns"].tolist() == [0, 59 * SECOND]


def test_a_flight_recorder_holds_no_more_than_it_may() -> None:
    kept = KeptFacts(10 * SECOND, most_bytes=PROCESS_FACT_DTYPE.itemsize * 5)
    for at in range(100):
        kept.add(Facts(processes=processes(at)))
    assert kept.held().processes["time_ns"].tolist() == [95, 96, 97, 98, 99]
    assert not len(KeptFacts(SECOND).held().segments)
