"""What is written reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.l2 import Ether  # type: ignore[import-untyped,unused-ignore]
from scapy.utils import RawPcapNgReader  # type: ignore[import-untyped,unused-ignore]

from sockscope.sources.packets import pcapng_writer
from sockscope.sources.packets.files import read_packets

WIDTH = 64


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, WIDTH), min_size=1, max_size=40), seed=st.integers(0, 2**32))
def test_blocks_read_back_in_scapy(tmp_path_factory, sizes: list[int], seed: int) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (len(sizes), WIDTH)).astype(np.uint8)
    captured = np.array(sizes, np.int64)
    times = 1_700_000_000_000_000_000 + random.integers(0, 10**12, len(sizes))
    path = tmp_path_factory.mktemp("ng") / "out.pcapng"
    path.write_bytes(
        pcapng_writer.section_header("test")
        + pcapng_writer.interface_description("lo", 1, WIDTH)
        + pcapng_writer.enhanced_packets(data, captured, captured + 7, times, 0)
        + pcapng_writer.interface_statistics(0, int(times[0]), 10, 3)
    )
    found = list(RawPcapNgReader(str(path)))
    assert [bytes(raw) for raw, _ in found] == [data[i, :n].tobytes() for i, n in enumerate(sizes)]
    assert [m.wirelen for _, m in found] == [n + 7 for n in sizes]
    assert [(m.tshigh << 32) + m.tslow for _, m in found] == times.tolist()


def test_padding_holds_nothing_of_what_lay_there_before() -> None:
    data = np.full((1, 8), 0xFF, np.uint8)
    one = np.array([5], np.int64)
    block = pcapng_writer.enhanced_packets(data, one, one, np.array([0], np.int64), 0)
    assert block[28:36] == b"\xff" * 5 + b"\0" * 3


def test_statistics_are_the_readers_drop_count(tmp_path: Path) -> None:
    frame = np.frombuffer(bytes(Ether() / IP() / TCP()) + b"\0\0", np.uint8)[None, :]
    size = np.array([54], np.int64)
    path = tmp_path / "out.pcapng"
    path.write_bytes(
        pcapng_writer.section_header("test")
        + pcapng_writer.interface_description("eth0", 1, WIDTH)
        + pcapng_writer.enhanced_packets(frame, size, size, np.array([123], np.int64), 0)
        + pcapng_writer.interface_statistics(0, 0, 10, 3)
    )
    found = read_packets(path)
    assert (found.dropped_count, found.interfaces, found.damage) == (3, ("eth0",), None)
    assert found.packets.records["time_ns"].tolist() == [123]
