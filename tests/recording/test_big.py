"""A recording too big for memory is read as any other: the events lie in files, and are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sockscope import storage
from sockscope.errors import UsageError
from sockscope.recording import layout
from sockscope.recording.reader import read_recording
from tests.recording.test_roundtrip import assert_same, some_events, write


def in_file(array: np.ndarray) -> bool:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return not isinstance(array, np.ndarray)


@pytest.fixture
def small_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes the way of what is big."""
    monkeypatch.setattr(storage, "SPILL_BYTES", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "r", [some_events(10), some_events(1), some_events(7, 100)])
    return tmp_path / "r"


def test_the_same_events(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = read_recording(folder)
    monkeypatch.setattr(storage, "SPILL_BYTES", 0)
    big = read_recording(folder)
    assert_same(big.events, usual.events)
    assert big.damage == usual.damage == ()
    assert in_file(big.events.records)
    assert in_file(big.events.blob)
    assert big.events.records.flags.writeable


@pytest.mark.usefixtures("small_rooms")
def test_cut_anywhere(folder: Path) -> None:
    path = folder / layout.SYSCALLS
    data = path.read_bytes()
    sizes = set()
    for size in range(0, len(data) - 8, 97):
        path.unlink()
        path.write_bytes(data[:size])
        found = read_recording(folder)
        sizes.add(len(found.events))
        assert found.damage
    assert sizes == {0, 10, 11}


@pytest.mark.usefixtures("small_rooms")
def test_a_compressed_stream_is_copied(folder: Path) -> None:
    path = folder / layout.SYSCALLS
    expected = read_recording(folder).events
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    # What was read above still lies in the old file.
    fresh = path.with_suffix(".new")
    with pa.ipc.new_stream(str(fresh), table.schema, options=options) as writer:
        writer.write_table(table)
    fresh.replace(path)
    assert_same(read_recording(folder).events, expected)


@pytest.mark.usefixtures("small_rooms")
def test_a_full_disk_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "temporary_folder", lambda: "/dev/full-of-nothing")
    with pytest.raises(UsageError, match="has no room for"):
        read_recording(folder)
