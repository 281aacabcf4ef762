"""Socket rows of many snapshots, grouped into the sockets they show."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sockscope.model.connections import Protocol
from sockscope.model.ids import NO_ID
from sockscope.model.sockaddr import V4_MAPPED_PREFIX, Address, Family, from_key
from sockscope.model.sockets import STAND_IN_INODE, Sockets
from sockscope.model.tcp import TcpState

Ids = npt.NDArray[np.int64]
IPPROTO_TCP = 6
IPPROTO_UDP = 17
SOCK_DGRAM = 2

_HELD_STATES = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)

EndKey = tuple[bytes, int, int]
"""Peer address (4 or 16 bytes), peer port, local port: what names a connection to a listener
without its local address."""


def end_key(peer: Address, local_port: int) -> EndKey:
    return (peer.packed, peer.port, local_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketColumns:
    """What the last (or first) row of each group says, as plain lists: read one by one, numpy is slow."""

    first_ns: list[int]
    first_inode: list[int]
    first_state: list[int]
    first_snapshot: list[int]
    last_ns: list[int]
    family: list[int]
    protocol: list[int]
    type: list[int]
    state: list[int]
    inode: list[int]
    """Of the last row, 0 where no process holds it."""
    cookie: list[int]
    peer_inode: list[int]
    netns: list[int]
    recv_q: list[int]
    send_q: list[int]
    snapshot: list[int]
    gone_ns: list[int]
    """The first snapshot that no longer shows it, or -1."""


@dataclass(kw_only=True)
class SocketGroups:
    """Sockets as snapshots show them: group g is one socket. Columns have shape (groups,).

    Attributes:
        group: shape (rows,), the group of each row.
        first, last: its first and last row.
        inode: the last inode that was not 0 (a socket in the accept queue has none yet).
        of: their rows' values.
        by_key: end key → groups, oldest first (TCP and UDP with a peer).
        by_inode: inode → group.
        listen_ports: every local TCP port that some row shows in LISTEN.
        first_snapshot, final_snapshot: numbers of the first and last one, -1 where there are none.
    """

    sockets: Sockets
    group: Ids
    first: Ids
    last: Ids
    inode: list[int]
    of: SocketColumns
    first_snapshot: int
    final_snapshot: int
    by_key: dict[EndKey, list[int]] = field(default_factory=dict)
    by_inode: dict[int, int] = field(default_factory=dict)
    listen_ports: frozenset[int] = frozenset()
    _addresses: dict[tuple[bytes, int], Address] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.last)

    def local(self, group: int) -> Address | None:
        """The local address of a group; the name of a unix socket."""
        row = self.sockets.records[self.last[group]]
        if self.of.family[group] == Family.UNIX:
            path = bytes(row["path"])
            name = b"\0" + path[1:] if path[:1] == b"@" else b"" if path == b"*" else path
            return Address(family=Family.UNIX, packed=name)
        # Servers have few local addresses and many connections.
        key = (row["local"].tobytes(), int(row["local_port"]))
        known = self._addresses.get(key)
        if known is None:
            known = self._addresses[key] = from_key(*key)
        return known

    def peer(self, group: int) -> Address | None:
        """The peer of a group; None where it has none (or is a unix socket)."""
        row = self.sockets.records[self.last[group]]
        port = int(row["peer_port"])
        return from_key(row["peer"].tobytes(), port) if port else None

    def begins_held(self, group: int) -> bool:
        """Whether a process holds it in its first row, as far as that can be told: text may have no inodes."""
        inode = self.of.first_inode[group]
        return 0 < inode < STAND_IN_INODE or (inode > 0 and self.of.first_state[group] in _HELD_STATES)

    def is_udp(self, group: int) -> bool:
        return self.of.protocol[group] == IPPROTO_UDP

    def protocol(self, group: int) -> Protocol:
        if self.of.family[group] == Family.UNIX:
            return Protocol.UNIX
        return Protocol.UDP if self.of.protocol[group] == IPPROTO_UDP else Protocol.TCP


def group_sockets(sockets: Sockets) -> SocketGroups:
    """Find the sockets: by cookie, else by inode for unix sockets, else by addresses."""
    rows = sockets.records
    group = _identify(rows)
    count = int(group.max()) + 1 if len(group) else 0
    in_time = np.argsort(rows["time_ns"], kind="stable").astype(np.int64, copy=False)
    first = np.zeros(count, np.int64)
    last = np.zeros(count, np.int64)
    inode = np.zeros(count, np.int64)
    last[group[in_time]] = in_time
    first[group[in_time[::-1]]] = in_time[::-1]
    held = in_time[rows["inode"][in_time] > 0]
    inode[group[held]] = rows["inode"][held].astype(np.int64)
    ids, where = np.unique(rows["snapshot"], return_index=True)
    made = SocketGroups(
        sockets=sockets,
        group=group,
        first=first,
        last=last,
        inode=inode.tolist(),
        of=_columns(rows, first, last, ids, rows["time_ns"][where]),
        first_snapshot=int(ids[0]) if len(ids) else -1,
        final_snapshot=int(ids[-1]) if len(ids) else -1,
    )
    _index(made)
    return made


def _columns(
    rows: npt.NDArray[np.void], first: Ids, last: Ids, ids: npt.NDArray[np.uint32], taken_ns: Ids
) -> SocketColumns:
    ends = rows[last]
    after = np.searchsorted(ids, ends["snapshot"], "right")
    times = np.append(taken_ns, NO_ID)
    return SocketColumns(
        first_ns=rows["time_ns"][first].tolist(),
        first_inode=rows["inode"][first].tolist(),
        first_state=rows["state"][first].tolist(),
        first_snapshot=rows["snapshot"][first].tolist(),
        last_ns=ends["time_ns"].tolist(),
        family=ends["family"].tolist(),
        protocol=ends["protocol"].tolist(),
        type=ends["type"].tolist(),
        state=ends["state"].tolist(),
        inode=ends["inode"].tolist(),
        cookie=ends["cookie"].tolist(),
        peer_inode=ends["peer_inode"].tolist(),
        netns=ends["netns"].tolist(),
        recv_q=ends["recv_q"].tolist(),
        send_q=ends["send_q"].tolist(),
        snapshot=ends["snapshot"].tolist(),
        gone_ns=times[after].tolist(),
    )


def _identify(rows: npt.NDArray[np.void]) -> Ids:
    """A group number for each row."""
    group = np.zeros(len(rows), np.int64)
    netns = rows["netns"]
    _, space = np.unique(netns, return_inverse=True)
    made = 0
    cookie = rows["cookie"]
    unix = rows["family"] == Family.UNIX
    by_cookie = cookie != 0
    by_inode = ~by_cookie & unix
    for chosen, number in ((by_cookie, cookie), (by_inode, rows["inode"])):
        at = np.nonzero(chosen)[0]
        if not len(at):
            continue
        if len(np.unique(space)) == 1:
            _, which = np.unique(number[at], return_inverse=True)
        else:
            _, which = np.unique(
                np.stack([space.reshape(-1)[at].astype(np.uint64), number[at]]), axis=1, return_inverse=True
            )
        which = which.reshape(-1)
        group[at] = which + made
        made += int(which.max()) + 1
    at = np.nonzero(~by_cookie & ~by_inode)[0]
    if len(at):
        key = np.zeros((len(at), 45), np.uint8)
        picked = rows[at]
        key[:, :16] = picked["local"]
        key[:, 16:32] = picked["peer"]
        key[:, 32:34] = picked["local_port"].astype("<u2").view(np.uint8).reshape(-1, 2)
        key[:, 34:36] = picked["peer_port"].astype("<u2").view(np.uint8).reshape(-1, 2)
        key[:, 36] = picked["protocol"]
        key[:, 37:45] = picked["netns"].astype("<u8").view(np.uint8).reshape(-1, 8)
        _, which = np.unique(key.view("V45").reshape(-1), return_inverse=True)
        group[at] = which.reshape(-1) + made
    return group


def _index(groups: SocketGroups) -> None:
    rows = groups.sockets.records[groups.last]
    for number, inode in enumerate(groups.inode):
        if inode:
            groups.by_inode[inode] = number
    inet = rows["family"] != Family.UNIX
    groups.listen_ports = frozenset(
        rows["local_port"][inet & (rows["state"] == TcpState.LISTEN) & (rows["protocol"] == IPPROTO_TCP)].tolist()
    )
    ends = np.nonzero(inet & (rows["peer_port"] != 0))[0]
    by_age = ends[np.argsort(groups.sockets.records["time_ns"][groups.first[ends]], kind="stable")]
    picked = rows[by_age]
    packed = picked["peer"].tobytes()
    by_key: defaultdict[EndKey, list[int]] = defaultdict(list)
    columns = zip(by_age.tolist(), picked["peer_port"].tolist(), picked["local_port"].tolist(), strict=True)
    for at, (number, peer_port, local_port) in enumerate(columns):
        peer = packed[at * 16 : at * 16 + 16]
        if peer.startswith(V4_MAPPED_PREFIX):
            peer = peer[12:]
        by_key[(peer, peer_port, local_port)].append(number)
    groups.by_key = dict(by_key)
