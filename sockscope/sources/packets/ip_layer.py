"""The IP layer of a batch of frames, as columns."""

from __future__ import annotations

from dataclasses import dataclass

from sockscope.sources.packets.frames import Ints, Mask

LATER, MORE = 0x1FFF, 0x2000
"""Of a fragment: its offset in units of 8 bytes; whether others follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ip:
    """Columns of the same length.

    Attributes:
        transport: first byte after the IP headers. length: bytes from there on, by the IP header.
        protocol: what IP says follows. fragment: `LATER` bits: offset in units of 8 bytes; `MORE`: more follow.
        id: of an IPv6 fragment.
    """

    transport: Ints
    length: Ints
    protocol: Ints
    fragment: Ints
    id: Ints

    def has_ports(self, end: Ints) -> Mask:
        """TCP or UDP, the first or only fragment, the ports captured."""
        ported: Mask = (self.protocol == 6) | (self.protocol == 17)
        ported &= ((self.fragment & LATER) == 0) & (self.transport + 4 <= end)
        return ported
