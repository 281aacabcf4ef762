"""What a stop meant for the clients: who had a request under way, and what each saw of the end."""

from __future__ import annotations

import numpy as np

from sockscope.analysis.session import Session
from sockscope.analysis.stops.steps import Members
from sockscope.analysis.wire.columns import NEVER
from sockscope.model.calls import Call
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.stops import StopClients
from sockscope.model.tcp import TcpState

_ENDS_OUR_HALF = (TcpState.FIN_WAIT1, TcpState.LAST_ACK, TcpState.CLOSING)


def clients_of(session: Session, members: Members) -> StopClients:
    """Counts over the connections that clients had with these processes."""
    since_ns = members.since_ns
    held: dict[int, bool] = {}
    ports: set[int] = set()
    deaf_ns: int | None = -1
    for one, file, is_listener in members.sockets():
        if is_listener:
            if file.local is not None:
                ports.add(file.local.port)
            if file.released_ns is None:
                deaf_ns = None
            elif deaf_ns is not None:
                deaf_ns = max(deaf_ns, file.released_ns)
        elif one.opened_ns <= since_ns:
            held[file.connection] = held.get(file.connection, False) or file.released_ns is None
    running = _running(session, set(held), since_ns)
    saw = [_saw(session, session.connections[one]) for one, is_open in held.items() if not is_open]
    accepts = members.events(Call.accept, Call.accept4)
    refused = _refused(session, ports, deaf_ns) if deaf_ns is not None else 0
    return StopClients(
        open_count=len(held),
        running_count=len(running),
        answered_count=sum(running.values()),
        cut_count=sum(not answered and not held[one] for one, answered in running.items()),
        fin_count=saw.count("FIN"),
        reset_count=saw.count("RST"),
        still_open_count=sum(held.values()),
        accepted_count=int((session.events.records["ret"][accepts] >= 0).sum()),
        refused_count=refused if session.info.packets.available else None,
    )


def _running(session: Session, held: set[int], since_ns: int) -> dict[int, bool]:
    """Connections whose request had been read and not wholly answered at the signal, and whether it was afterwards."""
    rows = session.exchanges
    rows = rows[(rows["first_read_ns"] >= 0) & (rows["first_read_ns"] <= since_ns)]
    rows = rows[(rows["answered"] == 0) | (rows["last_write_ns"] > since_ns)]
    rows = rows[np.isin(rows["connection"], list(held))]
    # What a client says last needs no answer where none is ever given (to a log collector's): that is no request.
    answering = {one.listener for one in session.connections if one.written_bytes and one.role is not Role.CLIENT}
    return {
        int(row["connection"]): bool(row["answered"])
        for row in rows
        if row["answered"] or session.connections[int(row["connection"])].listener in answering
    }


def _saw(session: Session, connection: Connection) -> str:
    """`RST`, `FIN`, or empty: what it saw was not seen."""
    if connection.flow >= 0:
        flow = session.flows[connection.flow]
        if flow.rst_ns[connection.local_side] is not None:
            return "RST"
        if flow.fin_ns[connection.local_side] is not None:
            return "FIN"
    rows = session.kernel_of(connection.id)
    told = session.kernel[rows]
    if (told["call"] == Call.tcp_reset_sent).any():
        return "RST"
    if ((told["call"] == Call.sock_state) & np.isin(told["new"], _ENDS_OUR_HALF)).any():
        return "FIN"
    return "FIN" if connection.protocol is Protocol.UNIX else ""


def _refused(session: Session, ports: set[int], since_ns: int) -> int:
    """Attempts to connect to these ports that got an RST for an answer."""
    flows = session.flows.columns
    asked = (flows.syn_ns >= since_ns) & (flows.syn_ns != NEVER)
    refused = (flows.synack_ns == NEVER) & (flows.rst_ns[:, 1] != NEVER)
    return int((asked & refused & np.isin(flows.port[:, 1], list(ports))).sum())
