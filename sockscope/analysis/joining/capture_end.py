"""Whether a capture made beside a log saw what the log's calls must have put on the wire.

tcpdump that is stopped without `--immediate-mode` loses up to its last second, people stop it before strace, and a
file may have been cut. No packet says so; the calls do.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.session import Session
from sockscope.model.calls import WRITES, Call
from sockscope.model.connections import Connection, Protocol

_SLACK_NS = 1_000_000
"""More than a packet needs from the call that sends it to the capture."""

_WRITES = [int(call) for call in WRITES]


def unseen_end(session: Session) -> str:
    """What the log shows that the capture should, and does not; empty where nothing contradicts that it saw all.

    A write that took bytes sends a segment, or the window is closed. The release of the last reference sends FIN or
    RST, and a read returns 0 only after the peer's FIN.
    """
    if not session.info.syscalls.engine:
        return ""
    joined = [one for one in session.connections if one.protocol is Protocol.TCP and one.flow >= 0]
    if not joined:
        return ""
    apart = session.info.apart_ns
    if apart is not None:
        last = int(session.packet_ns[session.packet_flow >= 0].max())
        after = _sent(session, joined, last + apart + _SLACK_NS) + _closed(session, joined, last + apart + _SLACK_NS)
        if after:
            until = max(after)
            calls = f"the last of {len(after)} calls" if len(after) > 1 else "a call"
            return f"the capture ends {(until - last) / 1e9:.3g} s before {calls} that sent or closed something"
    untold = sum(_ended_unseen(session, one) for one in joined)
    if untold:
        which = "a connection whose end" if untold == 1 else f"{untold} connections whose ends"
        return f"the capture has holes: it lacks the peer's FIN of {which} the program was told of"
    return ""


def _sent(session: Session, joined: list[Connection], since_ns: int) -> list[int]:
    """When bytes were written, or connections taken, that could go out at once."""
    free = np.zeros(len(session.connections) + 1, np.bool_)
    for one in joined:
        flow = session.flows[one.flow]
        free[one.id] = not flow.zero_window_count[1 - one.local_side] and flow.rst_ns == (None, None)
    records = session.events.records
    late: npt.NDArray[np.int64] = np.flatnonzero(records["enter_ns"] > since_ns)
    rows = records[late]
    sent = np.isin(rows["call"], _WRITES) & (rows["ret"] > 0) & free[session.event_connection[late]]
    return [*rows["enter_ns"][sent].tolist(), *_accepted(session, joined, since_ns)]


def _accepted(session: Session, joined: list[Connection], since_ns: int) -> list[int]:
    """When a connection was taken that the capture lacks, of a port that it has."""
    ports = {one.local.port for one in joined if one.local is not None}
    records = session.events.records
    return [
        at
        for one in session.connections
        if one.flow < 0 and one.witnessed and one.local is not None and one.local.port in ports
        if one.opened_event >= 0 and int(records["call"][one.opened_event]) in (Call.accept, Call.accept4, Call.connect)
        if (at := int(records["exit_ns"][one.opened_event])) > since_ns
    ]


def _closed(session: Session, joined: list[Connection], since_ns: int) -> list[int]:
    """When the last reference to a connection went that had not been ended on the wire."""
    found = []
    for one in joined:
        released = session.open_files[one.open_file].released_ns if one.open_file >= 0 else None
        flow = session.flows[one.flow]
        ended = flow.fin_ns[one.local_side] is not None or flow.rst_ns != (None, None)
        if (
            released is not None
            and released > since_ns
            and not ended
            and not flow.zero_window_count[1 - one.local_side]
        ):
            found.append(released)
    return found


def _ended_unseen(session: Session, one: Connection) -> bool:
    flow = session.flows[one.flow]
    if one.eof_ns is None or flow.fin_ns[1 - one.local_side] is not None or flow.rst_ns != (None, None):
        return False
    # shutdown(SHUT_RD) makes reads return 0 with nothing on the wire.
    calls = session.events.records["call"][session.events_of(one.id)]
    return not (calls == Call.shutdown).any()
