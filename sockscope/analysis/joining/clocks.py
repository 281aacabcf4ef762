"""Are the clocks of syscalls and packets one? Causality tells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.bounds import Bounds, room
from sockscope.analysis.replay.assign import moved_bytes
from sockscope.analysis.session import Session
from sockscope.analysis.wire.columns import NEVER
from sockscope.analysis.wire.streams import Carried
from sockscope.model.columns import pieces

Ids = npt.NDArray[np.int64]


def measure_skew(session: Session) -> int:
    """How far packet times run ahead of syscall times.

    A read cannot return bytes before the segment that brought the first of them, and no segment
    carries bytes before the write that gave the first of them was entered. Each connection bounds the
    skew by both, as where clocks are laid side by side (`analysis.alignment`).

    Returns:
        ns to subtract from packet times so that causality holds (negative: they run behind); 0 where
        it holds as it is, or where nothing can be told.
    """
    connections = session.connections
    if not len(session.packets) or not connections or not session.flows:
        return 0
    whole = np.array([c.id for c in connections if c.flow >= 0 and c.witnessed], np.int64)
    if not len(whole):
        return 0
    side = np.array([connections[number].flow * 2 + connections[number].local_side for number in whole.tolist()])
    carried = Carried.of(session.packets, session.packet_ns, session.packet_flow, session.flows)
    read_ns, write_ns = _first_moves(session)
    first = np.ones(len(whole), np.int64)
    arrived, left = carried.reach.reached(side ^ 1, first), carried.reach.reached(side, first)
    low, high = room(_bounds(whole, arrived, read_ns[whole]), _bounds(whole, left, write_ns[whole]))
    if high is not None and high < 0:
        return -high
    return min(-low, 0) if low is not None else 0


def _bounds(talk: Ids, packet_ns: Ids, call_ns: Ids) -> Bounds:
    known = (packet_ns != -1) & (call_ns != NEVER)
    return Bounds(talk=talk[known], at_ns=packet_ns[known], offset_ns=(call_ns - packet_ns)[known])


def _first_moves(session: Session) -> tuple[Ids, Ids]:
    """When the first read with bytes returned and the first write with bytes was entered: shape (connections,) each."""
    records = session.events.records
    returned = np.full(len(session.connections), NEVER, np.int64)
    entered = np.full(len(session.connections), NEVER, np.int64)
    for part in pieces(len(records)):
        taken, put = moved_bytes(session.events, part)
        on, enter, leave = session.event_connection[part], records["enter_ns"][part], records["exit_ns"][part]
        reads = np.nonzero((taken > 0) & (on >= 0))[0]
        writes = np.nonzero((put > 0) & (on >= 0) & (enter >= 0))[0]
        np.minimum.at(returned, on[reads], leave[reads])
        np.minimum.at(entered, on[writes], enter[writes])
    return returned, entered
