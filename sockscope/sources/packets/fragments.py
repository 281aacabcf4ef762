"""IP fragments: the first of a datagram gets the length of the whole.

Only the first has the ports; what the others carry is counted with it, so that no connection seems to lack bytes.
Source: RFC 791 section 3.2 (same source, destination, protocol and identification), RFC 8200 section 4.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.sources.packets.frames import Ints, Mask, mixed
from sockscope.sources.packets.ip_layer import LATER, MORE, Ip
from sockscope.sources.packets.offsets import Bytes, unaligned

_UNIT_BYTES = 8
_LIFETIME_NS = 30_000_000_000
"""How long Linux waits for the others (net.ipv4.ipfrag_time)."""


class Fragments:
    """First and last fragments seen so far."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.int64]] = []
        """Shape (4, n) each: key, time, bytes up to its end, row (-1: a last fragment)."""

    def add(self, data: Bytes, time_ns: Ints, network: Ints, v4: Mask, ip: Ip, fragmented: Ints, kept: Ints) -> None:
        """Remember those of a batch that begin or end a datagram.

        Args:
            data: the captures' bytes. time_ns, network, v4, ip: columns of the batch, shape (n,).
            fragmented: which of them are fragments.
            kept: shape (n,), the row each will have in the packet table; -1: none.
        """
        word = ip.fragment[fragmented]
        first, last = (word & LATER) == 0, (word & MORE) == 0
        some = fragmented[(first & (kept[fragmented] >= 0)) | last]
        offset = (ip.fragment[some] & LATER) * _UNIT_BYTES
        is_last = offset > 0
        rows = np.where(is_last, -1, kept[some])
        key = _keys(data, network[some], v4[some], ip.protocol[some], ip.id[some])
        self._parts.append(np.stack([key, time_ns[some], offset + ip.length[some], rows]))

    def complete(self, records: npt.NDArray[np.void]) -> None:
        """Add to the payload of each first fragment, in place, what followed."""
        if not self._parts:
            return
        key, time_ns, end, row = np.concatenate(self._parts, axis=1)
        order = np.lexsort((time_ns, key))
        key, time_ns, end, row = key[order], time_ns[order], end[order], row[order]
        is_last, here = row < 0, np.arange(len(row))
        before = np.maximum.accumulate(np.where(is_last, here, -1))
        after = np.minimum.accumulate(np.where(is_last, here, len(row))[::-1])[::-1]
        firsts = np.flatnonzero(~is_last)
        far = np.int64(_LIFETIME_NS + 1)

        def distance(at: Ints) -> Ints:
            inside = (at >= 0) & (at < len(row))
            there = np.where(inside, at, 0)
            fits = inside & (key[there] == key[firsts]) & (end[there] > end[firsts])
            return np.where(fits, np.abs(time_ns[there] - time_ns[firsts]), far)

        # Some systems send the last first.
        back, forth = distance(before[firsts]), distance(after[firsts])
        found = np.where(forth <= back, after[firsts], before[firsts])
        near = np.minimum(back, forth) <= _LIFETIME_NS
        firsts, found = firsts[near], found[near]
        records["payload_bytes"][row[firsts]] += (end[found] - end[firsts]).astype(np.uint32)


def _keys(data: Bytes, network: Ints, v4: Mask, protocol: Ints, identification: Ints) -> Ints:
    """A number a datagram: of both addresses, protocol and identification."""
    be16, be32 = unaligned(data, ">u2"), unaligned(data, ">u4")
    key = np.where(v4, be16[network + 4], identification).astype(np.uint64) << np.uint64(8) | protocol.astype(np.uint64)
    for number in range(8):
        at = np.where(v4, network + 12 + 4 * (number % 2), network + 8 + 4 * number)
        key = mixed(key, be32[at])
    return key.view(np.int64)
