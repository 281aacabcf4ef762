"""Counts the packets that hold no connection of ours to be seen, by kind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from sockscope.sources.packets.frames import Ints, Mask

_TUNNELS = {4: "IP in IP", 41: "IPv6 in IPv4", 47: "GRE", 50: "IPsec (ESP)"}
_UDP_TUNNELS = {4789: "VXLAN", 8472: "VXLAN", 6081: "GENEVE", 2152: "GTP"}
_TCP, _UDP = 6, 17


class LeftOut:
    """What was seen of them so far."""

    def __init__(self) -> None:
        self._tunnels: Counter[str] = Counter()
        self._short = 0

    def count(self, be16: npt.NDArray[np.uint16], protocol: Ints, transport: Ints, ported: Mask, end: Ints) -> None:
        """Columns of a batch, shape (n,); end: where each frame's captured bytes end."""
        for number, times in enumerate(np.bincount(protocol, minlength=256).tolist()):
            if times and number in _TUNNELS:
                self._tunnels[_TUNNELS[number]] += times
        udp = np.flatnonzero(ported & (protocol == _UDP))
        if len(udp):
            to = be16[transport[udp] + 2]
            for port, name in _UDP_TUNNELS.items():
                self._tunnels[name] += int((to == port).sum())
        # Up to its window a TCP header must be there.
        self._short += int((ported & (protocol == _TCP) & (transport + 16 > end)).sum())

    def notes(self) -> list[str]:
        """One line a kind."""
        lines = [
            f"{_packets(count)} of {name} tunnels: the connections inside are not seen; capture inside the tunnel"
            for name, count in sorted(self._tunnels.items())
            if count
        ]
        if self._short:
            lines.append(f"{_packets(self._short)} left out: cut before the end of the TCP header (snap length)")
        return lines


def _packets(count: int) -> str:
    return "1 packet" if count == 1 else f"{count} packets"
