"""TCP straight after an IP header without options, unfragmented: nearly all packets of nearly all captures.

Their headers are of one shape, so they are taken out of the file whole, one copy a packet, and read as the fields of a
record. What this says of a packet is what `decode` says of it field by field.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.tcp import TcpFlag
from sockscope.sources.packets.frames import Ints, Mask
from sockscope.sources.packets.ip_layer import LATER, MORE
from sockscope.sources.packets.offsets import Bytes, unaligned
from sockscope.sources.packets.tcp_options import window_scales

_TCP_HEADER = [
    ("sport", ">u2"),
    ("dport", ">u2"),
    ("seq", ">u4"),
    ("ack", ">u4"),
    ("offset", "u1"),
    ("flags", "u1"),
    ("window", ">u2"),
]
_V4_HEADERS = np.dtype(
    [
        ("version", "u1"),  # and the header's length
        ("tos", "u1"),
        ("total", ">u2"),
        ("id", ">u2"),
        ("fragment", ">u2"),
        ("ttl", "u1"),
        ("protocol", "u1"),
        ("checksum", ">u2"),
        ("src", "<u4"),
        ("dst", "<u4"),
        *_TCP_HEADER,
    ]
)
_V6_HEADERS = np.dtype(
    [
        ("version", "u1"),
        ("flow", "u1", (3,)),
        ("total", ">u2"),
        ("protocol", "u1"),
        ("hops", "u1"),
        ("src", "u1", (16,)),
        ("dst", "u1", (16,)),
        *_TCP_HEADER,
    ]
)
_V4_BYTES, _V6_BYTES = 20, 40
_TCP = 6
_MAPPED = 0xFFFF0000
"""::ffff: as the third little-endian word of an address."""


def plain_rows(out: npt.NDArray[np.void], data: Bytes, network: Ints, on_wire: Ints, end: Ints, v4: bool) -> Mask:
    """Fill in what the headers of plain packets say; the other rows are left with any contents.

    Args:
        out: shape (n,), PACKET_DTYPE. Of plain packets all columns are written that their headers tell of.
        data: what the offsets point into.
        network: shape (n,), where IP begins; all of IPv4 (20 bytes of it captured), or all of IPv6 (40 bytes).
        on_wire: shape (n,), bytes from there on.
        end: shape (n,), where the captured bytes end.
        v4: which of the two.

    Returns:
        Shape (n,), which are plain.
    """
    headers = _V4_HEADERS if v4 else _V6_HEADERS
    ip_bytes = _V4_BYTES if v4 else _V6_BYTES
    if len(data) < headers.itemsize:
        return np.zeros(len(network), np.bool_)
    plain: Mask = network + headers.itemsize <= end
    at = network if plain.all() else np.where(plain, network, 0)
    head = unaligned(data, f"V{headers.itemsize}")[at].view(headers)
    plain &= head["protocol"] == _TCP
    if v4:
        plain &= (head["version"] == 0x45) & (head["fragment"] & (LATER | MORE) == 0)
    for name in ("sport", "dport", "seq", "ack", "flags", "window", "protocol"):
        out[name] = head[name]
    if v4:
        for name in ("src", "dst"):
            words = out[name].view("<u4")
            words[:, :2] = 0
            words[:, 2] = _MAPPED
            words[:, 3] = head[name]
    else:
        out["src"], out["dst"] = head["src"], head["dst"]
    total = head["total"].astype(np.int64)
    # 0: segmentation offload left it unset, or a jumbogram (RFC 2675): the frame's length must do.
    total = np.where(total == 0, on_wire, total + (0 if v4 else ip_bytes))
    header = np.maximum((head["offset"] >> 4).astype(np.int64) * 4, 20)
    transport = network + ip_bytes
    payload = np.minimum(transport + header, end)
    length = np.maximum(total - ip_bytes - header, 0)
    out["payload_bytes"] = length
    out["payload_offset"] = payload
    out["captured_payload_bytes"] = np.minimum(end - payload, length)
    out["wscale"] = -1
    opening = np.flatnonzero(plain & (head["flags"] & np.uint8(TcpFlag.SYN) != 0))
    out["wscale"][opening] = window_scales(data, transport[opening], header[opening], end[opening])
    return plain
