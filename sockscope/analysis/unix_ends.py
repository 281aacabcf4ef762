"""Who is at the other end of a unix connection: a process, which no address tells."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.decode import section_of
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.connections import Connection, Protocol
from sockscope.model.events import Section
from sockscope.model.ids import NO_ID
from sockscope.model.sockaddr import Family

_SOL_SOCKET, _SO_PEERCRED = 1, 17
_UCRED = struct.Struct("<iII")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixPeer:
    """The process at the other end.

    Attributes:
        tgid: its number.
        fd: under which it holds its end; -1 where only SO_PEERCRED told of it.
        uid, gid: what SO_PEERCRED said; -1 where nobody asked.
    """

    tgid: int
    fd: int = -1
    uid: int = -1
    gid: int = -1


def unix_peer(session: Session, connection: Connection) -> UnixPeer | None:
    """Whom the connection goes to: by the descriptors seen, by the kernel's socket table, or by what it was asked.

    The credentials are those of the moment of the connect (or socketpair); a peer that has handed its end on is no
    longer who they say, so the tables come first. Source: unix(7) SO_PEERCRED, sock_diag(7) UNIX_DIAG_PEER.
    """
    if connection.protocol != Protocol.UNIX:
        return None
    told = _credentials(session, connection)
    uid, gid = (told.uid, told.gid) if told else (-1, -1)
    for tgid, fd in (*_traced(session, connection), *_in_tables(session, connection)):
        return UnixPeer(tgid=tgid, fd=fd, uid=uid, gid=gid)
    return told


def _traced(session: Session, connection: Connection) -> list[tuple[int, int]]:
    """Holders of the other end among the target."""
    if connection.open_file < 0:
        return []
    other = session.open_files[connection.open_file].pair
    if other == NO_ID:
        return []
    descriptors = [session.descriptors[d] for d in session.open_files[other].descriptors]
    # Whoever holds it last is who talks.
    return [(session.tgid_of_table(d.table), d.fd) for d in reversed(descriptors)]


def _in_tables(session: Session, connection: Connection) -> list[tuple[int, int]]:
    """Holders of the peer's inode, as of the last snapshot."""
    samples = session.samples_of(connection.id)
    if not len(samples):
        return []
    peer = int(session.sockets.records["peer_inode"][samples].max())
    owners = session.sockets.owners
    held = owners[owners["inode"] == peer] if peer else owners[:0]
    return [(int(row["tgid"]), int(row["fd"])) for row in held]


def _credentials(session: Session, connection: Connection) -> UnixPeer | None:
    """What getsockopt(SO_PEERCRED) on it returned."""
    events = session.events_of(connection.id)
    records = session.events.records
    asked = events[(records["call"][events] == Call.getsockopt) & (records["ret"][events] == 0)]
    for event in asked.tolist():
        level, option = records["args"][event, 1:3].tolist()
        value = section_of(session.events.blob_of(event), Section.OPTION)
        if (level, option) != (_SOL_SOCKET, _SO_PEERCRED) or value is None or len(value) < _UCRED.size:
            continue
        pid, uid, gid = _UCRED.unpack_from(value)
        # In a pid namespace of its own the number is another one than ours; 0: it has none there.
        if pid > 0 and not _has_own_numbers(session, int(records["tgid"][event])):
            return UnixPeer(tgid=pid, uid=uid, gid=gid)
    return None


def _has_own_numbers(session: Session, tgid: int) -> bool:
    rows = session.facts.processes
    mine = rows[rows["tgid"] == tgid]
    if len(mine):
        return int(mine["ns_tgid"][-1]) != tgid
    return any(one.tgid == tgid and one.ns_tgid not in (None, tgid) for one in session.seed.processes)


def listener_path(session: Session, connection: Connection) -> str:
    """The name of the listener that the connection came through or went to; empty where none is known."""
    for file in (connection.listener, connection.open_file):
        if file >= 0:
            for address in (session.open_files[file].local, session.open_files[file].peer):
                if address is not None and address.family == Family.UNIX and any(address.packed):
                    return str(address)
    for address in (connection.local, connection.peer):
        if address is not None and address.family == Family.UNIX and any(address.packed):
            return str(address)
    return ""


def unix_rows(session: Session) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ids of all unix connections."""
    return np.array([c.id for c in session.connections if c.protocol == Protocol.UNIX], np.int64)
