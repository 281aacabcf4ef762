"""What the kernel did to sockets: decoded in bulk, and given to the connections they are the sockets of.

There may be ten a connection, so none is replayed one by one. Cookie first; a socket has none before somebody
asked for it, so one life of a 4-tuple (from its opening to its CLOSE) is taken as a whole, and lives without a
cookie that a snapshot shows are matched by addresses and time. Both ends of a loopback connection are told of:
the target's is the one whose local port is the connection's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sockscope.analysis.joining.kernel_match import Ends, Lives, match
from sockscope.analysis.replay.control import IS_KERNEL
from sockscope.model.calls import Call
from sockscope.model.columns import rows_of
from sockscope.model.connections import Connection, Protocol
from sockscope.model.events import Events, Section
from sockscope.model.ids import NO_ID
from sockscope.model.kernel import KERNEL_EVENT_DTYPE
from sockscope.model.sockaddr import encode_key
from sockscope.model.tcp import TcpState

Ids = npt.NDArray[np.int64]

_SOCKADDR_BYTES = 28
_BLOB = np.dtype(
    {
        "names": [
            "kind", "bytes", "local_port", "local",
            "peer_kind", "peer_bytes", "peer_port", "peer",
        ],
        "formats": ["u1", "<u4", ">u2", ("u1", (16,)), "u1", "<u4", ">u2", ("u1", (16,))],
        "offsets": [0, 4, 10, 16, 36, 40, 46, 52],
        "itemsize": 72,
    }
)  # fmt: skip
"""SOCKADDR and PEER, each a header of 8 bytes and a struct sockaddr_in6 (ipv6(7))."""


def decode_kernel_events(events: Events, rows: Ids | None = None) -> npt.NDArray[np.void]:
    """Kernel events (all, or those rows), in order of time: shape (k,), KERNEL_EVENT_DTYPE.

    One without both addresses (cut off, or damaged) keeps its cookie and has zeros for addresses. A change from a
    state to itself (close after shutdown) is none and is left out.
    """
    if rows is None:
        rows = rows_of(events.records, lambda part: IS_KERNEL[part["call"]])
    # Column by column: rows taken whole would be copied whole.
    records, args = events.records, events.records["args"]
    call, time_ns, old, new = records["call"][rows], records["exit_ns"][rows], args[:, 1][rows], args[:, 2][rows]
    order = np.argsort(time_ns, kind="stable")
    nothing = (call == Call.sock_state) & (old == new)
    if nothing.any():
        order = order[~nothing[order]]
    rows, call, time_ns = rows[order], call[order], time_ns[order]
    told = np.zeros(len(rows), KERNEL_EVENT_DTYPE)
    if not len(rows):
        return told
    told["time_ns"] = time_ns
    told["event"] = rows
    told["cookie"] = args[:, 0][rows]
    told["call"] = call
    told["old"] = old[order].astype(np.uint8)
    told["new"] = np.where(call == Call.sock_state, new[order].astype(np.uint8), 0)
    at = records["blob_offset"][rows].astype(np.int64)
    whole = np.flatnonzero(
        (records["blob_bytes"][rows] == _BLOB.itemsize) & (at >= 0) & (at + _BLOB.itemsize <= len(events.blob))
    )
    at = at[whole]
    if len(whole):
        ends = np.lib.stride_tricks.sliding_window_view(events.blob, _BLOB.itemsize)[at].view(_BLOB)[:, 0]
        good = (ends["kind"] == Section.SOCKADDR) & (ends["peer_kind"] == Section.PEER)
        good &= (ends["bytes"] == _SOCKADDR_BYTES) & (ends["peer_bytes"] == _SOCKADDR_BYTES)
        whole, ends = whole[good], ends[good]
        for name in ("local", "peer", "local_port", "peer_port"):
            told[name][whole] = ends[name]
    return told


def join_kernel_events(told: npt.NDArray[np.void], connections: Sequence[Connection]) -> npt.NDArray[np.int32]:
    """The connection of each kernel event: shape (k,), int32, -1 none.

    Args:
        told: as `decode_kernel_events` gives them.
    """
    found = _by_cookie(told["cookie"], connections)
    complete = np.flatnonzero((told["peer_port"] != 0) & (told["local_port"] != 0))
    if not len(complete):
        return found
    lives, order, starts = _lives(told, complete, found)
    taken = set(lives.connection.tolist())
    free = [c for c in connections if c.id not in taken and c.protocol is Protocol.TCP and c.peer and c.local]
    if free:
        match(lives, _ends(free))
    of_life = np.repeat(lives.connection, np.diff(np.append(starts, len(order))))
    found[order] = np.where(found[order] >= 0, found[order], of_life)
    _of_same_cookie(told, found)
    return found


def _of_same_cookie(told: npt.NDArray[np.void], found: npt.NDArray[np.int32]) -> None:
    """What came before the local port was chosen (CLOSE → SYN_SENT) is known by its cookie alone."""
    cookies = told["cookie"]
    lacking = np.flatnonzero((found < 0) & (cookies != 0) & (told["local_port"] == 0))
    if not len(lacking):
        return
    known = np.flatnonzero((found >= 0) & np.isin(cookies, cookies[lacking]))
    if not len(known):
        return
    numbers, at = np.unique(cookies[known], return_index=True)
    place = np.minimum(np.searchsorted(numbers, cookies[lacking]), len(numbers) - 1)
    hit = numbers[place] == cookies[lacking]
    found[lacking[hit]] = found[known[at[place[hit]]]]


def _by_cookie(cookies: npt.NDArray[np.uint64], connections: Sequence[Connection]) -> npt.NDArray[np.int32]:
    found = np.full(len(cookies), NO_ID, np.int32)
    known = [(c.cookie, c.id) for c in connections if c.cookie]
    if not known:
        return found
    numbers = np.array([cookie for cookie, _ in known], np.uint64)
    ids = np.array([number for _, number in known], np.int32)
    by_number = np.argsort(numbers, kind="stable")
    numbers, ids = numbers[by_number], ids[by_number]
    at = np.minimum(np.searchsorted(numbers, cookies), len(numbers) - 1)
    hit = (numbers[at] == cookies) & (cookies != 0)
    found[hit] = ids[at[hit]]
    return found


def _lives(told: npt.NDArray[np.void], complete: Ids, found: npt.NDArray[np.int32]) -> tuple[Lives, Ids, Ids]:
    """Cut the events of each 4-tuple into lives of one socket each.

    Returns:
        The lives; the events in order of life; and where in that order each life begins.
    """
    local, peer = told["local"][complete], told["peer"][complete]
    local_port, peer_port = told["local_port"][complete], told["peer_port"][complete]
    key = pair_key(local, local_port, peer, peer_port)
    by_key = np.argsort(key, kind="stable")
    order, key = complete[by_key], key[by_key]
    place = np.arange(len(order))
    change = (told["call"] == Call.sock_state)[order]
    fresh = np.append(True, key[1:] != key[:-1])
    former = np.append(-1, np.maximum.accumulate(np.where(change, place, -1))[:-1])
    known = (former >= 0) & (key[former] == key)
    old, new, cookie = told["old"][order], told["new"][order], told["cookie"][order]
    ended = known & (new[former] == TcpState.CLOSE)
    opened = (old == TcpState.CLOSE) | (old == TcpState.LISTEN)
    opened |= (old == TcpState.SYN_RECV) & ~(known & (new[former] == TcpState.SYN_RECV))
    another = known & (cookie != 0) & (cookie[former] != 0) & (cookie != cookie[former])
    starts = np.flatnonzero(fresh | (change & (ended | opened | another)))
    last = np.append(starts[1:], len(order)) - 1
    connection = np.maximum.reduceat(found[order], starts)
    first, times = by_key[starts], told["time_ns"]
    lives = Lives(
        first_ns=times[order[starts]],
        last_ns=times[order[last]],
        local=local[first],
        peer=peer[first],
        local_port=local_port[first],
        peer_port=peer_port[first],
        connection=connection.astype(np.int32),
    )
    return lives, order, starts


def pair_key(
    local: npt.NDArray[np.uint8],
    local_port: npt.NDArray[np.uint16],
    peer: npt.NDArray[np.uint8],
    peer_port: npt.NDArray[np.uint16],
) -> npt.NDArray[np.uint64]:
    """One number a pair of ends: equal where and only where the pairs are. shape (n,), uint64."""
    ports = local_port.astype(np.uint64) << np.uint64(16) | peer_port
    words = [np.ascontiguousarray(end).view("<u4") for end in (local, peer)]
    columns = [ports, *(word[:, at].astype(np.uint64) for word in words for at in range(4))]
    # Most sessions have one local address, and all of one family: few columns tell anything.
    telling = [column for column in columns if len(column) and (column != column[0]).any()]
    while len(telling) > 2:
        one, other = telling.pop(), telling.pop()
        codes = np.unique(one << np.uint64(32) | other, return_inverse=True)[1]
        telling.append(codes.reshape(-1).astype(np.uint64))
    if not telling:
        return np.zeros(len(local_port), np.uint64)
    return telling[0] if len(telling) == 1 else telling[0] << np.uint64(32) | telling[1]


def _ends(connections: Sequence[Connection]) -> Ends:
    """The connections' ends and beginnings as columns."""
    count = len(connections)
    sides = []
    for addresses in ([c.local for c in connections], [c.peer for c in connections]):
        keys = b"".join(encode_key(a) if a is not None else bytes(16) for a in addresses)
        ports = np.fromiter((a.port if a is not None else 0 for a in addresses), np.uint16, count)
        sides.append((np.frombuffer(keys, np.uint8).reshape(-1, 16), ports))
    (local, local_port), (peer, peer_port) = sides
    return Ends(
        id=np.fromiter((c.id for c in connections), np.int32, count),
        local=local,
        peer=peer,
        local_port=local_port,
        peer_port=peer_port,
        # :: or v4-mapped 0.0.0.0
        any_local=~(local[:, :10] != 0).any(axis=1) & ~(local[:, 12:] != 0).any(axis=1),
        first_ns=np.fromiter((c.first_ns for c in connections), np.int64, count),
        accepted=np.fromiter((c.listener >= 0 for c in connections), np.bool_, count),
    )
