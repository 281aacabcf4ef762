"""An AF_PACKET receive ring (TPACKET_V2) read as one structured numpy array.

Source: packet(7), Documentation/networking/packet_mmap.rst, net/packet/af_packet.c tpacket_rcv().
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import select
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.sources.packets.cbpf import port_filter
from sockscope.sources.packets.link_layers import LinkType

_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
_TPACKET_V2 = 1
_SO_ATTACH_FILTER = 26
_ETH_P_ALL = 3
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
_SIOCGIFHWADDR = 0x8927

_HEADER_BYTES = 80
"""Room before the frame's data: TPACKET2_HDRLEN (52) and the link header's 16 bytes, 16-aligned."""

WINDOW_FRAMES = 2048
"""Frames looked at in one go, at most: what is made of them fits the CPU's cache."""
WINDOW_BYTES = 1 << 20


def frame_dtype(frame_bytes: int) -> np.dtype[np.void]:
    """struct tpacket2_hdr and struct sockaddr_ll, at the start of a frame of the ring."""
    return np.dtype(
        {
            "names": ["status", "len", "snaplen", "mac", "sec", "nsec"],
            "formats": ["<u4", "<u4", "<u4", "<u2", "<u4", "<u4"],
            "offsets": [0, 4, 8, 12, 16, 20],
            "itemsize": frame_bytes,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Packets taken from the ring; shape (n, width) data and (n,) columns, as `enhanced_packets` wants them."""

    data: npt.NDArray[np.uint8]
    captured: npt.NDArray[np.int64]
    wire: npt.NDArray[np.int64]
    time_ns: npt.NDArray[np.int64]


class NoRingError(OSError):
    """The kernel makes no ring for a socket that it did make: packets can still be had one by one."""


class Ring:
    """One interface's ring. `take()` hands out what has come and gives its frames back to the kernel."""

    def __init__(self, interface: str, ports: Collection[int], *, snap_bytes: int, ring_bytes: int) -> None:
        """Open the socket and start receiving.

        Raises:
            OSError: PermissionError without CAP_NET_RAW; ENODEV where there is no such interface.
            NoRingError: there is no ring to be had.
        """
        self.interface = interface
        self.snap_bytes = snap_bytes
        self.received_count = 0
        self.dropped_count = 0
        hardware = hardware_type(interface)
        self._loopback = hardware == ARPHRD_LOOPBACK
        self._ethernet = hardware in (ARPHRD_ETHER, ARPHRD_LOOPBACK)
        kind = socket.SOCK_RAW if self._ethernet else socket.SOCK_DGRAM
        # Protocol 0: nothing arrives until bind, when filter and ring are in place.
        self._socket = socket.socket(socket.AF_PACKET, kind | socket.SOCK_CLOEXEC, 0)
        try:
            self.set_ports(ports)
            if self._loopback:
                # Saves the kernel the outgoing copy; before 4.20 the filter alone must drop it.
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._width = (snap_bytes + 3) // 4 * 4
            frame_bytes = 1 << (_HEADER_BYTES + self._width - 1).bit_length()
            try:
                self._map = self._make_ring(frame_bytes, ring_bytes)
            except PermissionError:
                raise
            except OSError as error:
                raise NoRingError(error.errno, error.strerror) from error
            self._frames = np.frombuffer(self._map, frame_dtype(frame_bytes))
            self._bytes = np.frombuffer(self._map, np.uint8).reshape(-1, frame_bytes)
            self._socket.bind((interface, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise
        self._head = 0

    @property
    def link(self) -> LinkType:
        """How frames begin."""
        return LinkType.ETHERNET if self._ethernet else LinkType.RAW

    def _make_ring(self, frame_bytes: int, ring_bytes: int) -> mmap.mmap:
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
        block_bytes = max(1 << 18, frame_bytes)
        while True:
            blocks = max(ring_bytes // block_bytes, 2)
            request = struct.pack("=IIII", block_bytes, blocks, frame_bytes, blocks * (block_bytes // frame_bytes))
            try:
                self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            except OSError as error:
                # Memory too fragmented, or too little: a smaller ring is better than none.
                if error.errno != errno.ENOMEM or ring_bytes <= 1 << 20:
                    raise
                ring_bytes //= 2
                block_bytes = max(1 << 16, frame_bytes)
                continue
            return mmap.mmap(self._socket.fileno(), block_bytes * blocks, mmap.MAP_SHARED)

    def set_ports(self, ports: Collection[int]) -> None:
        """Replace the filter; the kernel does it in one step, between two packets."""
        attach_ports(
            self._socket, ports, snap_bytes=self.snap_bytes, ethernet=self._ethernet, drop_outgoing=self._loopback
        )

    def take(self) -> Iterator[Taken]:
        """What has come, in windows; at most one round of the ring, so that it ends under any load."""
        left = len(self._frames)
        most = max(min(WINDOW_FRAMES, WINDOW_BYTES // self._width), 1)
        while left > 0:
            window = self._frames[self._head : self._head + min(most, left)]
            free = (window["status"] & 1) == 0
            count = int(free.argmax()) if free.any() else len(window)
            if not count:
                return
            yield self._copy(window[:count])
            window["status"][:count] = 0
            self._head = (self._head + count) % len(self._frames)
            left -= count
            if count < len(window):
                # Caught up. Going on would chase the sender with windows of a few packets each, for most of a CPU.
                return

    def _copy(self, window: npt.NDArray[np.void]) -> Taken:
        count = len(window)
        rows = self._bytes[self._head : self._head + count]
        mac = window["mac"]
        data = np.empty((count, self._width), np.uint8)
        begins = np.unique(mac).tolist()
        for begin in begins:
            # Almost always one; frames with a VLAN tag left in begin elsewhere.
            part = rows[:, begin : begin + self._width]
            if len(begins) == 1:
                data[:, : part.shape[1]] = part
            else:
                mine = np.flatnonzero(mac == begin)
                data[mine, : part.shape[1]] = part[mine]
        return Taken(
            data=data,
            captured=np.minimum(window["snaplen"].astype(np.int64), self._width),
            wire=window["len"].astype(np.int64),
            time_ns=window["sec"].astype(np.int64) * 1_000_000_000 + window["nsec"],
        )

    def update_counts(self) -> None:
        """Add what the kernel counted since the last call (reading resets its counters)."""
        received, dropped = packet_statistics(self._socket)
        self.received_count += received
        self.dropped_count += dropped

    def clear_error(self) -> None:
        """ENETDOWN is reported once when the interface goes down; capture goes on when it comes up again."""
        poller = select.poll()
        poller.register(self._socket, 0)
        if poller.poll(0):
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        self._socket.close()


def attach_ports(
    of: socket.socket, ports: Collection[int], *, snap_bytes: int, ethernet: bool, drop_outgoing: bool
) -> None:
    """Let only TCP and UDP from or to these ports through (`cbpf.port_filter`), or of all where the kernel must."""

    def program(wanted: Collection[int]) -> bytes:
        return port_filter(wanted, snap_bytes=snap_bytes, ethernet=ethernet, drop_outgoing=drop_outgoing)

    try:
        attach_filter(of, program(ports))
    except OSError as error:
        # Before 6.9 a socket may hold only 20 KiB of options (net.core.optmem_max), long filters among them.
        if error.errno != errno.ENOMEM:
            raise
        attach_filter(of, program(()))


def attach_filter(of: socket.socket, program: bytes) -> None:
    """Replace a socket's filter by an array of `struct sock_filter`."""
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: u16 length, pointer.
    of.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))


def packet_statistics(of: socket.socket) -> tuple[int, int]:
    """Packets that passed the filter, and those of them dropped, since the last call."""
    received, dropped = struct.unpack("=II", of.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    return int(received), int(dropped)


def hardware_type(interface: str) -> int:
    """ARPHRD_ number: what kind of header frames begin with.

    Raises:
        OSError: ENODEV where there is no such interface.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16s24x", interface.encode()[:15])
        reply = fcntl.ioctl(probe, _SIOCGIFHWADDR, request)
    (family,) = struct.unpack_from("=H", reply, 16)
    return int(family)
