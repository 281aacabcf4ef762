"""Capture files made for the tests, byte by byte, and scapy's reading of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from scapy.packet import Packet  # type: ignore[import-untyped,unused-ignore]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    data: bytes
    time_ns: int = 1_700_000_000_123_456_789
    wire: int | None = None
    interface: int = 0


def pcap(frames: Sequence[Frame], *, link: int = 1, order: str = "<", nanoseconds: bool = False) -> bytes:
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    out = bytearray(struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link))
    for frame in frames:
        fraction = frame.time_ns % 10**9 // (1 if nanoseconds else 1000)
        wire = len(frame.data) if frame.wire is None else frame.wire
        out += struct.pack(order + "IIII", frame.time_ns // 10**9, fraction, len(frame.data), wire) + frame.data
    return bytes(out)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def block(order: str, kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack(order + "II", kind, total) + body + struct.pack(order + "I", total)


def section(order: str = "<", major: int = 1) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, major, 0, -1))


def interface(
    order: str = "<", *, link: int = 1, name: str = "", resolution: int | None = None, snap: int = 0
) -> bytes:
    options = b""
    if name:
        options += option(order, 2, name.encode())
    if resolution is not None:
        options += option(order, 9, bytes([resolution]))
    if options:
        options += option(order, 0, b"")
    return block(order, 1, struct.pack(order + "HHI", link, 0, snap) + options)


def enhanced(frame: Frame, order: str = "<", *, ticks: int | None = None, options: bytes = b"") -> bytes:
    stamp = frame.time_ns // 1000 if ticks is None else ticks
    wire = len(frame.data) if frame.wire is None else frame.wire
    head = struct.pack(order + "IIIII", frame.interface, stamp >> 32, stamp & 0xFFFFFFFF, len(frame.data), wire)
    return block(order, 6, head + frame.data + b"\0" * (-len(frame.data) % 4) + options)


def simple(data: bytes, order: str = "<", *, wire: int | None = None) -> bytes:
    return block(
        order, 3, struct.pack(order + "I", len(data) if wire is None else wire) + data + b"\0" * (-len(data) % 4)
    )


def build(packet: Packet) -> bytes:
    """Serialise a scapy packet, lengths and checksums filled in."""
    return bytes(packet)
