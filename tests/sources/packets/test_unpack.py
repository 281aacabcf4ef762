"""Compressed captures: whole, of several members, cut, damaged, and larger than there is room for."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.errors import DamagedInputError, SockscopeError, UsageError
from sockscope.sources.packets.files import read_captures, read_frames_of, read_packets
from sockscope.sources.packets.opened import open_all
from sockscope.sources.packets.unpack import packing, unpack
from tests.sources.packets.test_damage import numbers, pcap


def by_arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, codec) as stream:
            stream.write(data)
        return bytes(out.getvalue().to_pybytes())

    return compress


KINDS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": by_arrow("zstd"),
    "lz4": by_arrow("lz4"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_captures_of_any_name(tmp_path: Path, kind: str) -> None:
    data, _ = pcap(100)
    path = tmp_path / "capture"
    for packed in (KINDS[kind](data), KINDS[kind](data[:10_000]) + KINDS[kind](data[10_000:])):
        assert packing(packed) == kind
        path.write_bytes(packed)
        found = read_packets(path)
        assert (numbers(found), found.damage) == (list(range(100)), None)
        [frame] = next(read_frames_of([path], found.packets.records["payload_offset"][5:6]))
        assert data.count(frame.data) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_one_gives_what_can_be_unpacked(tmp_path: Path, kind: str) -> None:
    data, _ = pcap(4000)
    packed = KINDS[kind](data)
    path = tmp_path / "capture"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    if kind == "bzip2":
        # One block holds it all, and without its end is nothing.
        with pytest.raises(DamagedInputError, match=f"{kind}: .*0 bytes could be unpacked"):
            read_packets(path)
        return
    found = read_packets(path)
    assert found.damage is not None
    assert f"{kind}: " in found.damage
    got = numbers(found)
    assert got == list(range(len(got)))
    assert len(got) > 100


def test_padding_and_garbage_after_a_member(tmp_path: Path) -> None:
    data, _ = pcap(50)
    path = tmp_path / "capture"
    path.write_bytes(gzip.compress(data) + bytes(70_000))
    assert read_packets(path).damage is None
    path.write_bytes(gzip.compress(data) + b"garbage")
    found = read_packets(path)
    assert len(found.packets) == 50
    assert found.damage is not None
    assert "something else follows" in found.damage


def test_no_more_is_unpacked_than_there_is_room_for(tmp_path: Path) -> None:
    bomb = gzip.compress(pcap(1)[0] + bytes(50_000_000))
    with pytest.raises(UsageError, match="unpacks to more than 1000000 bytes") as caught:
        unpack(
            tmp_path / "bomb",
            io.BytesIO(bomb),
            "gzip",
            expect=lambda _: None,
            advance=lambda _: None,
            most_bytes=1_000_000,
        )
    assert "TMPDIR" in (caught.value.help_text or "")


def test_what_is_no_capture_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(DamagedInputError, match="not a packet capture"):
        open_all([path])


def test_progress_counts_bytes_on_disk(tmp_path: Path) -> None:
    data, _ = pcap(4000)
    paths = [tmp_path / "a", tmp_path / "b.gz"]
    paths[0].write_bytes(data)
    paths[1].write_bytes(gzip.compress(data))
    told: list[tuple[int, int]] = []
    read_captures(paths, progress=lambda done, whole: told.append((done, whole)))
    whole = sum(path.stat().st_size for path in paths)
    assert {each[1] for each in told} == {whole}
    assert told[-1][0] == whole
    assert all(0 <= done <= whole for done, _ in told)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    cut=st.integers(0, 4000),
    noise=st.lists(st.tuples(st.integers(4, 4000), st.integers(0, 255)), max_size=4),
)
def test_cut_and_noise(
    tmp_path_factory: pytest.TempPathFactory, kind: str, cut: int, noise: list[tuple[int, int]]
) -> None:
    packed = bytearray(KINDS[kind](pcap(60)[0]))
    packed = packed[: len(packed) - cut] if cut < len(packed) - 4 else packed
    for at, value in noise:
        packed[at % (len(packed) - 4) + 4 if at >= len(packed) else at] = value
    path = tmp_path_factory.mktemp("packed") / "capture"
    path.write_bytes(bytes(packed))
    try:
        read_packets(path)
    except SockscopeError:
        return
