"""Who is at the other end of a unix connection: a process, which no address tells."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from sockscope.analysis.replay.decode import section_of
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.connections import Connection, Protocol, Role
from sockscope.model.event_rows import find_sections
from sockscope.model.events import Section
from sockscope.model.ids import NO_ID
from sockscope.model.sockaddr import Address, Family

_SOL_SOCKET, _SO_PEERCRED, _SCM_CREDENTIALS = 1, 17, 2
_UCRED = struct.Struct("<iII")
_CMSGHDR = struct.Struct("<Qii")
"""Of 64-bit machines: size_t, level, type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixPeer:
    """The process at the other end.

    Attributes:
        tgid: its number.
        fd: under which it holds its end; -1 where only credentials told of it.
        uid, gid: what SO_PEERCRED or SCM_CREDENTIALS said; -1 where nobody asked.
    """

    tgid: int
    fd: int = -1
    uid: int = -1
    gid: int = -1


class UnixEnds:
    """The other ends of a session's unix connections; what is common to all is worked out once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told = _credentials(session)
        self._holder = _holders_of_peers(session)

    def peer(self, connection: Connection) -> UnixPeer | None:
        """Whom it goes to: by the socketpair, the kernel's socket table, the accept that came of a connect, or by what
        the program asked.

        The credentials are those of the moment of the connect (or socketpair), and a peer may have handed its end on
        since: they come last. Source: unix(7) SO_PEERCRED, sock_diag(7) UNIX_DIAG_PEER.
        """
        if connection.protocol is not Protocol.UNIX:
            return None
        told = self._told.get(connection.id)
        uid, gid = (told.uid, told.gid) if told else (-1, -1)
        file = self._session.open_files[connection.open_file] if connection.open_file >= 0 else None
        pair, far = (file.pair, file.far) if file is not None else (NO_ID, NO_ID)
        # Connects and accepts on one path are matched in turn: the kernel knows better, where it was asked in time.
        held = self._traced(pair) or self._holder.get(connection.id) or self._traced(far)
        return UnixPeer(tgid=held[0], fd=held[1], uid=uid, gid=gid) if held else told

    def words(self, connection: Connection) -> str:
        """`python[812] (uid 1000), client of /run/app.sock`, `/run/app.sock of nginx[13]`; else empty."""
        if connection.protocol is not Protocol.UNIX:
            return ""
        peer, path = self.peer(connection), listener_path(self._session, connection)
        name = self._name(peer) if peer is not None else ""
        if connection.role is Role.SERVER:
            return ", ".join(part for part in (name, f"client of {path}" if path else "a client") if part)
        if path:
            return f"{path} of {name}" if name else path
        return f"unix pair with {name}" if name else "unix pair"

    def _name(self, peer: UnixPeer) -> str:
        comm = self._session.comm(peer.tgid)
        name = f"process {peer.tgid}" if comm == "?" else f"{comm}[{peer.tgid}]"
        return f"{name} (uid {peer.uid})" if peer.uid >= 0 else name

    def _traced(self, other: int) -> tuple[int, int] | None:
        """Who of the target holds this open file, or held it last."""
        session = self._session
        if other == NO_ID:
            return None
        held = [session.descriptors[d] for d in session.open_files[other].descriptors]
        # After a fork both have both ends: the one that is used is the one that is kept.
        kept = [one for one in held if one.closed_ns is None] or held
        return (session.tgid_of_table(kept[-1].table), kept[-1].fd) if kept else None


def _holders_of_peers(session: Session) -> dict[int, tuple[int, int]]:
    """Connection → who holds the peer's inode, as of the last snapshot."""
    rows, owners = session.sockets.records, session.sockets.owners
    if not len(owners):
        return {}
    paired = np.flatnonzero((rows["peer_inode"] != 0) & (session.socket_connection >= 0))
    by_inode = dict(
        zip(owners["inode"].tolist(), zip(owners["tgid"].tolist(), owners["fd"].tolist(), strict=True), strict=True)
    )
    found = {}
    for connection, inode in zip(
        session.socket_connection[paired].tolist(), rows["peer_inode"][paired].tolist(), strict=True
    ):
        if inode in by_inode:
            found[connection] = by_inode[inode]
    return found


def _credentials(session: Session) -> dict[int, UnixPeer]:
    """Connection → what getsockopt(SO_PEERCRED) on it returned, else what came with its messages."""
    records = session.events.records
    unix = np.zeros(len(session.connections) + 1, np.bool_)
    unix[[one.id for one in session.connections if one.protocol is Protocol.UNIX]] = True
    # -1 is the last place: no connection.
    mine = np.flatnonzero(unix[session.event_connection] & (records["ret"] >= 0))
    call, args = records["call"][mine], records["args"][mine]
    options = (args[:, 1] == _SOL_SOCKET) & (args[:, 2] == _SO_PEERCRED) & (call == Call.getsockopt)
    messages = mine[(call == Call.recvmsg) | (call == Call.recvmmsg)]
    messages = messages[find_sections(session.events, messages, Section.CONTROL)[0] >= 0]
    found: dict[int, UnixPeer] = {}
    for event in (*mine[options].tolist(), *messages.tolist()):
        blob = session.events.blob_of(event)
        raw = section_of(blob, Section.OPTION) or _sent_credentials(section_of(blob, Section.CONTROL) or b"")
        if len(raw) < _UCRED.size:
            continue
        pid, uid, gid = _UCRED.unpack_from(raw)
        # In a pid namespace of its own the number is another one than ours; 0: it has none there.
        if pid > 0 and not _has_own_numbers(session, int(records["tgid"][event])):
            found.setdefault(int(session.event_connection[event]), UnixPeer(tgid=pid, uid=uid, gid=gid))
    return found


def _sent_credentials(control: bytes) -> bytes:
    """The struct ucred of the first SCM_CREDENTIALS in a raw msg_control; empty where there is none."""
    at = 0
    while at + _CMSGHDR.size <= len(control):
        length, level, kind = _CMSGHDR.unpack_from(control, at)
        if length < _CMSGHDR.size:
            break
        if (level, kind) == (_SOL_SOCKET, _SCM_CREDENTIALS):
            return control[at + _CMSGHDR.size : at + length]
        at += (length + 7) & ~7
    return b""


def _has_own_numbers(session: Session, tgid: int) -> bool:
    rows = session.facts.processes
    mine = rows[rows["tgid"] == tgid]
    if len(mine):
        return int(mine["ns_tgid"][-1]) != tgid
    return any(one.tgid == tgid and one.ns_tgid not in (None, tgid) for one in session.seed.processes)


def listener_path(session: Session, connection: Connection) -> str:
    """The name of the listener that the connection came through or went to; empty where none is known."""
    ends: list[Address | None] = []
    if connection.listener >= 0:
        ends.append(session.open_files[connection.listener].local)
    # A client may have bound a name of its own; where it went to is what names the connection.
    ends += (
        [connection.peer, connection.local] if connection.role is Role.CLIENT else [connection.local, connection.peer]
    )
    named = (end for end in ends if end is not None and end.family == Family.UNIX and any(end.packed))
    return next((str(end) for end in named), "")
