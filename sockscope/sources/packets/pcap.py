"""pcap files: a header of 24 bytes, then records.

Source: draft-ietf-opsawg-pcap; the modified format: wiretap/libpcap.c of Wireshark.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.errors import DamagedInputError
from sockscope.sources.packets.formats import PcapRecords
from sockscope.sources.packets.frames import Frames
from sockscope.sources.packets.offsets import Bytes, Offsets, unaligned
from sockscope.sources.packets.pcapng import Interface
from sockscope.sources.packets.resume import Losses, Walker

PCAP_MAGICS = {
    b"\xd4\xc3\xb2\xa1": ("<", 1_000, 16),
    b"\xa1\xb2\xc3\xd4": (">", 1_000, 16),
    b"\x4d\x3c\xb2\xa1": ("<", 1, 16),
    b"\xa1\xb2\x3c\x4d": (">", 1, 16),
    b"\x34\xcd\xb2\xa1": ("<", 1_000, 24),
    b"\xa1\xb2\xcd\x34": (">", 1_000, 24),
}
"""Magic → byte order, nanoseconds of one fraction, bytes of a record's header."""

MAX_RECORD_BYTES = 1 << 26


class PcapScan:
    """One pcap file; `sockscope.sources.packets.files.Scan` says what the members are.

    Raises:
        DamagedInputError: its header is cut, or of a newer version.
    """

    def __init__(self, path: Path, data: Bytes) -> None:
        if len(data) < 24:
            raise DamagedInputError(
                f"{path}: the capture is cut off within its header ({len(data)} of 24 bytes)",
                help_text="copy the file again",
            )
        self._order, self._fraction_ns, header_bytes = PCAP_MAGICS[data[:4].tobytes()]
        major, _minor, _zone, _accuracy, _snap, network = struct.unpack_from(self._order + "HHiIII", data.data, 4)
        if major != 2:
            raise DamagedInputError(
                f"{path}: pcap version {major}, this sockscope reads version 2",
                help_text="convert it: editcap -F pcap IN OUT",
            )
        self._data = data
        self._form = PcapRecords(
            byte_order=self._order,
            frac_limit=1_000_000_000 // self._fraction_ns,
            max_bytes=MAX_RECORD_BYTES,
            header_bytes=header_bytes,
        )
        self._stop = len(data)
        self._losses = Losses()
        # The upper bits say whether frames end in an FCS.
        self.interfaces = [
            Interface(name="", link=network & 0xFFFF, fraction=1_000_000_000 // self._fraction_ns, offset_s=0)
        ]
        self.dropped_count = 0
        self.left_out_count = 0

    def frames(self) -> Iterator[Frames]:
        walker = Walker(self._data, self._form, self._losses)
        for starts in walker.windows(24):
            yield self._frames(starts)
        self._stop = walker.stop
        rest = len(self._data) - self._stop
        if rest:
            self._losses.add(self._stop, len(self._data), self._why(rest))

    def damage(self) -> str | None:
        return self._losses.words()

    def has_hole(self) -> bool:
        return self._losses.has_hole

    def _frames(self, starts: Offsets) -> Frames:
        fields = _headers(self._data, starts, self._order)
        return Frames(
            start=starts + self._form.header_bytes,
            captured=fields[:, 2],
            wire=np.maximum(fields[:, 3], fields[:, 2]),
            time_ns=fields[:, 0] * np.int64(1_000_000_000) + fields[:, 1] * np.int64(self._fraction_ns),
            # One value for all takes no memory.
            link=np.broadcast_to(np.int64(self.interfaces[0].link), len(starts)),
            interface=np.broadcast_to(np.int64(0), len(starts)),
        )

    def _why(self, rest: int) -> str:
        at, form, data = self._stop, self._form, self._data
        if at + form.header_bytes <= len(data):
            if form.void(data, np.array([at]))[0]:
                return f"damaged at byte {at}: only zeros follow ({rest} bytes)"
            if form.next_serial(data.data, at) < 0:
                return f"damaged at byte {at}: a packet of an impossible length; the rest ({rest} bytes) is lost"
        return f"truncated at byte {len(data)}: the last packet (from byte {at}) is cut"


def _headers(data: Bytes, starts: Offsets, order: str) -> npt.NDArray[np.uint32]:
    """Shape (n, 4): seconds, fraction, captured, original."""
    if not len(starts):
        return np.zeros((0, 4), np.uint32)
    headers: npt.NDArray[np.uint32] = unaligned(data, "V16")[starts].view(order + "u4").reshape(-1, 4)
    return headers
