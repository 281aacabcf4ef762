"""Frames told layer by layer, and the frames of packet rows found again in their file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dot11 import RadioTap  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.inet import IP, TCP, UDP  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.inet6 import IPv6  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.l2 import Dot1Q, Ether, Loopback  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.ppp import PPP, PPPoE  # type: ignore[import-untyped,unused-ignore]
from scapy.packet import Packet, Raw  # type: ignore[import-untyped,unused-ignore]

from sockscope.sources.packets.dissect import Dissection, dissect
from sockscope.sources.packets.files import read_frames, read_packets
from tests.sources.packets import captures
from tests.sources.packets.captures import Frame

MAC = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
OPTIONS = [("MSS", 65495), ("SAckOK", b""), ("Timestamp", (11, 22)), ("NOP", None), ("WScale", 7)]
SYN = IP(src="10.0.0.1", dst="10.0.0.2", id=5, flags="DF") / TCP(
    sport=40000, dport=80, seq=9, flags="S", window=64240, options=OPTIONS
)
DATA = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=40000, dport=80, flags="PA") / Raw(b"GET / HTTP/1.1\r\n\r\n")


def test_one_line_a_layer_with_its_telling_fields() -> None:
    ethernet, ip, tcp = dissect(captures.build(MAC / SYN), 1)
    assert ethernet == "Ethernet  src 02:00:00:00:00:01  dst 02:00:00:00:00:02  type IPv4"
    assert ip == "IP  src 10.0.0.1  dst 10.0.0.2  ttl 64  id 5  flags DF  len 60  proto 6"
    assert tcp == (
        "TCP  sport 40000  dport 80  flags S  seq 9  ack 0  window 64240"
        "  options MSS 65495, SAckOK, Timestamp 11 22, NOP, WScale 7 (x128)"
    )


def test_payload_and_its_length() -> None:
    assert dissect(captures.build(MAC / DATA), 1)[3] == r'Payload  18 bytes  "GET / HTTP/1.1' + '\r\n\r\n"'


@pytest.mark.parametrize(
    ("link", "packet", "names"),
    [
        (1, MAC / Dot1Q(vlan=7) / SYN, ["Ethernet", "802.1Q", "IP", "TCP"]),
        (1, MAC / PPPoE(sessionid=3) / PPP(proto=0x21) / SYN, ["Ethernet", "PPP", "PPP", "IP", "TCP"]),
        (101, SYN, ["IP", "TCP"]),
        (14, SYN, ["IP", "TCP"]),
        (0, Loopback() / SYN, ["Loopback", "IP", "TCP"]),
        (101, IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=4000, dport=4001) / Raw(b"x"), ["IPv6", "UDP", "Payload"]),
    ],
)
def test_link_layers(link: int, packet: Packet, names: list[str]) -> None:
    lines = dissect(captures.build(packet), link)
    assert [line.split("  ")[0].split(" ")[0] for line in lines[-2:]] == names[-2:]
    assert len(lines) == len(names)
    assert not any("checksum" in line for line in lines)


@pytest.mark.parametrize("inner", [DATA, IPv6(src="fd00::1", dst="fd00::2") / TCP() / Raw(b"odd")])
def test_checksums_are_judged_but_not_on_loopback(inner: Packet) -> None:
    frame = bytearray(captures.build(MAC / inner))
    assert not any("checksum" in line for line in dissect(bytes(frame), 1))
    frame[-1] ^= 1
    assert dissect(bytes(frame), 1)[2].endswith(" is wrong")
    local = bytes(12) + frame[12:]
    assert not any("checksum" in line for line in dissect(local, 1))
    # Cut short, it cannot be told.
    assert not any("checksum" in line for line in dissect(bytes(frame[:-1]), 1))


def test_a_wrong_ip_header_checksum() -> None:
    frame = bytearray(captures.build(MAC / DATA))
    frame[14 + 8] -= 1
    assert "is wrong" in dissect(bytes(frame), 1)[1]


def test_a_checksum_left_to_the_network_card_is_no_fault() -> None:
    """What the kernel leaves in the field for the card: the sum over the pseudo header."""
    packet = DATA.copy()
    length = len(captures.build(packet)) - 20
    words = [0x0A00, 0x0001, 0x0A00, 0x0002, 6, length]
    packet[TCP].chksum = sum(words)
    assert dissect(captures.build(MAC / packet), 1)[2].endswith("checksum left to the network card")


def test_a_masked_payload_is_not_called_damaged() -> None:
    frame = captures.build(MAC / IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / Raw(b"Cookie: abc\r\n"))
    masked = frame.replace(b"abc", b"***")
    assert not any("checksum" in line for line in dissect(masked, 1))


def test_what_cannot_be_dissected_says_so() -> None:
    assert dissect(b"usb" * 5, 220) == ["15 bytes; link type 220 is not known"]
    assert dissect(b"", 1) == ["0 bytes; link type 1 cannot be read"]


@settings(max_examples=80, deadline=None)
@given(
    packet=st.sampled_from([MAC / SYN, MAC / DATA, RadioTap(), MAC / IPv6() / UDP() / Raw(b"abc")]),
    cut=st.integers(0, 120),
    noise=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=8),
    link=st.sampled_from([0, 1, 9, 12, 50, 101, 105, 108, 113, 127, 192, 228, 229, 276]),
)
def test_no_frame_raises(packet: Packet, cut: int, noise: list[tuple[int, int]], link: int) -> None:
    data = bytearray(captures.build(packet))
    for at, value in noise:
        if at < len(data):
            data[at] = value
    dissection = Dissection()
    for frame in (bytes(data), bytes(data[:cut])):
        assert dissection.dissect(frame, link)


def some_frames() -> list[bytes]:
    """Payloads or none, TCP or UDP, ARP between: rows are not frames."""
    out = []
    for number in range(30):
        ip = MAC / IP(src="10.0.0.1", dst="10.0.0.2", id=number)
        out.append(captures.build(ip / TCP(sport=number + 1, dport=80) / Raw(b"x" * (number % 3))))
        out.append(captures.build(MAC / Raw(b"\0" * 40)))
        out.append(captures.build(ip / UDP(sport=number + 1, dport=53) / Raw(b"y" * number)))
    return out


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_the_frames_of_rows_are_found_again(tmp_path: Path, kind: str) -> None:
    frames = [Frame(data=data, wire=len(data) + 7) for data in some_frames()]
    path = tmp_path / "capture"
    if kind == "pcap":
        path.write_bytes(captures.pcap(frames))
    else:
        sections = captures.section() + captures.interface(link=1)
        half = len(frames) // 2
        parts = [b"".join(map(captures.enhanced, part)) for part in (frames[:half], frames[half:])]
        path.write_bytes(b"".join(sections + part for part in parts))
    found = read_packets(path)
    assert len(found.packets) == 60
    rows = [59, 0, 31, 7]
    again = read_frames(path, found.packets.records["payload_offset"][rows].tolist())
    of_ip = [frame.data for frame in frames if frame.data[12:14] == b"\x08\x00"]
    assert [frame.data for frame in again] == [of_ip[row] for row in rows]
    assert {frame.link for frame in again} == {1}
    assert [frame.wire_bytes for frame in again] == [len(of_ip[row]) + 7 for row in rows]


def test_frames_of_an_empty_capture(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(captures.pcap([]))
    assert read_frames(path, []) == []
