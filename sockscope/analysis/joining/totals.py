"""What a connection's events add up to: bytes, end of file, last sign of life, owners."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.joining.join import Join
from sockscope.analysis.replay.assign import moved_bytes
from sockscope.analysis.replay.control import IS_READ
from sockscope.model.calls import Call
from sockscope.model.columns import pieces
from sockscope.model.connections import Protocol
from sockscope.model.events import EventFlag, Events
from sockscope.model.tcp import TcpState

Ids = npt.NDArray[np.int64]


def sum_up(
    joined: Join, events: Events, order: Ids, event_connection: npt.NDArray[np.int32], effective_ns: Ids
) -> None:
    """Fill the fields of connections that come from their events and from who holds them at the end."""
    connections = joined.connections
    if not connections:
        return
    count = len(connections)
    read, written = np.zeros(count, np.int64), np.zeros(count, np.int64)
    last = np.full(count, np.iinfo(np.int64).min)
    first = np.full(count, np.iinfo(np.int64).max)
    for part in pieces(len(events)):
        rows = np.nonzero(event_connection[part] >= 0)[0]
        mine, when = event_connection[part][rows], effective_ns[part][rows]
        taken, put = moved_bytes(events, part)
        read += np.bincount(mine, weights=taken[rows], minlength=count).astype(np.int64)
        written += np.bincount(mine, weights=put[rows], minlength=count).astype(np.int64)
        np.maximum.at(last, mine, np.maximum(when, events.records["exit_ns"][part][rows]))
        np.minimum.at(first, mine, when)
    # Of a capture alone no connection has events.
    moved = np.flatnonzero(first <= last)
    columns = (each[moved].tolist() for each in (read, written, first, last))
    for number, read_bytes, written_bytes, first_ns, last_ns in zip(moved.tolist(), *columns, strict=True):
        made = connections[number]
        made.read_bytes, made.written_bytes = read_bytes, written_bytes
        made.first_ns, made.last_ns = min(made.first_ns, first_ns), max(made.last_ns, last_ns)
    if not joined.has_syscalls:
        _bytes_on_wire(joined)
    _ends_of_file(joined, events, order, event_connection)
    _owners(joined)
    _gone_unseen(joined)


def _bytes_on_wire(joined: Join) -> None:
    """Nobody saw the reads and writes: what crossed the wire is what is known."""
    sent = joined.wire.flows.columns.payload_bytes.tolist()
    for made in joined.connections:
        if made.flow >= 0:
            one, other = sent[made.flow]
            made.read_bytes, made.written_bytes = (one, other) if made.local_side else (other, one)


def _gone_unseen(joined: Join) -> None:
    """Connections that began and ended between two snapshots: gone when their last reference went."""
    for made in joined.connections:
        if made.state == TcpState.UNKNOWN and made.gone_ns is None and made.open_file >= 0:
            made.gone_ns = joined.state.open_files[made.open_file].released_ns


def _ends_of_file(joined: Join, events: Events, order: Ids, event_connection: npt.NDArray[np.int32]) -> None:
    records = events.records
    told = np.zeros(len(events), np.bool_)
    for part in pieces(len(events)):
        told[part] = _tells_the_end(records[part]) & (event_connection[part] >= 0)
    parts = [order[part] for part in pieces(len(order))]
    ordered = np.concatenate([rows[told[rows]] for rows in parts])
    found, at = np.unique(event_connection[ordered], return_index=True)
    for number, event in zip(found.tolist(), ordered[at].tolist(), strict=True):
        made = joined.connections[number]
        if made.protocol != Protocol.UDP:
            made.eof_event = event
            made.eof_ns = int(records["exit_ns"][event])


def _tells_the_end(records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Reads that gave nothing though they asked for something."""
    call = records["call"]
    asked_for_something = (records["args"][:, 2] > 0) | ((call != Call.read) & (call != Call.recvfrom))
    # Of an io_uring a read may leave the buffer, and so its length, to the kernel.
    asked_for_something |= (records["flags"] & EventFlag.URING) != 0
    told: npt.NDArray[np.bool_] = IS_READ[call] & (records["ret"] == 0) & asked_for_something
    told &= (records["flags"] & EventFlag.ENTERED_ONLY) == 0
    return told


def _owners(joined: Join) -> None:
    """Who holds each connection at the end: by replay where there is one, else as /proc said."""
    state = joined.state
    by_inode: dict[int, list[tuple[int, int]]] = {}
    for inode, tgid, fd in joined.groups.sockets.owners.tolist():
        by_inode.setdefault(inode, []).append((tgid, fd))
    users: dict[int, set[int]] = {}
    for tid, table in state.task_table.items():
        users.setdefault(table, set()).add(state.task_process[tid])
    for made in joined.connections:
        if made.open_file >= 0:
            file = state.open_files[made.open_file]
            if state.holder_count[file.id]:
                live = [state.descriptors[d] for d in file.descriptors if state.descriptors[d].closed_ns is None]
                made.owners = [(tgid, d.fd) for d in live for tgid in sorted(users.get(d.table, ()))]
        elif made.inode and not made.never_accepted and made.gone_ns is None:
            made.owners = list(by_inode.get(made.inode, ()))
