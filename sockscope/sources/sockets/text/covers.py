"""What listings were asked for, as far as they show it: nothing may be concluded from what nobody asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.info import SocketCoverage
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.text.table import UNTOLD_INODE
from sockscope.sources.sockets.text.vocabulary import TCP, UDP, UNIX

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingCovers:
    """What all listings together were asked for. True only where every one of them shows it.

    Attributes:
        has_listeners: listening TCP sockets are among the rows (-l or -a).
        has_connections: connected TCP sockets are.
        has_owners: processes are named (-p, and the right to see them).
        has_inodes, has_timers: -e, -o.
        has_limits: the backlog of listeners is told (ss does, netstat does not).
        udp, unix: which kinds of sockets there are beside.
    """

    has_listeners: bool
    has_connections: bool
    has_owners: bool
    has_inodes: bool
    has_timers: bool
    has_limits: bool
    udp: bool
    unix: bool


def without_inode(rows: npt.NDArray[np.void]) -> Flags:
    """Sockets that have none in the kernel, whatever was asked: TIME_WAIT and half-made ones."""
    known: Flags = np.isin(rows["state"], [TcpState.TIME_WAIT, TcpState.SYN_RECV]) & (rows["protocol"] == TCP)
    return known


def covers_of(rows: npt.NDArray[np.void], owned: Flags, by_netstat: Flags) -> ListingCovers:
    """Look at the finished rows, `UNTOLD_INODE` still in place.

    Args:
        rows: shape (n,), SOCKET_DTYPE.
        owned, by_netstat: shape (n,).
    """
    tcp = rows["protocol"] == TCP
    listening = tcp & (rows["state"] == TcpState.LISTEN)
    told = rows["inode"] != UNTOLD_INODE
    snapshots = rows["snapshot"]
    every = np.unique(snapshots)

    def in_all(chosen: Flags) -> bool:
        return len(np.unique(snapshots[chosen])) == len(every)

    return ListingCovers(
        has_listeners=in_all(listening),
        has_connections=in_all(tcp & ~listening),
        has_owners=bool(owned[snapshots == every[-1]].any()) if len(every) else False,
        has_inodes=bool((told | without_inode(rows) | (rows["protocol"] == UNIX)).all()),
        has_timers=in_all(tcp & (rows["timer"] != 0)),
        has_limits=not (by_netstat & listening).any(),
        udp=bool((rows["protocol"] == UDP).any()),
        unix=bool((rows["protocol"] == UNIX).any()),
    )


def coverage_of(
    covers: ListingCovers, rows: npt.NDArray[np.void], snapshot_count: int, *, times_known: bool
) -> SocketCoverage:
    """The same as rules and the join ask it."""
    kinds = np.unique(rows["snapshot"].astype(np.int64) * 256 + rows["protocol"])
    _, firsts = np.unique(kinds >> 8, return_index=True)
    alike = len({(part & 0xFF).tobytes() for part in np.split(kinds, firsts[1:])}) <= 1
    return SocketCoverage(
        snapshot_count=snapshot_count,
        has_inodes=covers.has_inodes,
        has_owners=covers.has_owners,
        has_timers=covers.has_timers,
        has_limits=covers.has_limits,
        whole=alike and covers.has_listeners and covers.has_connections,
        times_known=times_known,
    )
