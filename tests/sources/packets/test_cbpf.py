"""The filter, run by the kernel: attached to a unix datagram socket, it decides over the frames sent there."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Collection

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR  # type: ignore[import-untyped,unused-ignore]
from scapy.layers.inet6 import (  # type: ignore[import-untyped,unused-ignore]
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether  # type: ignore[import-untyped,unused-ignore]
from scapy.packet import Packet, Raw  # type: ignore[import-untyped,unused-ignore]

from sockscope.sources.packets.cbpf import MAX_FILTER_PORTS, port_filter

SO_ATTACH_FILTER = 26
DATA = Raw(b"x" * 100)

PASS = [
    IP() / TCP(sport=8080, dport=1),
    IP() / TCP(sport=1, dport=8080) / DATA,
    IP() / UDP(sport=1, dport=9090),
    IP(options=[IPOption_RR(routers=["1.2.3.4"])]) / TCP(sport=1, dport=8080),
    IP(flags="MF") / UDP(sport=9090, dport=2) / DATA,
    IPv6() / TCP(sport=8080, dport=2),
    IPv6() / UDP(sport=1, dport=9090),
    IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(sport=1, dport=8080),
    IPv6() / IPv6ExtHdrFragment(offset=0, m=1) / UDP(sport=1, dport=9090, chksum=1),
]
DROP = [
    IP() / TCP(sport=8081, dport=1),
    IP() / TCP(sport=1, dport=2) / Raw(b"\x1f\x90" * 40),
    IP(frag=10, proto=17) / Raw(b"\x1f\x90" * 40),
    IP() / ICMP() / Raw(b"\x1f\x90" * 40),
    IP(options=[IPOption_RR(routers=["1.2.3.4"])]) / TCP(sport=1, dport=2),
    IPv6() / TCP(sport=1, dport=2),
    IPv6() / IPv6ExtHdrFragment(offset=10, m=1, nh=17) / Raw(b"\x1f\x90" * 40),
    IPv6(nh=58) / Raw(b"\x1f\x90" * 40),
]


def passes(program: bytes, frame: bytes) -> bytes | None:
    """What a socket with this filter receives of the frame."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        buffer = ctypes.create_string_buffer(program, len(program))
        receiver.setsockopt(
            socket.SOL_SOCKET,
            SO_ATTACH_FILTER,
            struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)),
        )
        receiver.setblocking(False)
        try:
            sender.send(frame)
            return receiver.recv(65536)
        except (BlockingIOError, PermissionError):
            return None


def made(ports: Collection[int], *, ethernet: bool = True, snap: int = 192) -> bytes:
    return port_filter(ports, snap_bytes=snap, ethernet=ethernet)


@pytest.mark.parametrize("header", [Ether(), Ether() / Dot1Q(), Ether() / Dot1AD() / Dot1Q(), None])
def test_filter_decides_as_the_packets_say(header: Packet | None) -> None:
    program = made((8080, 9090), ethernet=header is not None)
    for packet, expected in [(p, True) for p in PASS] + [(p, False) for p in DROP]:
        frame = bytes(header.copy() / packet) if header is not None else bytes(packet)
        got = passes(program, frame)
        assert (got is not None) == expected, packet.summary()
        if got is not None:
            assert got == frame[:192]


def test_no_ports_means_all_tcp_and_udp_and_nothing_else() -> None:
    program = made(())
    assert passes(program, bytes(Ether() / IP() / TCP(sport=5, dport=6)))
    assert passes(program, bytes(Ether() / IPv6() / UDP(sport=5, dport=6)))
    assert passes(program, bytes(Ether() / IP() / ICMP())) is None
    assert passes(program, bytes(Ether() / ARP())) is None


def test_many_ports_and_too_many() -> None:
    program = made(range(1, MAX_FILTER_PORTS + 1))
    assert len(program) // 8 <= 4096
    assert passes(program, bytes(Ether() / IP() / TCP(sport=60000, dport=MAX_FILTER_PORTS)))
    assert passes(program, bytes(Ether() / IP() / TCP(sport=60000, dport=MAX_FILTER_PORTS + 1))) is None
    assert passes(made(range(1, MAX_FILTER_PORTS + 2)), bytes(Ether() / IP() / TCP(sport=60000, dport=60001)))


def test_short_frames_do_not_pass() -> None:
    program = made((8080,))
    whole = bytes(Ether() / IP() / TCP(sport=8080, dport=1))
    for size in range(1, 36):
        assert passes(program, whole[:size]) is None
