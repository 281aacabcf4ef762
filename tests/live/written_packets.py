"""A packet table as a capture file, for who wants tshark's word on packets that were made, or made over."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.model.packets import PACKET_DTYPE
from sockscope.model.tcp import TcpFlag

_NANOSECONDS, _RAW_IP, _SNAP = 0xA1B23C4D, 101, 65535
_IPV4, _TCP = b"\0" * 10 + b"\xff\xff", 6


def write_packets(file: Path, records: npt.NDArray[np.void]) -> None:
    """All that TCP's analysis looks at, and no payload: the capture ends behind the headers. IPv4 alone.

    Args:
        records: shape (n,), PACKET_DTYPE.
    """
    assert records.dtype == PACKET_DTYPE
    parts = [struct.pack("<IHHiIII", _NANOSECONDS, 2, 4, 0, 0, _SNAP, _RAW_IP)]
    for one in records:
        packet, payload = _packet(one), int(one["payload_bytes"])
        seconds, rest = divmod(int(one["time_ns"]), 10**9)
        parts += struct.pack("<IIII", seconds, rest, len(packet), len(packet) + payload), packet
    file.write_bytes(b"".join(parts))


def _packet(one: np.void) -> bytes:
    source, destination = bytes(one["src"]), bytes(one["dst"])
    assert source.startswith(_IPV4)
    assert destination.startswith(_IPV4)
    flags, scale = int(one["flags"]), int(one["wscale"])
    # The option, and one that does nothing, for the header's length counts in fours.
    options = bytes((3, 3, scale, 1)) if flags & TcpFlag.SYN and scale >= 0 else b""
    words = (20 + len(options)) // 4
    numbers = (int(one[name]) for name in ("sport", "dport", "seq", "ack"))
    tcp = struct.pack("!HHIIBBHHH", *numbers, words << 4, flags, int(one["window"]), 0, 0) + options
    total = 20 + len(tcp) + int(one["payload_bytes"])
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 0, 0, 64, _TCP, 0, source[12:], destination[12:])
    return ip + tcp


def ipv4(text: str) -> npt.NDArray[np.uint8]:
    """As the table has it."""
    return np.frombuffer(_IPV4 + socket.inet_aton(text), np.uint8)
