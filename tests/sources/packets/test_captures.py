"""Several captures read together, and fragments."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sockscope.analysis.wire.flows import build_flows
from sockscope.model.packets import Packets
from sockscope.sources.packets import raw_space
from sockscope.sources.packets.files import Captures, read_captures, read_frames_of, read_packets
from tests.sources.packets import captures
from tests.sources.packets.captures import Frame
from tests.sources.packets.test_damage import T0, frames


def write(folder: Path, *files: bytes) -> list[Path]:
    paths = [folder / f"piece{number}" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return paths


def payloads(packets: Packets) -> list[bytes]:
    return [packets.payload_of(row) for row in range(len(packets))]


def seqs(found: Captures) -> list[int]:
    return [int(number) for number in found.packets.records["seq"]]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_rotated_capture_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    if mapped:
        monkeypatch.setattr(raw_space, "MAP_FROM_BYTES", 1)
    some = frames(90)
    pieces = [captures.pcap(some[low : low + 30]) for low in (60, 0, 30)]
    *paths, together = write(tmp_path, *pieces, captures.pcap(some))
    found = read_captures(paths)
    whole = read_packets(together)
    assert seqs(found) == list(range(90))
    assert payloads(found.packets) == payloads(whole.packets)
    assert found.interfaces == ("link type 1",)
    assert (found.damage, found.notes, found.frame_count) == ((), (), 90)
    for column in ("time_ns", "src", "sport", "interface", "payload_bytes"):
        assert (found.packets.records[column] == whole.packets.records[column]).all()


@pytest.mark.parametrize("mapped", [False, True])
def test_frames_of_rows_of_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    if mapped:
        monkeypatch.setattr(raw_space, "MAP_FROM_BYTES", 1)
    some = frames(40)
    paths = write(
        tmp_path, captures.pcap(some[1::2]), captures.section() + captures.interface(), captures.pcap(some[::2])
    )
    found = read_captures(paths)
    rows = np.random.default_rng(1).permutation(40)
    batches = list(read_frames_of(paths, found.packets.records["payload_offset"][rows], batch=7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 7, 5]
    assert [frame.data for batch in batches for frame in batch] == [some[row].data for row in rows]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """`tcpdump -w c.pcap` on either host."""
    paths = [tmp_path / "client" / "c.pcap", tmp_path / "server" / "c.pcap", tmp_path / "d.pcap"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(captures.pcap(frames(3))[:-1])
    found = read_captures(paths)
    names = [str(paths[0]), str(paths[1]), "d.pcap"]
    assert [file.name for file in found.files] == names
    assert [line.split(": ")[0] for line in found.damage] == names


def test_a_packet_in_two_captures_counts_once(tmp_path: Path) -> None:
    some = frames(40)
    late = [Frame(data=f.data, time_ns=f.time_ns + 20_000) for f in some[10:30]]
    found = read_captures(write(tmp_path, captures.pcap(some), captures.pcap(late)))
    assert len(found.packets) == 60
    flows, of = build_flows(found.packets, found.packets.records["time_ns"].astype(np.int64))
    assert [sum(flow.packet_count) for flow in flows] == [40]
    assert (of >= 0).sum() == 40
    alone = read_captures(write(tmp_path, captures.pcap(some)))
    [flow], _ = build_flows(alone.packets, alone.packets.records["time_ns"].astype(np.int64))
    assert flows[0].retransmission_count == flow.retransmission_count


def test_interfaces_of_different_names_stay_apart(tmp_path: Path) -> None:
    one = captures.section() + captures.interface(name="eth0") + captures.enhanced(frames(2)[0])
    other = captures.section() + captures.interface(name="eth1") + captures.enhanced(frames(2)[1])
    found = read_captures(write(tmp_path, one, other, one[:-1]))
    assert found.interfaces == ("eth0", "eth1") or set(found.interfaces) == {"eth0", "eth1"}
    assert len(found.damage) == 1
    assert found.damage[0].startswith("piece2: truncated at byte")


def fragments(payload: bytes, sizes: list[int], *, number: int, protocol: int = 6, ports: bool = True) -> list[bytes]:
    """A segment (or datagram) in IP fragments whose data have these sizes."""
    if protocol == 6:
        head = struct.pack(">HHIIBBHHH", 40_000, 80, number, 0, 0x50, 0x18, 512, 0, 0)
    else:
        head = struct.pack(">HHHH", 40_000, 80, 8 + len(payload), 0)
    whole, at, found = head + payload, 0, []
    for index, size in enumerate(sizes):
        more = index < len(sizes) - 1
        part = whole[at : at + size] if more else whole[at:]
        word = at // 8 | (0x2000 if more else 0)
        ip = struct.pack(
            ">BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(part),
            number & 0xFFFF,
            word,
            64,
            protocol,
            0,
            b"\x0a\0\0\1",
            b"\x0a\0\0\2",
        )
        found.append(bytes(12) + b"\x08\0" + ip + part)
        at += size
    return found


@pytest.mark.parametrize("backwards", [False, True])
def test_fragments_count_with_the_first(tmp_path: Path, backwards: bool) -> None:
    sent, seq = [], 1
    for number in range(5):
        pieces = fragments(b"x" * 3000, [1480, 1480, 0], number=seq)
        for index, piece in enumerate(reversed(pieces) if backwards else pieces):
            sent.append(Frame(data=piece, time_ns=T0 + number * 10**6 + index * 1000))
        seq += 3000
    found = read_packets(write(tmp_path, captures.pcap(sent))[0])
    first = found.packets.records[found.packets.records["sport"] != 0]
    assert first["payload_bytes"].tolist() == [3000] * 5
    flows, _ = build_flows(found.packets, found.packets.records["time_ns"].astype(np.int64))
    assert flows[0].payload_bytes == (15_000, 0)
    only = read_packets(write(tmp_path, captures.pcap(sent))[0], ports=frozenset({80}))
    assert only.packets.records["payload_bytes"].tolist() == [3000] * 5


def test_fragments_of_datagrams_and_such_as_are_lost(tmp_path: Path) -> None:
    whole = fragments(b"x" * 2000, [1480, 0], number=1, protocol=17)
    lost = fragments(b"x" * 2000, [1480, 0], number=2, protocol=17)[:1]
    found = read_packets(write(tmp_path, captures.pcap([Frame(data=f) for f in whole + lost]))[0])
    assert found.packets.records["payload_bytes"].tolist() == [2000, 528, 1472]


def test_tunnels_and_short_captures_are_said(tmp_path: Path) -> None:
    gre = bytearray(frames(1)[0].data)
    gre[23] = 47
    vxlan = fragments(b"x" * 100, [0], number=1, protocol=17)[0].replace(
        struct.pack(">HH", 40_000, 80), struct.pack(">HH", 40_000, 4789)
    )
    short = frames(3)[2].data[:48]
    sent = [Frame(data=bytes(gre)), Frame(data=vxlan), Frame(data=short, wire=900), Frame(data=frames(1)[0].data)]
    found = read_packets(write(tmp_path, captures.pcap(sent))[0])
    assert [note.split(":")[0] for note in found.notes] == [
        "1 packet of GRE tunnels",
        "1 packet of VXLAN tunnels",
        "1 packet left out",
    ]
