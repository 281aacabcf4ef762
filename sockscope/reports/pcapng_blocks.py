"""pcapng blocks with comments, as bytes. Little-endian, nanoseconds.

Not scapy's PcapNgWriter: it writes microseconds, no section comment and no direction, and takes three times as long.

Source: draft-ietf-opsawg-pcapng sections 3.5 (options), 4.1 (section header), 4.2 (interface description), 4.3
(enhanced packet).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

MOST_COMMENT_BYTES = 16_000
"""An option holds 65535; nobody reads so much."""

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_COMMENT, _HARDWARE_OS, _APPLICATION = 1, 3, 4
_IF_NAME, _IF_TSRESOL = 2, 9
_END_OF_OPTIONS = bytes(4)
_EPB_FLAGS = (b"", *(struct.pack("<HHI", 2, 4, direction) for direction in (1, 2)))
_EPB_HEADER = struct.Struct("<7I")
_OPTION_HEADER = struct.Struct("<HH")
_TOTAL = struct.Struct("<I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")

INBOUND, OUTBOUND = 1, 2
"""epb_flags, bits 0 and 1; 0: not known."""


def _option(code: int, value: bytes) -> bytes:
    return _OPTION_HEADER.pack(code, len(value)) + value + _PADDING[len(value) & 3]


def comment(text: str) -> bytes:
    """An opt_comment, cut at a whole character where it is too long. The text is free of lone surrogates."""
    value = text.encode()
    if len(value) > MOST_COMMENT_BYTES:
        value = value[: MOST_COMMENT_BYTES - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return _option(_COMMENT, value)


def _block(kind: int, body: bytes) -> bytes:
    total = _TOTAL.pack(len(body) + 12)
    return _TOTAL.pack(kind) + total + body + total


def section_header(application: str, comments: Iterable[str]) -> bytes:
    """A Section Header Block of unknown section length, with its comments."""
    options = b"".join(map(comment, comments)) + _option(_APPLICATION, application.encode()) + _END_OF_OPTIONS
    return _block(_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + options)


def interface_description(name: str, link: int) -> bytes:
    """An Interface Description Block: nanoseconds, no snap length; without if_name where the name is empty."""
    options = (_option(_IF_NAME, name.encode()) if name else b"") + _option(_IF_TSRESOL, b"\x09") + _END_OF_OPTIONS
    return _block(_INTERFACE, struct.pack("<HHI", link & 0xFFFF, 0, 0) + options)


def enhanced_packet(
    data: bytes, *, wire_bytes: int, time_ns: int, interface: int, direction: int = 0, comments: bytes = b""
) -> bytes:
    """One Enhanced Packet Block.

    Args:
        data: as captured. wire_bytes: its length on the wire.
        time_ns: CLOCK_REALTIME; what does not fit 64 bits wraps.
        interface: index of the interface description in this section.
        direction: INBOUND, OUTBOUND or 0.
        comments: opt_comments end to end.
    """
    options = comments + _EPB_FLAGS[direction]
    if options:
        options += _END_OF_OPTIONS
    size = len(data)
    padding = _PADDING[size & 3]
    total = 32 + size + len(padding) + len(options)
    header = _EPB_HEADER.pack(
        _PACKET, total, interface, (time_ns >> 32) & 0xFFFFFFFF, time_ns & 0xFFFFFFFF, size, wire_bytes & 0xFFFFFFFF
    )
    return b"".join((header, data, padding, options, _TOTAL.pack(total)))
