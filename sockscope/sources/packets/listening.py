"""Capture without a ring, by scapy's socket: for kernels, sandboxes and limits that allow none.

One system call and some Python a packet, so it loses packets where a ring would not; the kernel counts them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator

import numpy as np

from sockscope.sources.packets.link_layers import LinkType
from sockscope.sources.packets.ring import (
    ARPHRD_ETHER,
    ARPHRD_LOOPBACK,
    WINDOW_FRAMES,
    Taken,
    attach_filter,
    attach_ports,
    hardware_type,
    packet_statistics,
)
from sockscope.sources.packets.scapy_layers import ListenSocket

_ARPHRD_NONE = 0xFFFE
"""tun and WireGuard: frames begin with IP."""
_SO_RCVBUFFORCE = 33
BUFFER_BYTES = 64 << 20
"""As much as a ring has; the kernel counts some 800 bytes for a small packet."""
MOST_FRAME_BYTES = (1 << 16) + 64
"""A whole frame is received, for its length on the wire; the snap length cuts it here."""
ROUND_FRAMES = 8 * WINDOW_FRAMES
"""Taken in one go, at most: requests are to be answered meanwhile."""

_REJECT_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)


class Listening:
    """One interface's packets; what `Ring` offers, without its ring."""

    def __init__(self, interface: str, ports: Collection[int], *, snap_bytes: int) -> None:
        """Open the socket and start receiving.

        Raises:
            OSError: PermissionError without CAP_NET_RAW; EAFNOSUPPORT where frames begin with a header that the
                port filter does not know.
        """
        self.interface = interface
        self.snap_bytes = snap_bytes
        self.received_count = 0
        self.dropped_count = 0
        hardware = hardware_type(interface)
        self._loopback = hardware == ARPHRD_LOOPBACK
        self._ethernet = hardware in (ARPHRD_ETHER, ARPHRD_LOOPBACK)
        if not self._ethernet and hardware != _ARPHRD_NONE:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        self._listen = ListenSocket(interface)
        # A second object over the same socket, for its options.
        self._options = socket.socket(fileno=os.dup(self._listen.fileno()))
        try:
            with contextlib.suppress(PermissionError):
                self._options.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
            # What came before the filter goes; then the counts begin.
            attach_filter(self._options, _REJECT_ALL)
            while self._listen.receive(MOST_FRAME_BYTES) is not None:
                pass
            packet_statistics(self._options)
            self.set_ports(ports)
        except BaseException:
            self.close()
            raise

    @property
    def link(self) -> LinkType:
        """How frames begin."""
        return LinkType.ETHERNET if self._ethernet else LinkType.RAW

    def set_ports(self, ports: Collection[int]) -> None:
        """Replace the filter."""
        attach_ports(
            self._options,
            ports,
            snap_bytes=MOST_FRAME_BYTES,
            ethernet=self._ethernet,
            drop_outgoing=self._loopback,
        )

    def take(self) -> Iterator[Taken]:
        """What has come, in windows, up to `ROUND_FRAMES`."""
        for _ in range(ROUND_FRAMES // WINDOW_FRAMES):
            frames: list[tuple[bytes, int]] = []
            while len(frames) < WINDOW_FRAMES and (got := self._listen.receive(MOST_FRAME_BYTES)) is not None:
                frames.append(got)
            if frames:
                yield self._taken(frames)
            if len(frames) < WINDOW_FRAMES:
                return

    def _taken(self, frames: list[tuple[bytes, int]]) -> Taken:
        width = (self.snap_bytes + 3) // 4 * 4
        wire = np.array([len(frame) for frame, _ in frames], np.int64)
        flat = b"".join(frame[: self.snap_bytes].ljust(width, b"\0") for frame, _ in frames)
        return Taken(
            data=np.frombuffer(bytearray(flat), np.uint8).reshape(len(frames), width),
            captured=np.minimum(wire, self.snap_bytes),
            wire=wire,
            time_ns=np.array([time_ns for _, time_ns in frames], np.int64),
        )

    def update_counts(self) -> None:
        """Add what the kernel counted since the last call (reading resets its counters)."""
        received, dropped = packet_statistics(self._options)
        self.received_count += received
        self.dropped_count += dropped

    def clear_error(self) -> None:
        """ENETDOWN is reported once when the interface goes down; capture goes on when it comes up again."""
        self._options.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        self._options.close()
        self._listen.close()
