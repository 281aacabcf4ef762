"""Segments: the last moments only, each a whole pcapng file, joined into one."""

from __future__ import annotations

import shutil
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from sockscope.sources.packets import segments
from sockscope.sources.packets.files import read_packets
from sockscope.sources.packets.pcapng_writer import enhanced_packets, interface_description, section_header
from sockscope.sources.packets.segments import OneFile, Segments, join, open_segments

HEADER = section_header("sockscope") + interface_description("lo", 1, 256)


def block(number: int) -> bytes:
    """One TCP packet, its sequence number as given."""
    frame = np.zeros((1, 64), np.uint8)
    frame[0, 12:14] = 8, 0
    frame[0, 14] = 0x45
    frame[0, 16:18] = 0, 40
    frame[0, 23] = 6
    frame[0, 26:34] = 127, 0, 0, 1, 127, 0, 0, 1
    frame[0, 34:38] = 0, 80, 0x9C, 0x40
    frame[0, 41] = number
    frame[0, 46] = 0x50
    one = np.array([54], np.int64)
    return enhanced_packets(frame, one, one, one * 1_000_000_000, 0)


def sequences(path: Path) -> list[int]:
    read = read_packets(path)
    assert read.damage is None
    return [int(n) for n in read.packets.records["seq"]]


def test_segments_joined_are_one_capture(tmp_path: Path) -> None:
    sink = Segments(tmp_path / "s", HEADER, keep_s=60)
    for number in range(6):
        assert sink.write(block(number))
        if number % 2:
            sink.cut()
    path = tmp_path / "packets.pcapng"
    join(open_segments(tmp_path / "s", whole=False), path)
    assert sequences(path) == list(range(6))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for tool in ("capinfos", "tshark"):
        if shutil.which(tool):
            flag = [] if tool == "capinfos" else ["-r"]
            done = subprocess.run([tool, *flag, str(path)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def test_what_is_being_written_is_left_out_until_it_is_cut(tmp_path: Path) -> None:
    sink = Segments(tmp_path / "s", HEADER, keep_s=60)
    sink.write(block(1))
    assert open_segments(tmp_path / "s", whole=False) == []
    (whole,) = open_segments(tmp_path / "s", whole=True)
    whole.close()
    sink.cut()
    sink.cut()
    assert len(list((tmp_path / "s").iterdir())) == 2


def test_old_segments_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    sink = Segments(tmp_path / "s", HEADER, keep_s=12)
    for number in range(60):
        sink.write(block(number))
        sink.tick()
        now[0] += 1
    join(open_segments(tmp_path / "s", whole=True), tmp_path / "p")
    held = sequences(tmp_path / "p")
    assert held[-1] == 59
    assert 12 <= len(held) <= 16


def test_opened_segments_are_read_though_deleted(tmp_path: Path) -> None:
    sink = Segments(tmp_path / "s", HEADER, keep_s=60)
    sink.write(block(7))
    sink.cut()
    found = open_segments(tmp_path / "s", whole=False)
    shutil.rmtree(tmp_path / "s")
    join(found, tmp_path / "p")
    assert sequences(tmp_path / "p") == [7]


def test_no_more_than_its_share_of_the_disk(tmp_path: Path) -> None:
    sink = Segments(tmp_path / "s", HEADER, keep_s=3600, most_bytes=6000)
    for number in range(500):
        sink.write(block(number % 250))
        sink.tick()
    assert sum(p.stat().st_size for p in (tmp_path / "s").iterdir()) < 8000


def test_a_full_disk_costs_packets_not_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Segments(tmp_path / "s", HEADER, keep_s=60)
    sink.write(block(1))

    def full(self: OneFile, block: bytes) -> bool:
        self.failure = "packet capture ended early: No space left on device"
        return False

    with monkeypatch.context() as patch:
        patch.setattr(segments.OneFile, "write", full)
        assert not sink.write(block(2))
    assert "packets were lost for want of room: No space left on device" in sink.failure
    sink.tick()
    sink.cut()
    assert sink.write(block(3))
    sink.cut()
    join(open_segments(tmp_path / "s", whole=True), tmp_path / "p")
    assert sequences(tmp_path / "p")[-1] == 3
