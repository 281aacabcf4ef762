"""A joined session as plain tables: what exports are made from. A report tells; these hold everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.events import Events
from sockscope.model.packets import Packets, RawFrame
from sockscope.model.sockets import Sockets

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTables:
    """The tables of a session; connection ids index `Report.connections`, -1: none.

    Attributes:
        order: shape (k,), event rows in order of effect (kernel events are not among them).
        event_connection: shape (events,).
        packet_ns: shape (packets,), CLOCK_MONOTONIC ns; packet_connection, packet_marks: shape (packets,).
        local_is_source: shape (packets,), the target sent it.
        packet_event: shape (packets,), the event that its bytes came from or went to, or that it began or ended the
            connection by; -1: not known, or nobody's.
        socket_connection: shape (socket rows,).
        exchanges: EXCHANGE_DTYPE.
        event_text: an event decoded, as timelines write it: `recvfrom(7, "GET /"..., 1024) = 78`; not escaped.
        comm: a process's name.
        frames: the captured frames of packet rows, in the order given, read from the files again; empty where the
            session has no capture.
    """

    events: Events
    order: Int64s
    event_connection: Int32s
    packets: Packets
    packet_ns: Int64s
    packet_connection: Int32s
    packet_marks: npt.NDArray[np.uint16]
    local_is_source: npt.NDArray[np.bool_]
    packet_event: Int32s
    sockets: Sockets
    socket_connection: Int32s
    exchanges: npt.NDArray[np.void]
    event_text: Callable[[int], str]
    comm: Callable[[int], str]
    frames: Callable[[Int64s], Iterator[RawFrame]]
