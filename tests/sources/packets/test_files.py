"""Capture files against scapy's decoding of the same bytes, and against damage."""

from __future__ import annotations

import gzip
import ipaddress
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_RR, fragment  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.inet6 import (  # type: ignore[import-untyped,unused-ignore]
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import (  # type: ignore[import-untyped,unused-ignore]
    ARP,
    CookedLinux,
    CookedLinuxV2,
    Dot1AD,
    Dot1Q,
    Ether,
    Loopback,
)
from scapy.packet import Packet, Raw  # type: ignore[import-untyped,unused-ignore]

from sockscope.errors import DamagedInputError, UsageError
from sockscope.sources.packets import raw_space
from sockscope.sources.packets.files import PacketFile, read_packets
from tests.sources.packets import captures
from tests.sources.packets.captures import Frame

T0 = 1_700_000_000_123_456_789

INNER: list[Packet] = [
    IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80, seq=1, flags="S", options=[("WScale", 7)]),
    IP(src="10.0.0.2", dst="10.0.0.1", options=[IPOption_RR(routers=["1.2.3.4"])])
    / TCP(sport=80, dport=40000, seq=2**32 - 2, ack=2, flags="SA", window=0, options=[("NOP", None), ("WScale", 0)]),
    IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80, seq=2, ack=3, flags="PA") / Raw(b"GET / HTTP/1.1"),
    IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=53, dport=5353) / Raw(b"query"),
    IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=1, dport=65535, flags="FA", window=65535) / Raw(b"v6"),
    IPv6(src="fd00::1", dst="fd00::2")
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrRouting(addresses=["fd00::9"])
    / IPv6ExtHdrDestOpt()
    / TCP(sport=2, dport=3, flags="R"),
    IPv6(src="::1", dst="::1")
    / IPv6ExtHdrFragment(offset=0, m=1, id=7)
    / UDP(sport=4, dport=5, chksum=1)
    / Raw(b"frag"),
]

LINKS: dict[str, tuple[int, Packet | None]] = {
    "ethernet": (1, Ether(src="00:00:00:00:00:01", dst="00:00:00:00:00:02")),
    "vlan": (1, Ether() / Dot1Q(vlan=7)),
    "qinq": (1, Ether() / Dot1AD(vlan=7) / Dot1Q(vlan=8)),
    "sll": (113, CookedLinux(pkttype=0)),
    "sll2": (276, CookedLinuxV2(pkttype=4)),
    "sll vlan": (113, CookedLinux() / Dot1Q(vlan=9)),
    "raw": (101, None),
    "raw bsd": (12, None),
    "raw openbsd": (14, None),
    "null": (0, Loopback()),
    "loop": (108, Loopback()),
}


def framed(header: Packet | None, inner: Packet) -> bytes:
    if header is None:
        return captures.build(inner)
    return captures.build(header.copy() / inner)


def read(tmp_path: Path, data: bytes, ports: frozenset[int] | None = None) -> PacketFile:
    path = tmp_path / "capture"
    path.write_bytes(data)
    return read_packets(path, ports=ports)


def expect_same(found: PacketFile, row: int, inner: Packet) -> None:
    """Every column of one row, against scapy."""
    record = found.packets.records[row]
    ip = IP(bytes(inner)) if IP in inner else IPv6(bytes(inner))
    for column, address in (("src", ip.src), ("dst", ip.dst)):
        raw = record[column].tobytes()
        expected = ipaddress.ip_address(address).packed
        assert raw == (expected if len(expected) == 16 else b"\0" * 10 + b"\xff\xff" + expected)
    layer = ip[TCP] if TCP in ip else ip[UDP]
    assert (record["sport"], record["dport"]) == (layer.sport, layer.dport)
    assert record["protocol"] == (6 if TCP in ip else 17)
    payload = bytes(layer.payload)
    assert record["payload_bytes"] == len(payload)
    assert found.packets.payload_of(row) == payload
    if TCP in ip:
        assert record["seq"] == layer.seq
        assert record["ack"] == layer.ack
        assert record["flags"] == int(layer.flags) & 0xFF
        assert record["window"] == layer.window
        scale = dict(o for o in layer.options if o[0] == "WScale").get("WScale", -1) if layer.flags.S else -1
        assert record["wscale"] == scale


@pytest.mark.parametrize("link", LINKS)
def test_every_link_type_decodes_as_scapy_does(tmp_path: Path, link: str) -> None:
    number, header = LINKS[link]
    frames = [Frame(data=framed(header, inner), time_ns=T0 + i) for i, inner in enumerate(INNER)]
    for order in "<>":
        for nanoseconds in (False, True):
            found = read(tmp_path, captures.pcap(frames, link=number, order=order, nanoseconds=nanoseconds))
            assert found.kind == "pcap"
            assert found.damage is None
            assert len(found.packets) == len(INNER)
            for row, inner in enumerate(INNER):
                expect_same(found, row, inner)
                expected = T0 + row if nanoseconds else (T0 + row) // 1000 * 1000
                assert found.packets.records["time_ns"][row] == expected
            assert (found.packets.records["outgoing"] == (1 if link == "sll2" else 0)).all()


@pytest.mark.parametrize(("number", "version"), [(228, 4), (229, 6)])
def test_link_types_of_one_ip_version(tmp_path: Path, number: int, version: int) -> None:
    inner = [p for p in INNER if (IP in p) == (version == 4)]
    found = read(tmp_path, captures.pcap([Frame(data=captures.build(p)) for p in inner], link=number))
    for row, packet in enumerate(inner):
        expect_same(found, row, packet)


def test_pcapng_of_two_sections_with_orders_interfaces_and_resolutions(tmp_path: Path) -> None:
    ether = Ether(src="00:00:00:00:00:01", dst="00:00:00:00:00:02")
    eth = [framed(ether, p) for p in INNER]
    raw = [captures.build(p) for p in INNER]
    data = captures.section("<") + captures.interface("<", link=1, name="eth0", resolution=9)
    data += captures.interface("<", link=101, name="tun0")
    data += captures.block("<", 0xBAD, b"unknown!")
    data += captures.enhanced(Frame(data=eth[0]), "<", ticks=T0)
    data += captures.enhanced(
        Frame(data=raw[1], interface=1, time_ns=T0), "<", options=captures.option("<", 1, b"said")
    )
    data += captures.simple(eth[2], "<")
    data += captures.section(">") + captures.interface(">", link=1, name="eth1", resolution=0x80 | 20)
    data += captures.enhanced(Frame(data=eth[3]), ">", ticks=(1_700_000_000 << 20) + (1 << 19))
    found = read(tmp_path, data)
    assert found.kind == "pcapng"
    assert found.damage is None
    assert found.interfaces == ("eth0", "tun0", "eth1")
    assert found.packets.records["interface"].tolist() == [0, 1, 0, 2]
    assert found.packets.records["time_ns"].tolist() == [
        T0,
        T0 // 1000 * 1000,
        T0 // 1000 * 1000,
        1_700_000_000_500_000_000,
    ]
    for row in range(4):
        expect_same(found, row, INNER[row])


def test_only_first_fragments_have_ports(tmp_path: Path) -> None:
    whole = IP(src="10.0.0.1", dst="10.0.0.2", id=9) / UDP(sport=1000, dport=2000) / Raw(b"x" * 3000)
    pieces = [Frame(data=captures.build(Ether() / p)) for p in fragment(whole, fragsize=1400)]
    found = read(tmp_path, captures.pcap(pieces))
    assert found.packets.records["sport"].tolist() == [1000] + [0] * (len(pieces) - 1)
    assert found.packets.records["protocol"].tolist() == [17] * len(pieces)
    assert len(read(tmp_path, captures.pcap(pieces), frozenset({2000})).packets) == 1


def test_ports_filter_keeps_either_direction_only(tmp_path: Path) -> None:
    ether = Ether(src="00:00:00:00:00:01", dst="00:00:00:00:00:02")
    found = read(tmp_path, captures.pcap([Frame(data=framed(ether, p)) for p in INNER]), frozenset({80}))
    assert len(found.packets) == 3
    for row in range(3):
        expect_same(found, row, INNER[row])
    assert found.frame_count == len(INNER)


def test_frames_that_are_not_ip_are_left_out(tmp_path: Path) -> None:
    frames = [Frame(data=captures.build(Ether() / ARP())), Frame(data=b"\x01\x02"), Frame(data=b"")]
    frames.append(Frame(data=framed(Ether(), INNER[2])))
    found = read(tmp_path, captures.pcap(frames))
    assert (len(found.packets), found.frame_count) == (1, 4)


def test_snapped_packets_keep_their_lengths(tmp_path: Path) -> None:
    whole = framed(Ether(), INNER[2])
    found = read(tmp_path, captures.pcap([Frame(data=whole[:60], wire=len(whole))]))
    record = found.packets.records[0]
    assert record["payload_bytes"] == 14
    assert record["captured_payload_bytes"] == 6
    assert found.packets.payload_of(0) == b"GET / "
    assert record["wire_bytes"] == len(whole)


def test_length_left_unset_by_segmentation_offload(tmp_path: Path) -> None:
    data = bytearray(framed(Ether(), INNER[2]))
    data[16:18] = b"\0\0"
    found = read(tmp_path, captures.pcap([Frame(data=bytes(data))]))
    assert found.packets.records["payload_bytes"][0] == 14


@pytest.mark.parametrize("cooked", [CookedLinux, CookedLinuxV2])
def test_loopback_copies_in_a_capture_of_any_are_dropped(tmp_path: Path, cooked: type[Packet]) -> None:
    number = 113 if cooked is CookedLinux else 276
    frames = []
    for i, inner in enumerate(INNER[:3]):
        frames.append(Frame(data=framed(cooked(pkttype=4), inner), time_ns=T0 + i * 10_000))
        frames.append(Frame(data=framed(cooked(pkttype=0), inner), time_ns=T0 + i * 10_000 + 3_000))
    # Sent again a while later: no copy.
    frames.append(Frame(data=framed(cooked(pkttype=4), INNER[2]), time_ns=T0 + 10**9))
    found = read(tmp_path, captures.pcap(frames, link=number, nanoseconds=True))
    assert found.packets.records["outgoing"].tolist() == [0, 0, 0, 1]


def test_cut_file_gives_its_whole_packets_and_says_what_is_lost(tmp_path: Path) -> None:
    frames = [Frame(data=framed(Ether(), p)) for p in INNER]
    data = captures.pcap(frames)
    found = read(tmp_path, data[:-3])
    assert len(found.packets) == len(INNER) - 1
    last = len(data) - 16 - len(frames[-1].data)
    assert found.damage == f"truncated at byte {len(data) - 3}: the last packet (from byte {last}) is cut"
    ng = captures.section() + captures.interface() + b"".join(captures.enhanced(f) for f in frames)
    found = read(tmp_path, ng[:-3])
    assert len(found.packets) == len(INNER) - 1
    assert found.damage is not None
    assert found.damage.startswith(f"truncated at byte {len(ng) - 3}: the last block")


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    frames = [Frame(data=framed(Ether(), INNER[0]))] * 2
    data = captures.pcap(frames) + struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 0) + b"junk"
    found = read(tmp_path, data)
    assert len(found.packets) == 2
    assert found.damage is not None
    assert found.damage.startswith("damaged at byte ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello world, this is no capture", "not a packet capture"),
        (b"\x1f\x8b\x08\x00", "gzip: cut at byte 4; 0 bytes could be unpacked"),
        (gzip.compress(b"hello world, this is no capture"), "not a packet capture"),
        (struct.pack("<IHHiII", 0xA1B2C3D4, 2, 4, 0, 0, 65535), "cut off within its header"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 3, 0, 0, 0, 65535, 1), "pcap version 3"),
        (captures.section("<", major=2), "pcapng version 2"),
        (captures.section("<")[:20], "section header"),
    ],
)
def test_files_that_cannot_be_read_at_all(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DamagedInputError, match=message) as caught:
        read(tmp_path, data)
    assert caught.value.help_text


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_packets(tmp_path / "none")
    with pytest.raises(UsageError, match="directory"):
        read_packets(tmp_path)


def test_large_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = captures.pcap([Frame(data=framed(Ether(), p)) for p in INNER])
    plain = read(tmp_path, data)
    monkeypatch.setattr(raw_space, "MAP_FROM_BYTES", 1)
    mapped = read(tmp_path, data)
    assert (mapped.packets.records == plain.packets.records).all()
    assert mapped.packets.payload_of(2) == plain.packets.payload_of(2)
    with pytest.raises(DamagedInputError, match="is empty"):
        read(tmp_path, b"")


def test_header_only_is_a_capture_of_nothing(tmp_path: Path) -> None:
    found = read(tmp_path, captures.pcap([]))
    assert (len(found.packets), found.damage) == (0, None)
    found = read(tmp_path, captures.section() + captures.interface())
    assert (len(found.packets), found.damage) == (0, None)


SAMPLES = [
    *(captures.pcap([Frame(data=framed(h, p)) for p in INNER], link=n) for n, h in LINKS.values()),
    captures.section()
    + captures.interface(name="eth0", resolution=9)
    + captures.interface(link=113, resolution=0x83)
    + b"".join(captures.enhanced(Frame(data=framed(Ether(), p))) for p in INNER)
    + captures.simple(framed(Ether(), INNER[0]))
    + captures.block("<", 2, struct.pack("<HHIIII", 0, 0, 0, 0, 54, 54) + framed(Ether(), INNER[0])[:56])
    + captures.block("<", 5, struct.pack("<III", 0, 0, 0) + captures.option("<", 5, b"\1" + b"\0" * 7)),
    captures.section(">") + captures.interface(">") + captures.enhanced(Frame(data=framed(Ether(), INNER[0])), ">"),
]


@settings(max_examples=200, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    cut=st.integers(0, 2000),
    noise=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=12),
    ports=st.sampled_from([None, frozenset({80, 5})]),
)
def test_cut_and_noise_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory,
    sample: bytes,
    cut: int,
    noise: list[tuple[int, int]],
    ports: frozenset[int] | None,
) -> None:
    data = bytearray(sample[: max(cut, 4)] if cut < len(sample) else sample)
    for at, value in noise:
        data[at % len(data)] = value
    try:
        found = read(tmp_path_factory.mktemp("noise"), bytes(data), ports)
    except DamagedInputError:
        return
    records = found.packets.records
    ends = records["payload_offset"].astype(int) + records["captured_payload_bytes"].astype(int)
    assert (ends <= len(found.packets.raw)).all()
    assert (records["captured_payload_bytes"] <= records["payload_bytes"]).all()
