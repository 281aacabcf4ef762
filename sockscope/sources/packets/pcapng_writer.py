"""pcapng written in bulk: Enhanced Packet Blocks built as one matrix, no Python object a packet.

Source: draft-ietf-opsawg-pcapng sections 4.1 (section header), 4.2 (interface description), 4.3 (enhanced
packet), 4.6 (interface statistics). Little-endian, nanoseconds.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

_HEADER_WORDS = 7


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("<II", kind, total) + body + struct.pack("<I", total)


def section_header(application: str) -> bytes:
    """A Section Header Block of unknown section length."""
    options = _option(3, b"Linux") + _option(4, application.encode()) + _option(0, b"")
    return _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + options)


def interface_description(name: str, link: int, snap_bytes: int) -> bytes:
    """An Interface Description Block with if_name and if_tsresol (nanoseconds)."""
    options = _option(2, name.encode()) + _option(9, b"\x09") + _option(0, b"")
    return _block(1, struct.pack("<HHI", link, 0, snap_bytes) + options)


def interface_statistics(interface: int, time_ns: int, received: int, dropped: int) -> bytes:
    """An Interface Statistics Block with isb_ifrecv and isb_ifdrop."""
    options = _option(4, struct.pack("<Q", received)) + _option(5, struct.pack("<Q", dropped)) + _option(0, b"")
    return _block(5, struct.pack("<III", interface, time_ns >> 32, time_ns & 0xFFFFFFFF) + options)


def enhanced_packets(
    data: npt.NDArray[np.uint8],
    captured: npt.NDArray[np.int64],
    wire: npt.NDArray[np.int64],
    time_ns: npt.NDArray[np.int64],
    interface: int,
) -> bytes:
    """Enhanced Packet Blocks of n packets.

    ```
    +------+-------+-----------+---------+--------+----------+-------+-- ... --+-------+
    | 6    | total | interface | ts high | ts low | captured | wire  | data    | total |
    +------+-------+-----------+---------+--------+----------+-------+-- ... --+-------+
    ```

    Args:
        data: shape (n, width), each packet's bytes first, anything after; width a multiple of 4.
        captured: shape (n,), bytes of each row that count, at most width.
        wire: shape (n,), the packets' lengths on the wire.
        time_ns: shape (n,), CLOCK_REALTIME.
        interface: index of the interface description.
    """
    n, width = data.shape
    rows = np.arange(n)
    words = (captured + 3) // 4
    total = words * 4 + _HEADER_WORDS * 4 + 4
    matrix = np.empty((n, _HEADER_WORDS + width // 4 + 1), "<u4")
    matrix[:, 0] = 6
    matrix[:, 1] = total
    matrix[:, 2] = interface
    matrix[:, 3] = time_ns >> 32
    matrix[:, 4] = time_ns & 0xFFFFFFFF
    matrix[:, 5] = captured
    matrix[:, 6] = wire
    matrix[:, _HEADER_WORDS:-1] = data.view("<u4")
    odd = np.flatnonzero(captured % 4)
    if len(odd):
        # The padding of the last word is zeroed: what lay there before is another packet's.
        last = _HEADER_WORDS + words[odd] - 1
        matrix[odd, last] &= ((1 << (8 * (captured[odd] % 4))) - 1).astype(np.uint32)
    matrix[rows, _HEADER_WORDS + words] = total
    used = np.arange(matrix.shape[1]) < (_HEADER_WORDS + 1 + words)[:, None]
    return matrix[used].tobytes()
