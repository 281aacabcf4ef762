"""Text of `ss` and `netstat` as a socket table: any number of files, each with any number of listings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.errors import DamagedInputError
from sockscope.model.facts import PROCESS_FACT_DTYPE, Facts, Relation
from sockscope.model.info import SocketCoverage
from sockscope.model.sockaddr import Family
from sockscope.model.sockets import OWNER_DTYPE, STAND_IN_INODE, Sockets
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.text.covers import ListingCovers, coverage_of, covers_of, without_inode
from sockscope.sources.sockets.text.ends import WILDCARD_FAMILY, Ends
from sockscope.sources.sockets.text.lines import TextFile, read_file
from sockscope.sources.sockets.text.looks import looks_like
from sockscope.sources.sockets.text.snapshots import Listing, listings_of
from sockscope.sources.sockets.text.table import UNTOLD_INODE, SocketTable
from sockscope.sources.sockets.text.vocabulary import TCP, UDP, UNTOLD_PROTOCOL
from sockscope.sources.unread import UNREAD_KEPT, UnreadLine

Rows = npt.NDArray[np.void]

GOOD_COMMAND: Final = "(date -Is; ss -tanpeimo) >> listing.txt"
_V4_ANY = np.frombuffer(bytes(10) + b"\xff\xff" + bytes(4), np.uint8)


@dataclass(frozen=True, kw_only=True)
class SocketText:
    """What listings tell.

    Attributes:
        sockets: rows of all snapshots, in order of time, stamped CLOCK_REALTIME; the owners are those of the last
            snapshot. Where the text has no inodes they are made up, from `STAND_IN_INODE` on.
        comms: tgid → name, of the owners.
        times_known: one a snapshot: a time stood in the text; else the file's stands in, less for earlier ones.
        unread: the first lines that could not be read, in the order of the files.
        notes: what the user should know, one line each.
        covers: what the listings were asked for.
        coverage: the same for `SessionInfo.sockets`.
    """

    sockets: Sockets
    comms: Mapping[int, str]
    snapshot_count: int
    times_known: tuple[bool, ...]
    unread: tuple[UnreadLine, ...]
    unread_count: int
    notes: tuple[str, ...]
    covers: ListingCovers
    coverage: SocketCoverage

    @cached_property
    def facts(self) -> Facts:
        """The names of the owners as facts of a session, which so knows them."""
        rows = np.zeros(len(self.comms), PROCESS_FACT_DTYPE)
        times = self.sockets.records["time_ns"]
        rows["time_ns"] = times[-1] if len(times) else 0
        rows["tgid"] = list(self.comms)
        rows["ppid"] = rows["init_tgid"] = 0
        rows["ns_tgid"] = rows["tgid"]
        rows["relation"] = Relation.PEER
        rows["state"] = b"S"
        rows["comm"] = [comm.encode("utf-8", "replace")[:16] for comm in self.comms.values()]
        return Facts(processes=rows)


def read_socket_texts(paths: Sequence[Path]) -> SocketText:
    """Read listings.

    Args:
        paths: text of ss or netstat, gzip too; one or many snapshots in each.

    Raises:
        DamagedInputError: nothing in them could be read.
        UsageError: one cannot be opened.
    """
    table, ends = SocketTable(), Ends()
    files = [read_file(path, table, ends) for path in paths]
    if not len(table):
        raise _nothing(files)
    rows = table.records()
    by_netstat = np.zeros(len(rows), np.bool_)
    for file in files:
        for section in file.sections:
            part = slice(section.start, section.stop)
            by_netstat[part] = section.netstat
            _tell_kinds(rows[part])
        if file.sections:
            _tell_wildcards(rows[file.sections[0].start : file.sections[-1].stop])
    listings = listings_of(files, rows)
    place = _place(rows, listings)
    held = table.holders()
    owned = np.zeros(len(rows), np.bool_)
    owned[held[:, 0]] = True
    covers = covers_of(rows, owned, by_netstat)
    queued = _tell_inodes(rows, owned)
    owners = _owners(rows, held)
    known = tuple(listing.known for listing in listings)
    return SocketText(
        sockets=Sockets(records=rows[place], owners=owners),
        comms=dict(table.comms),
        snapshot_count=len(listings),
        times_known=known,
        unread=tuple(line for file in files for line in file.unread)[:UNREAD_KEPT],
        unread_count=sum(file.unread_count for file in files),
        notes=_notes(files, listings, covers, queued),
        covers=covers,
        coverage=coverage_of(covers, rows, len(listings), times_known=all(known)),
    )


def _tell_kinds(rows: Rows) -> None:
    """Rows of a table without Netid: `ss -uan`, or else TCP."""
    untold = rows["protocol"] == UNTOLD_PROTOCOL
    if not untold.any():
        return
    mine = rows[untold]
    datagrams = np.isin(mine["state"], [TcpState.ESTABLISHED, TcpState.CLOSE])
    unconnected = (mine["state"] == TcpState.CLOSE) & (mine["has_info"] == 0)
    rows["protocol"][untold] = UDP if datagrams.all() and unconnected.any() else TCP


def _tell_wildcards(rows: Rows) -> None:
    """`*` is any IPv6 address (and so any IPv4 one), but in old versions any IPv4 address.

    Those write it for the peer of an IPv4 listener, where newer ones write 0.0.0.0; and they show a port listened on
    by both families as `*` and `[::]`, which to newer ones would be the same port twice.
    """
    untold = rows["family"] == WILDCARD_FAMILY
    if not untold.any():
        return
    no_local, no_peer = ~rows["local"].any(axis=1), ~rows["peer"].any(axis=1)
    port = rows["protocol"].astype(np.int64) << 16 | rows["local_port"]
    bound = rows["peer_port"] == 0
    old = bool(((rows["family"] == Family.INET) & bound & no_peer).any())
    old |= bool(np.isin(port[untold & bound], port[(rows["family"] == Family.INET6) & bound & no_local]).any())
    rows["family"][untold] = Family.INET if old else Family.INET6
    if old:
        rows["local"][untold] = _V4_ANY
    # The peer of whoever is bound to an IPv4 address is of that family too.
    rows["peer"][np.flatnonzero((rows["family"] == Family.INET) & no_peer)] = _V4_ANY


def _place(rows: Rows, listings: Sequence[Listing]) -> npt.NDArray[np.int64]:
    """Stamp the rows, and give their order by snapshot."""
    for number, listing in enumerate(listings):
        for section in listing.sections:
            part = slice(section.start, section.stop)
            rows["snapshot"][part] = number
            rows["time_ns"][part] = listing.time_ns
    return np.argsort(rows["snapshot"], kind="stable").astype(np.int64, copy=False)


def _tell_inodes(rows: Rows, owned: npt.NDArray[np.bool_]) -> int:
    """Give rows without an inode one that is none of the kernel's, and 0 to those that surely have none.

    Without -e, inode 0 of a connection in an accept queue is not told. It follows where the listener's holder is
    shown, and as many connections to its port have no holder as it says are waiting.

    Returns:
        How many were so found to wait.
    """
    untold = rows["inode"] == UNTOLD_INODE
    if not untold.any():
        return 0
    stand_ins = STAND_IN_INODE + np.arange(len(rows), dtype=np.uint64)
    rows["inode"][untold] = stand_ins[untold]
    rows["inode"][untold & without_inode(rows)] = 0
    tcp = rows["protocol"] == TCP
    listening = tcp & (rows["state"] == TcpState.LISTEN)
    waiting = np.isin(rows["state"], [TcpState.ESTABLISHED, TcpState.CLOSE_WAIT]) & tcp & untold & ~owned
    key = rows["snapshot"].astype(np.int64) << 16 | rows["local_port"]
    candidates = np.flatnonzero(waiting & np.isin(key, key[listening & (rows["recv_q"] > 0)]))
    found = 0
    for one in np.unique(key[candidates]).tolist():
        mine, queues = candidates[key[candidates] == one], np.flatnonzero(listening & (key == one))
        if owned[queues].all() and int(rows["recv_q"][queues].sum()) == len(mine):
            rows["inode"][mine] = 0
            found += len(mine)
    return found


def _owners(rows: Rows, held: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Who holds the sockets of the last snapshot of their protocol, each descriptor once (-T tells every thread's)."""
    last = np.zeros(256, np.uint32)
    np.maximum.at(last, rows["protocol"], rows["snapshot"])
    held = held[rows["snapshot"][held[:, 0]] == last[rows["protocol"][held[:, 0]]]]
    owners = np.zeros(len(held), OWNER_DTYPE)
    owners["inode"] = rows["inode"][held[:, 0]]
    owners["tgid"], owners["fd"] = held[:, 1], held[:, 2]
    return np.unique(owners[owners["inode"] != 0])


def _notes(
    files: Sequence[TextFile], listings: Sequence[Listing], covers: ListingCovers, queued: int
) -> tuple[str, ...]:
    notes = [note for file in files for note in file.notes]
    guessed = sum(not listing.known for listing in listings)
    if guessed:
        notes.append(
            f"{guessed} of {len(listings)} socket listings have no time in them: the file's stands in, and how long "
            "anything lasted between them is not known; write `date -Is` before each"
        )
    if any(listing.known and not listing.zoned for listing in listings):
        notes.append("the socket listings do not say their time zone: this machine's was taken; `date -Is` says it")
    lacks = []
    if not covers.has_owners:
        lacks.append("no processes (ss -p, as root)")
    if not covers.has_inodes:
        lacks.append("no inodes (-e): what waits for accept cannot be told from what somebody holds")
    if not covers.has_listeners:
        lacks.append("no listeners (-a)")
    if lacks:
        notes.append("the socket listings have " + ", ".join(lacks))
    if queued:
        notes.append(
            f"{queued} connections without a holder are taken to wait for accept: "
            "as many does the Recv-Q of their listeners count"
        )
    others = sum(file.other_count for file in files)
    if others:
        notes.append(f"{others} lines of the socket listings are of other kinds (netlink, raw, packet …) and left out")
    return tuple(notes)


def _nothing(files: Sequence[TextFile]) -> DamagedInputError:
    file = max(files, key=lambda one: one.line_count, default=None)
    if file is None:
        return DamagedInputError("no socket listings were named", help_text=f"make one: {GOOD_COMMAND}")
    return DamagedInputError(
        f"no socket in {file.path}: {looks_like(file)}", help_text=f"make a listing so: {GOOD_COMMAND}"
    )
