"""The socket table: what the kernel says of each socket, one row a socket a snapshot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SOCKET_DTYPE = np.dtype(
    [
        ("time_ns", "<i8"),  # CLOCK_MONOTONIC of the snapshot
        ("snapshot", "<u4"),  # 0, 1, ... through the session
        ("family", "u1"),  # Family (INET also for v4-mapped sockets' own family INET6: as the kernel says)
        ("protocol", "u1"),  # 6 TCP, 17 UDP, 0 unix
        ("type", "u1"),  # unix: SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_SEQPACKET 5
        ("state", "u1"),  # TcpState (unix uses ESTABLISHED, LISTEN, CLOSE likewise)
        ("inode", "<u8"),  # 0: no process holds it (un-accepted, TIME_WAIT, orphan)
        ("cookie", "<u8"),
        ("peer_inode", "<u8"),  # unix only
        ("netns", "<u8"),  # inode of the network namespace
        ("local", "u1", (16,)),  # IPv6, or IPv4 v4-mapped
        ("peer", "u1", (16,)),
        ("local_port", "<u2"),
        ("peer_port", "<u2"),
        ("uid", "<u4"),
        ("recv_q", "<u4"),  # bytes unread; LISTEN: connections waiting for accept
        ("send_q", "<u4"),  # bytes not acknowledged; LISTEN: the backlog limit
        ("timer", "u1"),  # idiag_timer: 0 off, 1 retransmit, 2 keepalive, 3 TIME_WAIT, 4 zero window probe
        ("retransmits", "u1"),
        ("timer_ms", "<u4"),
        ("has_info", "u1"),  # 1 where the tcp_info columns below are filled
        ("rtt_us", "<u4"),
        ("cwnd", "<u4"),
        ("total_retrans", "<u4"),
        ("unacked", "<u4"),
        ("last_data_sent_ms", "<u4"),
        ("last_data_recv_ms", "<u4"),
        ("bytes_acked", "<u8"),
        ("bytes_received", "<u8"),
        ("path", "S108"),  # unix name as unix_name() prints it, UTF-8; empty otherwise
    ]
)

OWNER_DTYPE = np.dtype([("inode", "<u8"), ("tgid", "<i4"), ("fd", "<i4")])
"""Who holds a socket: one row a descriptor; fd -1 where only the process is known."""

STAND_IN_INODE = 1 << 40
"""From here on an inode is made up: the text that the row was read from has none. The kernel's have 32 bits."""


_DENSE = 8
"""A table of so many places a row still beats a binary search."""


def first_owners(owners: npt.NDArray[np.void], inodes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Where each socket's first owner stands.

    Args:
        owners: shape (m,), OWNER_DTYPE, sorted by inode.
        inodes: shape (n,), in any order.

    Returns:
        Shape (n,), rows of `owners`; m where nobody holds the socket.
    """
    keys, nobody = np.ascontiguousarray(owners["inode"]), len(owners)
    if not nobody:
        return np.zeros(len(inodes), np.int64)
    low = keys[0]
    span = int(keys[-1] - low) + 1
    if span <= _DENSE * (nobody + len(inodes)):
        # Inode numbers are given out one after the other: most often they lie close together.
        table = np.full(span + 1, nobody, np.int64)
        # The last one written stays.
        table[(keys - low)[::-1]] = np.arange(nobody - 1, -1, -1)
        # What lies below wraps around to above.
        near: npt.NDArray[np.int64] = table[np.minimum(inodes - low, np.uint64(span))]
        return near
    found = np.searchsorted(keys, inodes)
    found[keys[np.minimum(found, nobody - 1)] != inodes] = nobody
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """Socket rows of one or more snapshots, with the owners known at the last.

    Attributes:
        records: shape (n,), SOCKET_DTYPE.
        owners: shape (m,), OWNER_DTYPE, as of the last snapshot.
    """

    records: npt.NDArray[np.void]
    owners: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.records)

    @classmethod
    def empty(cls) -> Sockets:
        return cls(records=np.zeros(0, SOCKET_DTYPE), owners=np.zeros(0, OWNER_DTYPE))
