"""Captures cut, overwritten and padded: what is whole is read, what is lost is said."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.errors import DamagedInputError
from sockscope.sources.packets import offsets, resume
from sockscope.sources.packets.files import PacketFile, read_packets
from tests.sources.packets import captures
from tests.sources.packets.captures import Frame

T0 = 1_700_000_000_000_000_000


def segment(number: int) -> bytes:
    """An Ethernet frame of TCP whose sequence number is its own number."""
    payload = bytes([number % 251]) * (40 + number * 37 % 1300)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    tcp = struct.pack(">HHIIBBHHH", 40_000, 80, number, 0, 0x50, 0x18, 512, 0, 0)
    return bytes(12) + b"\x08\0" + ip + tcp + payload


def frames(count: int) -> list[Frame]:
    return [Frame(data=segment(number), time_ns=T0 + number * 1_000_000) for number in range(count)]


def pcap(count: int) -> tuple[bytes, list[int]]:
    """A file, and where its records begin."""
    data = captures.pcap(frames(count))
    begins = [24]
    for frame in frames(count):
        begins.append(begins[-1] + 16 + len(frame.data))
    return data, begins


def pcapng(count: int) -> tuple[bytes, list[int]]:
    data = captures.section() + captures.interface()
    begins = [len(data)]
    for frame in frames(count):
        data += captures.enhanced(frame)
        begins.append(len(data))
    return data, begins


def read(tmp_path: Path, data: bytes) -> PacketFile:
    path = tmp_path / "capture"
    path.write_bytes(data)
    return read_packets(path)


def numbers(found: PacketFile) -> list[int]:
    return [int(number) for number in found.packets.records["seq"]]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small files have many."""
    monkeypatch.setattr(resume, "WINDOW_BYTES", 20_000)
    monkeypatch.setattr(resume, "_AFTER_LOSS_BYTES", 4_000)
    monkeypatch.setattr(offsets, "SERIAL_RECORDS", 8)
    monkeypatch.setattr(offsets, "MIN_STRETCH_BYTES", 2_048)


@pytest.mark.parametrize("make", [pcap, pcapng])
@pytest.mark.parametrize("length", [0xFFFFFFF0, 4_000, 100, 64_000])
@pytest.mark.parametrize("at", [0, 57, 199])
def test_a_wrong_length_costs_the_packet_and_no_more(tmp_path: Path, make: object, length: int, at: int) -> None:
    data, begins = pcap(200) if make is pcap else pcapng(200)
    broken = bytearray(data)
    struct.pack_into("<I", broken, begins[at] + (8 if make is pcap else 4), length)
    found = read(tmp_path, bytes(broken))
    lost = set(range(200)) - set(numbers(found))
    assert at in lost or make is pcap
    assert lost <= {at, at + 1}
    assert set(numbers(found)) <= set(range(200))
    assert found.damage is not None
    if at < 199:
        assert f"reading goes on at byte {begins[at + 1]}" in found.damage


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_a_stretch_overwritten(tmp_path: Path, make: object) -> None:
    data, begins = pcap(200) if make is pcap else pcapng(200)
    for filling in (b"\0", b"\xff", b"GET / HTTP/1.1\r\n"):
        low, high = begins[50] + 3, begins[80] + 5
        broken = data[:low] + (filling * 100_000)[: high - low] + data[high:]
        found = read(tmp_path, broken)
        got = numbers(found)
        assert got[:49] == list(range(49))
        assert got[-119:] == list(range(81, 200))
        assert len(got) <= 172
        assert found.damage is not None
        assert "are lost, reading goes on at byte" in found.damage


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_several_places_are_counted(tmp_path: Path, make: object) -> None:
    data, begins = pcap(200) if make is pcap else pcapng(200)
    broken = bytearray(data)
    for at in (20, 90, 150):
        broken[begins[at] : begins[at] + 12] = b"\xff" * 12
    found = read(tmp_path, bytes(broken))
    assert sorted(set(range(200)) - set(numbers(found))) == [20, 90, 150]
    assert found.damage is not None
    assert "2 more places" in found.damage


def test_zeros_at_the_end_are_no_packets(tmp_path: Path) -> None:
    data, _ = pcap(50)
    for zeros in (16, 4096, 100_000, 100_001):
        found = read(tmp_path, data + bytes(zeros))
        assert numbers(found) == list(range(50))
        assert found.damage is not None
        assert f"damaged at byte {len(data)}" in found.damage


def test_garbage_at_the_end(tmp_path: Path) -> None:
    for data, _ in (pcap(50), pcapng(50)):
        found = read(tmp_path, data + np.random.default_rng(1).bytes(5_000))
        assert numbers(found) == list(range(50))
        assert found.damage is not None
        assert f"at byte {len(data)}" in found.damage


def test_a_section_header_damaged_in_the_middle(tmp_path: Path) -> None:
    data, _ = pcapng(20)
    second = bytearray(data)
    second[8:12] = b"\0\0\0\0"
    found = read(tmp_path, data + bytes(second) + data)
    assert found.damage is not None
    assert numbers(found)[-20:] == list(range(20))
    assert set(numbers(found)) == set(range(20))


def test_a_clock_that_jumps_is_no_damage(tmp_path: Path) -> None:
    some = [Frame(data=f.data, time_ns=f.time_ns if 60 <= n < 120 else n * 1000) for n, f in enumerate(frames(200))]
    found = read(tmp_path, captures.pcap(some))
    assert (numbers(found), found.damage) == (list(range(200)), None)


def test_times_that_cannot_be(tmp_path: Path) -> None:
    some = [Frame(data=f.data, time_ns=(2**32 - 1) * 10**9 + 999_999_000) for f in frames(5)]
    found = read(tmp_path, captures.pcap(some))
    assert (len(found.packets), found.damage) == (5, None)
    data = captures.section() + captures.interface()
    data += b"".join(captures.enhanced(f, ticks=2**64 - 1 - n) for n, f in enumerate(frames(5)))
    assert len(read(tmp_path, data).packets) == 5


def test_the_modified_format(tmp_path: Path) -> None:
    for order in "<>":
        data = struct.pack(order + "IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 65535, 1)
        for frame in frames(30):
            size = len(frame.data)
            data += struct.pack(order + "IIIIIHBB", frame.time_ns // 10**9, 7, size, size, 3, 8, 0, 0) + frame.data
        found = read(tmp_path, data)
        assert (numbers(found), found.damage) == (list(range(30)), None)


def test_headers_that_claim_too_much_cost_no_memory(tmp_path: Path) -> None:
    claims = captures.pcap([])[:24] + struct.pack("<IIII", 1_700_000_000, 0, 1 << 26, 1 << 26)
    assert len(read(tmp_path, claims).packets) == 0
    many = captures.section() + captures.interface() * 70_000 + captures.enhanced(frames(1)[0])
    found = read(tmp_path, many)
    assert len(found.interfaces) < 70_000
    assert len(found.packets) == 1
    unknown = captures.section() + captures.interface() + captures.enhanced(Frame(data=segment(1), interface=2**32 - 1))
    found = read(tmp_path, unknown)
    assert len(found.packets) == 0
    assert found.notes == ("1 packet left out: of an interface that the file does not describe, or too short",)


def test_millions_of_empty_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = captures.section() + captures.interface() + captures.block("<", 0xBAD, b"") * 1_000_000
    data += captures.block("<", 5, struct.pack("<III", 0, 0, 0)) * 100_000
    data += captures.enhanced(frames(1)[0])
    found = read(tmp_path, data + captures.section() * 20_000)
    assert len(found.packets) == 1
    assert found.damage is not None
    assert "more than 16384 sections" in found.damage


@settings(max_examples=150, deadline=None)
@given(
    ng=st.booleans(),
    cut=st.integers(0, 45_000),
    places=st.lists(st.tuples(st.integers(0, 45_000), st.binary(max_size=40), st.integers(0, 300)), max_size=6),
)
def test_whatever_happens_to_a_file(
    tmp_path_factory: pytest.TempPathFactory, ng: bool, cut: int, places: list[tuple[int, bytes, int]]
) -> None:
    """Bytes replaced, put in and taken out: whole packets come out, each at most once and in order."""
    data, _ = pcapng(60) if ng else pcap(60)
    for at, new, gone in places:
        data = data[:at] + new + data[at + gone :]
    if cut:
        data = data[:cut]
    try:
        found = read(tmp_path_factory.mktemp("damaged"), data)
    except DamagedInputError:
        return
    assert len(found.packets) <= found.frame_count
    true = [number for number in numbers(found) if number < 60]
    if not places:
        assert true == list(range(len(true)))
        assert (found.damage is None) == (not cut or cut >= len(pcapng(60)[0] if ng else pcap(60)[0]) or not rest(data))


def rest(data: bytes) -> bool:
    """Whether the file ends within a record."""
    ng = data[:4] == b"\x0a\x0d\x0d\x0a"
    begins = pcapng(60)[1] if ng else pcap(60)[1]
    whole = [*begins, *([28] if ng else [])]
    return len(data) not in whole


def test_one_packet_before_the_damage_reserves_no_room_for_a_packet_a_byte(tmp_path: Path) -> None:
    tcp = struct.pack(">HHIIBBHHH", 8080, 40000, 7, 9, 5 << 4, 16, 512, 0, 0)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 77, 0x4000, 64, 6, 0) + b"\x7f\0\0\1" * 2
    records = captures.pcap([Frame(data=b"\2" * 12 + b"\x08\0" + ip + tcp + b"x" * 1400)] * 1500)
    record_bytes = (len(records) - 24) // 1500
    # The second record claims an impossible length; the third is found again.
    data = records[: 24 + record_bytes] + b"\xff" * record_bytes + records[24 + 2 * record_bytes :]
    path = tmp_path / "c.pcap"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        packets = read_packets(path).packets
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(packets) == 1499
    assert peak < 10 * len(data)
