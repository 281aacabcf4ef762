"""The packet table: one fixed record a packet, captured bytes aside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PACKET_DTYPE = np.dtype(
    [
        ("time_ns", "<i8"),  # CLOCK_REALTIME, as captured
        ("src", "u1", (16,)),  # IPv6, or IPv4 v4-mapped
        ("dst", "u1", (16,)),
        ("sport", "<u2"),  # host order
        ("dport", "<u2"),
        ("seq", "<u4"),  # TCP only, else 0
        ("ack", "<u4"),
        ("window", "<u2"),  # as on the wire, not scaled
        ("flags", "u1"),  # TcpFlag
        ("protocol", "u1"),  # 6 TCP, 17 UDP, else what IP says
        ("payload_bytes", "<u4"),  # TCP/UDP payload length by the IP header (not cut by the snap length)
        ("wire_bytes", "<u4"),
        ("payload_offset", "<u8"),  # of the transport payload in `raw`; valid for captured_payload_bytes
        ("captured_payload_bytes", "<u4"),
        ("interface", "<u2"),
        ("wscale", "i1"),  # window scale option of a SYN; -1 where none
        ("outgoing", "u1"),  # 1: sent by this host (sll pkttype 4), 0: received or unknown
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packets:
    """A table of packets in capture order.

    Attributes:
        records: shape (n,), PACKET_DTYPE.
        raw: shape (m,), uint8; captured bytes; `payload_offset` indexes it.
    """

    records: npt.NDArray[np.void]
    raw: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.records)

    @classmethod
    def empty(cls) -> Packets:
        return cls(records=np.zeros(0, PACKET_DTYPE), raw=np.zeros(0, np.uint8))

    def payload_of(self, packet: int) -> bytes:
        """The captured transport payload of one packet."""
        row = self.records[packet]
        start = int(row["payload_offset"])
        return self.raw[start : start + int(row["captured_payload_bytes"])].tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFrame:
    """One captured frame: its bytes as far as captured, its LINKTYPE_ number, its length on the wire."""

    data: bytes
    link: int
    wire_bytes: int
