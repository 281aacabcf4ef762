"""Are the clocks of syscalls and packets one? Causality tells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.assign import moved_bytes
from sockscope.analysis.session import Session
from sockscope.model.sockaddr import encode_key

Ids = npt.NDArray[np.int64]
OUTLIERS = 0.01
"""Share of connections on each side that may contradict the rest (a wrong join, a lost packet)."""
NEVER = np.iinfo(np.int64).max


def measure_skew(session: Session) -> int:
    """How far packet times run ahead of syscall times.

    A read cannot return bytes before the segment that brought the first of them, and no segment
    carries bytes before the write that gave the first of them was entered. Each connection bounds the
    skew from below by the former and from above by the latter.

    Returns:
        ns to subtract from packet times so that causality holds (negative: they run behind); 0 where
        it holds as it is, or where nothing can be told.
    """
    connections = session.connections
    if not len(session.packets) or not connections or not session.flows:
        return 0
    flows = np.array([c.flow for c in connections], np.int64)
    sides = np.array([c.local_side for c in connections], np.int64)
    whole = (flows >= 0) & np.array([c.witnessed for c in connections], np.bool_)
    carried = _first_payloads(session)
    read_ns, write_ns = _first_moves(session)
    arrived = np.where(whole, carried[flows, 1 - sides], NEVER)
    left = np.where(whole, carried[flows, sides], NEVER)
    low = (arrived - read_ns)[(arrived != NEVER) & (read_ns != NEVER)]
    high = (left - write_ns)[(left != NEVER) & (write_ns != NEVER)]
    least = int(np.quantile(low, 1 - OUTLIERS, method="lower")) if len(low) else 0
    most = int(np.quantile(high, OUTLIERS, method="higher")) if len(high) else 0
    if least > 0:
        return least
    return min(most, 0)


def _first_payloads(session: Session) -> Ids:
    """When each side of each flow first carried bytes: shape (flows, 2), NEVER where it did not."""
    first = np.full((len(session.flows), 2), NEVER, np.int64)
    rows = np.nonzero((session.packets.records["payload_bytes"] > 0) & (session.packet_flow >= 0))[0]
    picked = session.packets.records[rows]
    flow = session.packet_flow[rows]
    opener = np.frombuffer(b"".join(encode_key(f.ends[0]) for f in session.flows), np.uint8).reshape(-1, 16)
    port = np.array([f.ends[0].port for f in session.flows], np.uint16)
    from_opener = (picked["sport"] == port[flow]) & (picked["src"] == opener[flow]).all(axis=1)
    np.minimum.at(first, (flow, np.where(from_opener, 0, 1)), session.packet_ns[rows])
    return first


def _first_moves(session: Session) -> tuple[Ids, Ids]:
    """When the first read with bytes returned and the first write with bytes was entered: shape (connections,) each."""
    records = session.events.records
    returned = np.full(len(session.connections), NEVER, np.int64)
    entered = np.full(len(session.connections), NEVER, np.int64)
    taken, put = moved_bytes(session.events)
    on = session.event_connection
    reads = np.nonzero((taken > 0) & (on >= 0))[0]
    writes = np.nonzero((put > 0) & (on >= 0) & (records["enter_ns"] >= 0))[0]
    np.minimum.at(returned, on[reads], records["exit_ns"][reads])
    np.minimum.at(entered, on[writes], records["enter_ns"][writes])
    return returned, entered
