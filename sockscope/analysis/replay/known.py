"""What snapshots and getsockname say of open files that the calls which made them did not."""

from __future__ import annotations

import numpy as np

from sockscope.analysis.replay.assign import Assignment, DescriptorIndex
from sockscope.analysis.replay.decode import socket_address
from sockscope.analysis.replay.state import ReplayState
from sockscope.model.calls import Call
from sockscope.model.columns import rows_of
from sockscope.model.events import Events, is_seeded
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import Family
from sockscope.model.sockets import Sockets

_INET = (Family.INET, Family.INET6)
_MESSAGES = (int(Call.recvfrom), int(Call.recvmsg), int(Call.sendto), int(Call.sendmsg))
_DATAGRAM = 2


def unix_peers(sockets: Sockets) -> dict[int, int]:
    """inode → inode of the other end, both ways, of every connected unix socket shown."""
    rows = sockets.records
    shown = rows[(rows["family"] == Family.UNIX) & (rows["peer_inode"] != 0) & (rows["inode"] != 0)]
    if not len(shown):
        return {}
    pairs = np.unique(np.stack([shown["inode"], shown["peer_inode"]], axis=1), axis=0).tolist()
    return {**{b: a for a, b in pairs}, **dict(pairs)}


def complete_open_files(state: ReplayState, events: Events, sockets: Sockets, assignment: Assignment) -> None:
    """Give open files the addresses that getsockname and getpeername told, and inodes from the owners.

    What was made only to tell such an address (`EventFlag.SEEDED`) names nothing any more after that: nobody who looks
    for the calls on a file or a connection shall take it for one.
    """
    complete_names(state, events, assignment)
    _from_messages(state, events, assignment)
    _from_owners(state, sockets)
    assignment.forget(rows_of(events.records, is_seeded))


def complete_names(state: ReplayState, events: Events, assignment: Assignment) -> None:
    """Give open files the addresses that getsockname and getpeername told."""
    call = events.records["call"]
    told = ((call == Call.getsockname) | (call == Call.getpeername)) & (events.records["ret"] == 0)
    for row in np.nonzero(told & (assignment.open_file >= 0))[0].tolist():
        file = state.open_files[int(assignment.open_file[row])]
        is_local = int(call[row]) == Call.getsockname
        known = file.local if is_local else file.peer
        if known is not None and (known.port or known.family == Family.UNIX):
            continue
        found = socket_address(events.blob_of(row))
        if found is None:
            continue
        file.family = file.family or found.family
        if is_local:
            # Before bind or connect the kernel answers with zeros, which is no address.
            if found.port or (found.family == Family.UNIX and found.packed):
                file.local = found
        else:
            file.peer = found


def _from_messages(state: ReplayState, events: Events, assignment: Assignment) -> None:
    """A message that has an address is a datagram: of a stream the kernel gives none with it."""
    unknown = [
        one.id
        for one in state.open_files
        if one.kind is FileKind.SOCKET and not one.socket_type and one.family in _INET
    ]
    if not unknown:
        return
    asked = np.zeros(len(state.open_files) + 1, np.bool_)
    asked[unknown] = True
    rows = np.flatnonzero(np.isin(events.records["call"], _MESSAGES) & asked[assignment.open_file])
    rows = rows[events.records["ret"][rows] >= 0]
    files, firsts = np.unique(assignment.open_file[rows], return_index=True)
    for file, row in zip(files.tolist(), rows[firsts].tolist(), strict=True):
        if socket_address(events.blob_of(row)) is not None:
            state.open_files[file].socket_type = _DATAGRAM


def _from_owners(state: ReplayState, sockets: Sockets) -> None:
    """Descriptors that lived at the last snapshot get the inode that /proc showed under their number."""
    if not len(sockets.owners) or not len(state.descriptors) or not len(sockets.records):
        return
    when = int(sockets.records["time_ns"].max())
    tables = {}
    for table in state.tables:
        for tgid in table.tgids:
            if table.created_ns <= when and (table.ended_ns is None or table.ended_ns >= when):
                tables[tgid] = table.id
    owners = [(tables[t], fd, inode) for inode, t, fd in sockets.owners.tolist() if t in tables and inode]
    if not owners:
        return
    wanted = np.array(owners, np.int64)
    now = np.full(len(wanted), when, np.int64)
    at = DescriptorIndex(state).find(wanted[:, 0], wanted[:, 1], now, now)
    for descriptor, inode in zip(at.tolist(), wanted[:, 2].tolist(), strict=True):
        if descriptor < 0:
            continue
        file = state.open_files[state.descriptors[descriptor].open_file]
        if file.inode or (file.witnessed and file.kind != FileKind.SOCKET):
            continue
        file.inode = inode
        file.kind = FileKind.SOCKET
        state.inode_file.setdefault(inode, file.id)
