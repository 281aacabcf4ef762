"""The parallel walk finds exactly what the plain one finds, whatever the frames hold."""

from __future__ import annotations

import numpy as np
import pytest

from sockscope.sources.packets import offsets
from sockscope.sources.packets.formats import PcapngBlocks, PcapRecords
from sockscope.sources.packets.offsets import Format, walk
from tests.sources.packets import captures
from tests.sources.packets.captures import Frame

PCAP = PcapRecords(byte_order="<", frac_limit=10**6, max_bytes=1 << 26, first_second=1_700_000_000)
NG = PcapngBlocks(byte_order="<")


def plain(data: bytes, at: int, form: Format) -> tuple[list[int], int]:
    found = []
    while at + form.header_bytes <= len(data):
        after = form.next_serial(memoryview(data), at)
        if after < 0 or after > len(data):
            break
        found.append(at)
        at = after
    return found, at


def traps(random: np.random.Generator, count: int) -> list[Frame]:
    """Frames, many of which hold what looks like a run of records."""
    bait = captures.pcap([Frame(data=b"bait" * 5)] * 8)[24:]
    bait_ng = captures.enhanced(Frame(data=b"bait" * 5)) * 8
    frames = []
    for size in random.integers(0, 1500, count).tolist():
        kind = int(random.integers(0, 4))
        body = random.bytes(size)
        data = [body, bait + body[:9], body[:2] + bait_ng, body[:40]][kind]
        frames.append(Frame(data=data))
    return frames


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cut", [0, 1, 700])
def test_walk_equals_the_plain_walk(monkeypatch: pytest.MonkeyPatch, seed: int, cut: int) -> None:
    monkeypatch.setattr(offsets, "SERIAL_RECORDS", 16)
    monkeypatch.setattr(offsets, "MIN_STRETCH_BYTES", 2048)
    monkeypatch.setattr(offsets, "STRETCH_RECORDS", 4)
    frames = traps(np.random.default_rng(seed), 900)
    pcap = captures.pcap(frames)
    ng = b"".join(captures.enhanced(f) for f in frames)
    for data, start, form in ((pcap, 24, PCAP), (ng, 0, NG)):
        whole = data[: len(data) - cut]
        found = walk(np.frombuffer(whole, np.uint8), start, form)
        starts, stop = plain(whole, start, form)
        assert found.starts.tolist() == starts
        assert found.stop == stop


def test_walk_stops_at_damage_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "SERIAL_RECORDS", 16)
    monkeypatch.setattr(offsets, "MIN_STRETCH_BYTES", 2048)
    monkeypatch.setattr(offsets, "STRETCH_RECORDS", 4)
    frames = traps(np.random.default_rng(9), 400)
    ng = [captures.enhanced(f) for f in frames]
    for bad in (100, 399):
        blocks = list(ng)
        blocks[bad] = b"\x06\0\0\0\x05\0\0\0" + blocks[bad][8:]
        data = b"".join(blocks)
        found = walk(np.frombuffer(data, np.uint8), 0, NG)
        assert (found.starts.tolist(), found.stop) == plain(data, 0, NG)
        assert len(found.starts) == bad
