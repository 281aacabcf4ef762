"""A snapshot as wide text, for pipes and files: 100 000 lines in some 50 ms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sockscope.model.snapshot import Snapshot
from sockscope.model.sockaddr import V4_MAPPED_PREFIX, Family
from sockscope.model.sockets import OWNER_DTYPE, first_owners
from sockscope.model.tcp import TcpState
from sockscope.reports import text_columns as text
from sockscope.reports.escape import safe
from sockscope.reports.snapshot import PROTOCOLS, Hosts, cause_texts, info_texts, ordered, summary

_SHOWN = ("family", "protocol", "state", "recv_q", "send_q", "local", "local_port", "peer", "peer_port", "inode")
_UNCONNECTED = 256
_OWNERS_AT_MOST = 60
"""Columns; a few long lists must not push everything apart."""

Fields = dict[str, npt.NDArray[Any]]


def plain(snapshot: Snapshot, *, info: bool = False) -> str:
    """One line a socket, nothing cut. Ends with a line break."""
    return b"".join(plain_blocks(snapshot, info=info)).decode()


def plain_blocks(snapshot: Snapshot, *, info: bool = False) -> Iterator[bytes]:
    """The same in blocks, UTF-8."""
    order = ordered(snapshot)
    yield f"{summary(snapshot)}\n".encode()
    if not len(order):
        return
    records = snapshot.sockets.records
    # Only what is shown: rows are wide, and gathered as they are they cost four times as much.
    fields = {name: records[name][order] for name in _SHOWN}
    local, local_port, peer, peer_port = _ends(records, order, fields)
    owners = _owners(snapshot, fields["inode"])
    last = _last(snapshot, order, info=info)
    # No blanks at the end of a line.
    ends = last.lengths == 0
    ends_early = ends & (owners.lengths == 0)
    places, head = [], ""
    for title, column, behind, right, at_most, unless in (
        ("Proto", text.coded([PROTOCOLS.get(n, "?") for n in range(256)], fields["protocol"]), " ", False, 200, None),
        ("State", _states(fields), " ", False, 200, None),
        ("Recv-Q", text.numbers(fields["recv_q"]), " ", True, 200, None),
        ("Send-Q", text.numbers(fields["send_q"]), " ", True, 200, None),
        ("Local", local, ":", True, 200, None),
        ("Port", local_port, " ", False, 200, None),
        ("Peer", peer, ":", True, 200, None),
        ("Port", peer_port, " ", False, 200, ends_early),
        ("Owners", owners, " ", False, _OWNERS_AT_MOST, ends),
    ):
        width = column.width(title, at_most)
        head += (title.rjust(width) if right else title.ljust(width)) + behind
        places.append(text.Place(column=column, width=width, right=right, behind=behind, unless=unless))
    head += "Cause / info" if info else "Cause"
    yield f"{head}\n".encode()
    yield from text.blocks([*places, text.Place(column=last)])


def _states(fields: Fields) -> text.Column:
    names = [str(n) for n in range(256)]
    for state in TcpState:
        names[state] = state.name
    codes = fields["state"].astype(np.intp)
    # CLOSE of a datagram socket only says that it has no peer.
    codes[(fields["protocol"] != 6) & (fields["state"] == TcpState.CLOSE)] = _UNCONNECTED
    return text.coded([*names, "UNCONNECTED"], codes)


def _ends(
    records: npt.NDArray[np.void], order: npt.NDArray[np.int64], fields: Fields
) -> tuple[text.Column, text.Column, text.Column, text.Column]:
    """Local host and port, peer host and port; of unix sockets path and inode, and the peer's inode."""
    local, peer = _hosts(fields["local"]), _hosts(fields["peer"])
    ports, peer_ports = fields["local_port"], fields["peer_port"]
    unix = fields["family"] == Family.UNIX
    if unix.any():
        rows = np.flatnonzero(unix).tolist()
        paths = records["path"][order[unix]].tolist()
        names = [safe(path.decode("utf-8", "replace")) or "*" for path in paths]
        local = text.replaced(local, dict(zip(rows, names, strict=True)))
        peer = text.replaced(peer, dict.fromkeys(rows, "*"))
        ports = np.where(unix, fields["inode"], ports)
        peer_ports = np.where(unix, records["peer_inode"][order], peer_ports)
    return local, text.numbers(ports, zero="*"), peer, text.numbers(peer_ports, zero="*")


def _hosts(keys: npt.NDArray[np.uint8]) -> text.Column:
    """Addresses of 16 bytes, shape (n, 16)."""
    dot = text.constant(".", len(keys))
    a, b, c, d = (text.numbers(keys[:, at]) for at in range(12, 16))
    words = np.ascontiguousarray(keys).view(np.uint32)
    first, second, third = np.frombuffer(V4_MAPPED_PREFIX, np.uint32).tolist()
    v4 = (words[:, 0] == first) & (words[:, 1] == second) & (words[:, 2] == third)
    hosts = Hosts()
    others = np.flatnonzero(~v4).tolist()
    return text.replaced(text.joined(a, dot, b, dot, c, dot, d), {row: hosts[keys[row].tobytes()] for row in others})


def _owners(snapshot: Snapshot, inodes: npt.NDArray[np.uint64]) -> text.Column:
    """`comm[tgid] fd N`; several with commas between."""
    held = snapshot.sockets.owners
    # A last row that stands for "nobody", so that every socket has a first owner.
    table = np.concatenate([held, np.zeros(1, OWNER_DTYPE)])
    begin = first_owners(held, inodes)
    first = table[begin]
    tgids = np.sort(held["tgid"])
    known = tgids[np.flatnonzero(np.diff(tgids, prepend=-1))]
    names = [f"{safe(snapshot.comms.get(tgid, '?'))}[{tgid}] fd " for tgid in known.tolist()]
    column = text.joined(text.coded(names, np.searchsorted(known, first["tgid"])), text.numbers(first["fd"]))
    nobody = begin == len(held)
    texts = dict.fromkeys(np.flatnonzero(nobody).tolist(), "")
    named = dict(zip(known.tolist(), names, strict=True))
    same_as_next = np.append(held["inode"][1:] == held["inode"][:-1], [False, False])
    for row in np.flatnonzero(same_as_next[begin] & ~nobody).tolist():
        rows = held[begin[row] : np.searchsorted(held["inode"], inodes[row], "right")]
        each = zip(rows["tgid"].tolist(), rows["fd"].tolist(), strict=True)
        texts[row] = ", ".join(f"{named[tgid]}{fd}" for tgid, fd in each)
    return text.replaced(column, texts)


def _last(snapshot: Snapshot, order: npt.NDArray[np.int64], *, info: bool) -> text.Column:
    """The cause, and what `info` adds."""
    nothing = text.constant("", len(order))
    # Only rows that have something to say: rows are wide, and most have not.
    rows = np.arange(len(order)) if info else np.flatnonzero(snapshot.causes[order])
    chosen = order[rows]
    records = snapshot.sockets.records[chosen]
    texts = cause_texts(snapshot, chosen, records)
    if info:
        more = info_texts(records)
        texts = [f"{cause}  {rest}" if cause else rest for cause, rest in zip(texts, more, strict=True)]
    return text.replaced(nothing, {row: found for row, found in zip(rows.tolist(), texts, strict=True) if found})
