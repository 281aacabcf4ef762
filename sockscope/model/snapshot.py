"""One look at the kernel's sockets, and what the state of each means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sockscope.model.sockets import Sockets
from sockscope.model.tcp import TcpState


class Cause(IntEnum):
    """Why a TCP socket is in its state, as far as one look can tell."""

    NONE = 0
    """Nothing to explain."""
    OWNED = 1
    """CLOSE_WAIT held by a process: the peer has closed, the program has not."""
    NEVER_ACCEPTED = 2
    """Waits in a listener's accept queue; no process was ever given it."""
    ORPHANED = 3
    """No process holds it by a descriptor."""
    HIDDEN_OWNER = 4
    """Somebody holds it whom we may not read."""
    CLOSED_HERE = 5
    """The program has closed it; the kernel finishes on its own."""
    HALF_CLOSED = 6
    """The program has sent its FIN by shutdown(2) and still holds the descriptor."""
    QUEUE_WAITING = 7
    """A listener with connections that wait for accept."""
    QUEUE_FULL = 8
    """A listener whose accept queue is beyond its limit: new connections are dropped."""
    RETRANSMITTING = 9
    ZERO_WINDOW = 10
    """The peer takes no more data."""
    HANDSHAKE = 11
    """The three-way handshake is not finished."""

    @property
    def slug(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one look found.

    Attributes:
        sockets: the rows asked for, and all their owners that could be read.
        causes: shape (n,), uint8, `Cause` of each row.
        comms: tgid → comm of every owner.
        realtime_ns: CLOCK_REALTIME of the look.
        unreadable_count: processes whose descriptors may not be read; their sockets show no owner.
    """

    sockets: Sockets
    causes: npt.NDArray[np.uint8]
    comms: dict[int, str]
    realtime_ns: int
    unreadable_count: int = 0


def causes(
    records: npt.NDArray[np.void],
    owned: npt.NDArray[np.bool_],
    listeners: npt.NDArray[np.void],
    *,
    owners_may_hide: bool = False,
) -> npt.NDArray[np.uint8]:
    """The cause of every row's state.

    Inode 0 says that no process holds the socket. An ESTABLISHED or CLOSE_WAIT one has then not been accepted
    (net/ipv4/inet_connection_sock.c: it gets its inode in accept); a closing one was closed by its program.

    Args:
        records: shape (n,), SOCKET_DTYPE.
        owned: shape (n,), whether an owner was found.
        listeners: SOCKET_DTYPE, the listening sockets of the same namespace (state LISTEN), filtered or not.
        owners_may_hide: not every process could be looked into.

    Returns:
        Shape (n,), uint8, `Cause`.
    """
    out = np.zeros(len(records), np.uint8)
    tcp = records["protocol"] == 6
    state, inode = records["state"], records["inode"]
    no_inode = inode == 0
    listening = tcp & (state == TcpState.LISTEN)
    out[listening & (records["recv_q"] > 0)] = Cause.QUEUE_WAITING
    out[listening & (records["recv_q"] > records["send_q"])] = Cause.QUEUE_FULL
    open_ = tcp & ((state == TcpState.ESTABLISHED) | (state == TcpState.CLOSE_WAIT))
    out[open_ & (records["timer"] == 1) & (records["retransmits"] > 0)] = Cause.RETRANSMITTING
    out[open_ & (records["timer"] == 4)] = Cause.ZERO_WINDOW
    waiting = listeners["local_port"][listeners["recv_q"] > 0]
    in_queue = np.isin(records["local_port"], waiting)
    close_wait = tcp & (state == TcpState.CLOSE_WAIT)
    out[close_wait & owned] = Cause.OWNED
    out[open_ & ~owned & ~no_inode] = Cause.HIDDEN_OWNER if owners_may_hide else Cause.ORPHANED
    out[open_ & no_inode] = Cause.ORPHANED
    out[open_ & no_inode & in_queue] = Cause.NEVER_ACCEPTED
    closing = tcp & np.isin(state, [TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.CLOSING, TcpState.LAST_ACK])
    out[closing] = np.where(no_inode[closing], Cause.CLOSED_HERE, Cause.HALF_CLOSED)
    out[tcp & np.isin(state, [TcpState.SYN_SENT, TcpState.SYN_RECV])] = Cause.HANDSHAKE
    return out
