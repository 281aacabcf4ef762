"""Socket rows of many snapshots, grouped into the sockets they show."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sockscope.model.connections import Protocol
from sockscope.model.sockaddr import Address, Family, encode_key, from_key
from sockscope.model.sockets import Sockets
from sockscope.model.tcp import TcpState

Ids = npt.NDArray[np.int64]
IPPROTO_TCP = 6
IPPROTO_UDP = 17
SOCK_DGRAM = 2

EndKey = bytes
"""Peer address (16 bytes, v4-mapped), peer port, local port (2 bytes each, little endian)."""


def end_key(peer: Address, local_port: int) -> EndKey:
    """What identifies a connection to a listener without its local address."""
    return encode_key(peer) + peer.port.to_bytes(2, "little") + local_port.to_bytes(2, "little")


@dataclass(kw_only=True)
class SocketGroups:
    """Sockets as snapshots show them: group g is one socket. Columns have shape (groups,).

    Attributes:
        group: shape (rows,), the group of each row.
        first, last: its first and last row.
        inode: the last inode that was not 0 (a socket in the accept queue has none yet).
        by_key: end key → groups, oldest first (TCP and UDP with a peer).
        by_inode: inode → group.
    """

    sockets: Sockets
    group: Ids
    first: Ids
    last: Ids
    inode: Ids
    by_key: dict[EndKey, list[int]] = field(default_factory=dict)
    by_inode: dict[int, int] = field(default_factory=dict)
    listen_ports: frozenset[int] = frozenset()
    snapshot_ns: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    """When each snapshot was taken, by its place in `snapshot_ids`."""
    snapshot_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.last)


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
        inode=inode,
        snapshot_ids=ids.astype(np.int64),
        snapshot_ns=rows["time_ns"][where].astype(np.int64),
    )
    _index(made)
    return made


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
    for number, inode in enumerate(groups.inode.tolist()):
        if inode:
            groups.by_inode[inode] = number
    inet = rows["family"] != Family.UNIX
    groups.listen_ports = frozenset(
        rows["local_port"][inet & (rows["state"] == TcpState.LISTEN) & (rows["protocol"] == IPPROTO_TCP)].tolist()
    )
    ends = np.nonzero(inet & (rows["peer_port"] != 0))[0]
    key = np.zeros((len(ends), 20), np.uint8)
    key[:, :16] = rows["peer"][ends]
    key[:, 16:18] = rows["peer_port"][ends].astype("<u2").view(np.uint8).reshape(-1, 2)
    key[:, 18:20] = rows["local_port"][ends].astype("<u2").view(np.uint8).reshape(-1, 2)
    by_key: defaultdict[EndKey, list[int]] = defaultdict(list)
    packed = key.tobytes()
    by_age = np.argsort(groups.sockets.records["time_ns"][groups.first[ends]], kind="stable").tolist()
    numbers = ends.tolist()
    for at in by_age:
        by_key[packed[at * 20 : at * 20 + 20]].append(numbers[at])
    groups.by_key = dict(by_key)


def row_addresses(row: np.void) -> tuple[Address | None, Address | None]:
    """(local, peer) of one row; None for what it does not say."""
    if int(row["family"]) == Family.UNIX:
        path = bytes(row["path"])
        name = b"\0" + path[1:] if path[:1] == b"@" else b"" if path == b"*" else path
        return Address(family=Family.UNIX, packed=name), None
    local = from_key(row["local"].tobytes(), int(row["local_port"]))
    peer_port = int(row["peer_port"])
    return local, from_key(row["peer"].tobytes(), peer_port) if peer_port else None


def row_protocol(row: np.void) -> Protocol:
    if int(row["family"]) == Family.UNIX:
        return Protocol.UNIX
    return Protocol.UDP if int(row["protocol"]) == IPPROTO_UDP else Protocol.TCP
