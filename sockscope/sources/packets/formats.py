"""What records of pcap and blocks of pcapng look like, for the walk over them."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from sockscope.sources.packets.offsets import Bytes, Offsets, Words, unaligned

Mask = npt.NDArray[np.bool_]

_NEAR_S = 7 * 86_400


class PcapRecords:
    """Records of a pcap file: a header of 16 bytes (24 in the modified format), then `incl_len` bytes.

    ```
     0       4       8       12      16
    +-------+-------+-------+-------+----------
    | secs  | frac  | incl  | orig  | data ...
    +-------+-------+-------+-------+----------
    ```
    Source: draft-ietf-opsawg-pcap section 5.
    """

    def __init__(
        self, *, byte_order: str, frac_limit: int, max_bytes: int, first_second: int = 0, header_bytes: int = 16
    ) -> None:
        self.header_bytes = header_bytes
        self._order = byte_order
        self._length = struct.Struct(byte_order + "I")
        self._frac_limit = frac_limit
        self._max_bytes = max_bytes
        self._near_second = first_second

    def refer_to(self, data: Bytes, at: int) -> None:
        self._near_second = int(self._length.unpack_from(data.data, at)[0])

    def next_serial(self, data: memoryview, at: int) -> int:
        length: int = self._length.unpack_from(data, at + 8)[0]
        return at + self.header_bytes + length if length <= self._max_bytes else -1

    def next_many(self, data: Bytes, at: Offsets) -> Offsets:
        length = self.words(data)[at + 8].astype(np.int64)
        return np.where(length <= self._max_bytes, at + self.header_bytes + length, -1)

    def words(self, data: Bytes) -> Words:
        return unaligned(data, self._order + "u4")

    def likely(self, words: Words) -> Mask:
        near: Mask = np.abs(words.astype(np.int64) - self._near_second) < _NEAR_S
        return near

    def plausible(self, data: Bytes, at: Offsets) -> Mask:
        return self.likely(self.words(data)[at]) & self.sane(data, at)

    def sane(self, data: Bytes, at: Offsets) -> Mask:
        words = self.words(data)
        frac, included, original = words[at + 4], words[at + 8], words[at + 12]
        good: Mask = (frac < self._frac_limit) & (included <= self._max_bytes) & (included > 0)
        return good & (included <= original)

    def final(self, data: Bytes, at: Offsets) -> Mask:
        return np.zeros(len(at), bool)

    def void(self, data: Bytes, at: Offsets) -> Mask:
        words = self.words(data)
        nothing: Mask = (words[at] | words[at + 4] | words[at + 8] | words[at + 12]) == 0
        return nothing


SECTION_HEADER = 0x0A0D0D0A
BYTE_ORDER_MAGIC = 0x1A2B3C4D
MAX_BLOCK_BYTES = 1 << 26
_LAST_KIND = 6
"""Interface description 1, packets 2, 3 and 6, names 4, statistics 5: of these files consist."""


class PcapngBlocks:
    """Blocks of one pcapng section; a section header ends the walk.

    ```
     0       4        8            total - 4
    +-------+--------+-- ... -----+--------+
    | type  | total  | body       | total  |
    +-------+--------+-- ... -----+--------+
    ```
    A block whose two lengths differ is no block. Source: draft-ietf-opsawg-pcapng section 3.1.
    """

    header_bytes = 12

    def __init__(self, *, byte_order: str) -> None:
        self._order = byte_order
        self._header = struct.Struct(byte_order + "II")
        self._trailer = struct.Struct(byte_order + "I")

    def refer_to(self, data: Bytes, at: int) -> None:
        """Blocks are known by their two lengths."""

    def next_serial(self, data: memoryview, at: int) -> int:
        kind: int
        total: int
        kind, total = self._header.unpack_from(data, at)
        if kind == SECTION_HEADER or total < 12 or total > MAX_BLOCK_BYTES:
            return -1
        after = at + ((total + 3) & ~3)
        return after if after > len(data) or self._trailer.unpack_from(data, after - 4)[0] == total else -1

    def next_many(self, data: Bytes, at: Offsets) -> Offsets:
        words = self.words(data)
        kind, total = words[at], words[at + 4].astype(np.int64)
        bad = (kind == SECTION_HEADER) | (total < 12) | (total > MAX_BLOCK_BYTES)
        after = at + ((total + 3) & ~3)
        trailer = words[np.where(bad | (after > len(data)), at + 4, after - 4)]
        return np.where(bad | (trailer != total), -1, after)

    def words(self, data: Bytes) -> Words:
        return unaligned(data, self._order + "u4")

    def likely(self, words: Words) -> Mask:
        found: Mask = (words == SECTION_HEADER) | ((words > 0) & (words <= _LAST_KIND))
        return found

    def plausible(self, data: Bytes, at: Offsets) -> Mask:
        words = self.words(data)
        kind, total = words[at], words[at + 4].astype(np.int64)
        fits = (kind > 0) & (kind <= _LAST_KIND) & (total >= 12) & (total % 4 == 0) & (at + total <= len(data))
        trailer = words[np.where(fits, at + total - 4, 0)]
        good: Mask = fits & (trailer == total)
        return good | self.final(data, at)

    def sane(self, data: Bytes, at: Offsets) -> Mask:
        # Checked in the walk itself.
        return np.ones(len(at), bool)

    def final(self, data: Bytes, at: Offsets) -> Mask:
        """A section header, of either byte order."""
        words = unaligned(data, "<u4")
        found: Mask = (words[at] == SECTION_HEADER) & (at + 12 <= len(data))
        magic = words[np.where(found, at + 8, 0)]
        swapped = int.from_bytes(BYTE_ORDER_MAGIC.to_bytes(4, "little"), "big")
        found &= (magic == BYTE_ORDER_MAGIC) | (magic == swapped)
        return found

    def void(self, data: Bytes, at: Offsets) -> Mask:
        return np.zeros(len(at), bool)
