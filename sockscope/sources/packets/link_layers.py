"""Where in a frame the network layer begins, and what it is.

Link layers: https://www.tcpdump.org/linktypes.html.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sockscope.sources.packets.frames import Frames, Ints
from sockscope.sources.packets.offsets import Bytes

IPV4, IPV6 = 0x0800, 0x86DD
_VLANS = (0x8100, 0x88A8, 0x9100)
_MAX_VLANS = 3
_OUTGOING = 4


class LinkType(IntEnum):
    """LINKTYPE_ numbers (and the DLT_ numbers that some writers leave for raw IP)."""

    NULL = 0
    ETHERNET = 1
    RAW_BSD = 12
    RAW_OPENBSD = 14
    RAW = 101
    LOOP = 108
    LINUX_SLL = 113
    IPV4 = 228
    IPV6 = 229
    LINUX_SLL2 = 276


COOKED = (LinkType.LINUX_SLL, LinkType.LINUX_SLL2)
_KNOWN_LINKS = tuple(int(link) for link in LinkType)
_CARRIERS = (0x6558, 0x8847, 0x8848, 0x8864, 0x88E7, 0x894F)
"""EtherTypes that may carry IP further in: bridged Ethernet, MPLS, PPPoE sessions, 802.1ah, NSH."""
_MAX_LENGTH = 1500
_SNAP = 0xAAAA
"""Below the EtherTypes: a length, and LLC after it; 802.2 SNAP alone carries IP."""


class Locator(Protocol):
    """Finds IP in frames whose link layer is none of `LinkType`, or carries one of `_CARRIERS`."""

    def locate(self, data: Bytes, frames: Frames) -> Ints:
        """Offset in `data` of each frame's IP header, shape (n,); -1 where there is none."""
        ...


def network_layer(
    data: Bytes, be16: npt.NDArray[np.uint16], frames: Frames, end: Ints
) -> tuple[Ints, Ints, npt.NDArray[np.uint8]]:
    """Where the network header begins, its EtherType (0: unknown), and whether this host sent it."""
    n = len(frames)
    network, ethertype, outgoing = frames.start.copy(), np.zeros(n, np.int64), np.zeros(n, np.uint8)
    alike = bool(n) and bool((frames.link == frames.link[0]).all())
    for link in (frames.link[:1] if alike else np.unique(frames.link)).tolist():
        mine: Ints | slice = slice(None) if alike else np.flatnonzero(frames.link == link)
        start, stop = frames.start[mine], end[mine]
        if link == LinkType.ETHERNET:
            network[mine], ethertype[mine] = _ethertype(be16, start + 12, stop)
        elif link == LinkType.LINUX_SLL:
            network[mine], ethertype[mine] = _ethertype(be16, start + 14, stop)
            fits = start + 16 <= stop
            outgoing[mine] = fits & (be16[np.where(fits, start, 0)] == _OUTGOING)
        elif link == LinkType.LINUX_SLL2:
            fits = start + 20 <= stop
            kind = np.where(fits, be16[np.where(fits, start, 0)], 0).astype(np.int64)
            network[mine], ethertype[mine] = _skip_vlans(be16, start + 20, kind, stop)
            outgoing[mine] = fits & (data[np.where(fits, start + 10, 0)] == _OUTGOING)
        elif link in (LinkType.NULL, LinkType.LOOP):
            # The address family's number differs per system and byte order; the version nibble does not.
            network[mine], ethertype[mine] = start + 4, _by_version(data, start + 4, stop)
        elif link in (LinkType.RAW, LinkType.RAW_BSD, LinkType.RAW_OPENBSD, LinkType.IPV4, LinkType.IPV6):
            ethertype[mine] = _by_version(data, start, stop)
    return network, ethertype, outgoing


def odd_network_layer(
    data: Bytes, be16: npt.NDArray[np.uint16], frames: Frames, network: Ints, ethertype: Ints, odd: Locator
) -> None:
    """Fill in, in place, what only `odd` can say."""
    strange = np.flatnonzero((ethertype != IPV4) & (ethertype != IPV6))
    if not len(strange):
        return
    kind, at, link = ethertype[strange], network[strange], frames.link[strange]
    end = frames.start[strange] + frames.captured[strange]
    fits = (at + 2 <= end) & (kind <= _MAX_LENGTH) & (kind > 0)
    snap = fits & (be16[np.where(fits, at, 0)] == _SNAP) if len(be16) else fits
    strange = strange[~np.isin(link, _KNOWN_LINKS) | np.isin(kind, _CARRIERS) | snap]
    if not len(strange):
        return
    found = odd.locate(data, frames.pick(strange))
    rows, found = strange[found >= 0], found[found >= 0]
    network[rows] = found
    ethertype[rows] = np.where(data[found] >> 4 == 4, IPV4, IPV6)


def _by_version(data: Bytes, at: Ints, end: Ints) -> Ints:
    fits = at < end
    version = data[np.where(fits, at, 0)] >> 4
    kind: Ints = np.where(version == 4, IPV4, np.where(version == 6, IPV6, 0))
    return np.where(fits, kind, 0)


def _ethertype(be16: npt.NDArray[np.uint16], at: Ints, end: Ints) -> tuple[Ints, Ints]:
    fits = at + 2 <= end
    kind = np.where(fits, be16[np.where(fits, at, 0)], 0).astype(np.int64)
    return _skip_vlans(be16, at + 2, kind, end)


def _skip_vlans(be16: npt.NDArray[np.uint16], network: Ints, kind: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Past 802.1Q and 802.1ad tags: two bytes of tag, two of the next EtherType."""
    for _ in range(_MAX_VLANS):
        tagged = np.flatnonzero(np.isin(kind, _VLANS))
        if not len(tagged):
            break
        at = network[tagged]
        fits = at + 4 <= end[tagged]
        kind[tagged] = np.where(fits, be16[np.where(fits, at + 2, 0)], 0)
        network[tagged] = at + 4
    return network, kind
