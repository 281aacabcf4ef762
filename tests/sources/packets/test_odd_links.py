"""Link layers that only scapy knows: the same rows as without them, and a note for what nobody knows."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.mpls import MPLS  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.dot11 import (  # type: ignore[import-untyped,unused-ignore]
    Dot11,
    Dot11Beacon,
    Dot11QoS,
    RadioTap,
)
from scapy.layers.inet import IP  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.l2 import (  # type: ignore[import-untyped,unused-ignore]
    LLC,
    SNAP,
    CookedLinux,
    Dot1Q,
    Dot3,
    Ether,
)
from scapy.layers.ppp import PPP, PPPoE  # type: ignore[import-untyped,unused-ignore]
from scapy.packet import Packet, Raw  # type: ignore[import-untyped,unused-ignore]

from tests.sources.packets import captures
from tests.sources.packets.captures import Frame
from tests.sources.packets.test_files import INNER, expect_same, read


def ppp(inner: Packet) -> Packet:
    return PPP(proto=0x0021 if IP in inner else 0x0057) / inner


def snap(inner: Packet) -> Packet:
    return LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800 if IP in inner else 0x86DD) / inner


LINKS = {
    "ppp": (9, ppp),
    "radiotap": (127, lambda inner: RadioTap() / Dot11(type=2, subtype=0, FCfield=1) / snap(inner)),
    "802.11 with quality of service": (105, lambda inner: Dot11(type=2, subtype=8) / Dot11QoS() / snap(inner)),
    "pppoe": (1, lambda inner: Ether(type=0x8864) / PPPoE(sessionid=7) / ppp(inner)),
    "pppoe in a vlan": (1, lambda inner: Ether() / Dot1Q(vlan=3, type=0x8864) / PPPoE(sessionid=7) / ppp(inner)),
    "mpls": (1, lambda inner: Ether(type=0x8847) / MPLS(label=16, s=0) / MPLS(label=17, s=1) / inner),
    "snap": (1, lambda inner: Dot3(src="00:00:00:00:00:01", dst="00:00:00:00:00:02") / snap(inner)),
    "pppoe, cooked": (113, lambda inner: CookedLinux(proto=0x8864) / PPPoE(sessionid=7) / ppp(inner)),
}


@pytest.mark.parametrize("link", LINKS)
def test_what_is_inside_decodes_as_if_it_were_outside(tmp_path: Path, link: str) -> None:
    number, wrap = LINKS[link]
    # Twice: headers already seen are remembered.
    inners = INNER * 2
    frames = [Frame(data=captures.build(wrap(inner))) for inner in inners]
    found = read(tmp_path, captures.pcap(frames, link=number))
    assert len(found.packets) == len(inners)
    assert (found.damage, found.notes) == (None, ())
    for row, inner in enumerate(inners):
        expect_same(found, row, inner)


def test_only_the_wanted_ports(tmp_path: Path) -> None:
    frames = [Frame(data=captures.build(ppp(inner))) for inner in INNER]
    found = read(tmp_path, captures.pcap(frames, link=9), ports=frozenset({80}))
    assert found.packets.records["sport"].tolist() == [40000, 80, 40000]


def test_common_frames_stand_beside_odd_ones(tmp_path: Path) -> None:
    """Three interfaces in one file: Ethernet, PPP, and one that carries no IP."""
    parts = [captures.section(), captures.interface(link=1), captures.interface(link=9), captures.interface(link=220)]
    for inner in INNER:
        kind = 0x0800 if IP in inner else 0x86DD
        parts.append(captures.enhanced(Frame(data=captures.build(Ether(type=kind) / inner))))
        parts.append(captures.enhanced(Frame(data=captures.build(ppp(inner)), interface=1)))
        parts.append(captures.enhanced(Frame(data=b"usb" * 30, interface=2)))
    found = read(tmp_path, b"".join(parts))
    assert found.packets.records["interface"].tolist() == [0, 1] * len(INNER)
    for row in range(2 * len(INNER)):
        expect_same(found, row, INNER[row // 2])
    assert found.notes == (f"{len(INNER)} frames left out: link type 220 is not known",)


def test_a_known_link_type_without_ip_says_so(tmp_path: Path) -> None:
    beacon = captures.build(RadioTap() / Dot11(type=0, subtype=8) / Dot11Beacon())
    found = read(tmp_path, captures.pcap([Frame(data=beacon)], link=127))
    assert len(found.packets) == 0
    assert found.notes == ("1 frame left out: link type 127 holds no IP that can be read",)


def test_a_header_seen_before_is_not_taken_for_another(tmp_path: Path) -> None:
    """The same MPLS label before IPv4, before IPv6, and before neither."""
    label = Ether(src="00:00:00:00:00:01", dst="00:00:00:00:00:02", type=0x8847) / MPLS(label=16, s=1)
    inners = [INNER[0], INNER[4], INNER[0]]
    frames = [Frame(data=captures.build(label / inner)) for inner in inners]
    frames.insert(1, Frame(data=captures.build(label / Raw(b"\0" * 60))))
    found = read(tmp_path, captures.pcap(frames))
    assert len(found.packets) == 3
    for row, inner in enumerate(inners):
        expect_same(found, row, inner)


@settings(max_examples=60, deadline=None)
@given(
    link=st.sampled_from(sorted(LINKS)),
    inner=st.sampled_from(range(len(INNER))),
    cut=st.integers(0, 200),
    noise=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=6),
    number=st.sampled_from([1, 9, 31, 50, 51, 105, 119, 127, 192, 204]),
)
def test_no_frame_raises(  # type: ignore[no-untyped-def]
    tmp_path_factory, link: str, inner: int, cut: int, noise: list[tuple[int, int]], number: int
) -> None:
    data = bytearray(captures.build(LINKS[link][1](INNER[inner])))
    for at, value in noise:
        if at < len(data):
            data[at] = value
    frames = [Frame(data=bytes(data[:cut])), Frame(data=bytes(data))]
    found = read(tmp_path_factory.mktemp("odd"), captures.pcap(frames, link=number))
    rows = found.packets.records
    assert len(rows) <= 2
    assert (rows["payload_offset"] + rows["captured_payload_bytes"] <= len(found.packets.raw)).all()


def test_an_ordinary_capture_does_not_load_scapy(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    frames = [captures.build(Ether() / inner) for inner in INNER]
    frames.append(captures.build(Ether(type=0x0806) / Raw(b"arp" * 10)))
    path.write_bytes(captures.pcap([Frame(data=data) for data in frames]))
    code = (
        "import sys; from pathlib import Path; from sockscope.sources.packets.files import read_packets\n"
        f"print(len(read_packets(Path({str(path)!r})).packets), 'scapy' in sys.modules)"
    )
    said = run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert said.stdout.split() == [str(len(INNER)), "False"]
