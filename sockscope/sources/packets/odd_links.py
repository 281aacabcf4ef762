"""IP inside link layers that the columnar decoder does not know: found frame by frame, by scapy.

Off the hot path: only frames of those types come here, and scapy is imported with the first.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from sockscope.sources.packets.frames import Frames, Ints
from sockscope.sources.packets.link_layers import LinkType
from sockscope.sources.packets.offsets import Bytes
from sockscope.sources.packets.scapy_layers import Dissector

_MAX_HEADERS = 1 << 14
"""Distinct headers remembered; 802.11 numbers its frames, so that hardly two are alike."""


class OddLinks:
    """Finds where IP begins, and keeps count of what could not be found.

    What scapy says of one frame holds for all that have the same bytes up to and with the first of IP: frames of
    PPP or MPLS then cost a look-up each.
    """

    def __init__(self) -> None:
        self._dissector: Dissector | None = None
        self._headers: set[bytes] = set()
        """Link number and bytes up to and with the first of IP, of frames that held IP."""
        self._lengths: set[int] = set()
        self._found: Counter[int] = Counter()
        self._missed: Counter[int] = Counter()

    def locate(self, data: Bytes, frames: Frames) -> Ints:
        """Offset in `data` of each frame's IP header, shape (n,); -1 where scapy finds none."""
        if self._dissector is None:
            self._dissector = Dissector()
        out = np.full(len(frames), -1, np.int64)
        columns = zip(frames.start.tolist(), frames.captured.tolist(), frames.link.tolist(), strict=True)
        for row, (start, captured, link) in enumerate(columns):
            at = self._offset(self._dissector, data[start : start + captured].tobytes(), link)
            if at >= 0:
                out[row] = start + at
            (self._found if at >= 0 else self._missed)[link] += 1
        return out

    def notes(self) -> tuple[str, ...]:
        """One line a link type of which nothing could be read."""
        if self._dissector is None:
            return ()
        lines = []
        for link, count in sorted(self._missed.items()):
            if self._found[link] or link == LinkType.ETHERNET:
                continue
            why = "holds no IP that can be read" if self._dissector.knows(link) else "is not known"
            frames = "1 frame" if count == 1 else f"{count} frames"
            lines.append(f"{frames} left out: link type {link} {why}")
        return tuple(lines)

    def _offset(self, dissector: Dissector, frame: bytes, link: int) -> int:
        prefix = link.to_bytes(8, "little", signed=True)
        for length in self._lengths:
            if prefix + frame[: length + 1] in self._headers and len(frame) > length:
                return length
        at = dissector.ip_offset(frame, link)
        if at >= 0 and len(self._headers) < _MAX_HEADERS:
            self._headers.add(prefix + frame[: at + 1])
            self._lengths.add(at)
        return at
