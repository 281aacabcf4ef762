"""A snapshot of sockets as text, as a table on a terminal, and as JSON.

Text is made column by column: 100 000 sockets are 100 000 lines in a tenth of a second. Everything that comes
from the target (comm, unix names) is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sockscope.model.snapshot import Cause, Snapshot
from sockscope.model.sockaddr import Address, Family
from sockscope.model.tcp import TcpState
from sockscope.reports.escape import safe

if TYPE_CHECKING:
    from rich.table import Table

JSON_SCHEMA = "sockscope-snapshot/1"
TABLE_ROWS = 2000
"""Up to so many rows are shown whole on a terminal."""
ROWS_OF_MANY = 200
"""Above, only so many, the unusual first."""

_ORDER = (
    TcpState.CLOSE_WAIT,
    TcpState.LAST_ACK,
    TcpState.CLOSING,
    TcpState.FIN_WAIT1,
    TcpState.FIN_WAIT2,
    TcpState.SYN_RECV,
    TcpState.SYN_SENT,
    TcpState.LISTEN,
    TcpState.ESTABLISHED,
    TcpState.CLOSE,
    TcpState.TIME_WAIT,
)
"""Unusual first: what people look for is on top."""

_INFO = ("rtt_us", "cwnd", "total_retrans", "unacked", "last_data_sent_ms", "last_data_recv_ms")
_INFO_LONG = ("bytes_acked", "bytes_received")
PROTOCOLS = {6: "tcp", 17: "udp", 0: "unix"}
_FAMILIES = {Family.INET: "inet", Family.INET6: "inet6", Family.UNIX: "unix"}
_UNIX_TYPES = {1: "stream", 2: "dgram", 5: "seqpacket"}


class Hosts(dict[bytes, str]):
    """Address bytes → text, each made once. Trailing zero bytes are missing in the key (numpy cuts them)."""

    def __missing__(self, key: bytes) -> str:
        address = Address.inet(key.ljust(16, b"\0"), 0)
        text = address.host if address.family == Family.INET else f"[{address.host}]"
        self[key] = text
        return text


class _Numbers(dict[int, str]):
    """Numbers → text, each made once."""

    def __missing__(self, key: int) -> str:
        self[key] = text = str(key)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The rows of a snapshot in order of interest, as text columns, all of the same length."""

    kind: list[str]
    state: list[str]
    recv_q: list[int]
    send_q: list[int]
    local_host: list[str]
    local_port: list[str]
    peer_host: list[str]
    peer_port: list[str]
    owners: list[str]
    cause: list[str]
    info: list[str]


def ordered(snapshot: Snapshot) -> npt.NDArray[np.int64]:
    """Row numbers, unusual states first; within a state as the kernel gave them."""
    rank = np.full(256, len(_ORDER), np.uint8)
    rank[list(_ORDER)] = np.arange(len(_ORDER))
    return np.argsort(rank[snapshot.sockets.records["state"]], kind="stable")


def columns(snapshot: Snapshot, order: npt.NDArray[np.int64], *, info: bool = False) -> Columns:
    """Text for the rows `order`."""
    records = snapshot.sockets.records[order]
    unix = records["family"] == Family.UNIX
    hosts = Hosts()
    local, local_port = _endpoint(records, "local", hosts)
    peer, peer_port = _endpoint(records, "peer", hosts)
    for row in np.flatnonzero(unix).tolist():
        local[row] = safe(records["path"][row].decode("utf-8", "replace")) or "*"
        local_port[row] = str(records["inode"][row])
        peer[row], peer_port[row] = "*", str(records["peer_inode"][row])
    return Columns(
        kind=[PROTOCOLS.get(p, "?") for p in records["protocol"].tolist()],
        state=_state_names(records),
        recv_q=records["recv_q"].tolist(),
        send_q=records["send_q"].tolist(),
        local_host=local,
        local_port=local_port,
        peer_host=peer,
        peer_port=peer_port,
        owners=_owner_texts(snapshot, records),
        cause=cause_texts(snapshot, order, records),
        info=info_texts(records) if info else [],
    )


def _endpoint(records: npt.NDArray[np.void], side: str, hosts: Hosts) -> tuple[list[str], list[str]]:
    keys = np.ascontiguousarray(records[side]).view("S16").ravel().tolist()
    # Looked up: a hundred thousand str() calls are dearer than the table.
    texts = ["*", *map(str, range(1, 65536))] if len(records) > 20_000 else _Numbers({0: "*"})
    return list(map(hosts.__getitem__, keys)), list(map(texts.__getitem__, records[f"{side}_port"].tolist()))


def _state_names(records: npt.NDArray[np.void]) -> list[str]:
    names = [str(n) for n in range(256)]
    for state in TcpState:
        names[state] = state.name
    texts = list(map(names.__getitem__, records["state"].tolist()))
    # CLOSE of a datagram socket only says that it has no peer.
    plain = (records["protocol"] != 6) & (records["state"] == TcpState.CLOSE)
    for row in np.flatnonzero(plain).tolist():
        texts[row] = "UNCONNECTED"
    return texts


def _owner_spans(snapshot: Snapshot, records: npt.NDArray[np.void]) -> tuple[list[int], list[int]]:
    """For each row, where its owners begin and end in the owner table (which is sorted by inode)."""
    held = snapshot.sockets.owners["inode"]
    inodes = records["inode"]
    return np.searchsorted(held, inodes, "left").tolist(), np.searchsorted(held, inodes, "right").tolist()


def _owner_texts(snapshot: Snapshot, records: npt.NDArray[np.void]) -> list[str]:
    tgids, fds = _pair(snapshot.sockets.owners)
    names = {tgid: f"{safe(snapshot.comms.get(tgid, '?'))}[{tgid}] fd " for tgid in set(tgids)}
    each = list(map(add, map(names.__getitem__, tgids), map(_Numbers().__getitem__, fds)))
    return [
        "" if begin == end else each[begin] if end - begin == 1 else ", ".join(each[begin:end])
        for begin, end in zip(*_owner_spans(snapshot, records), strict=True)
    ]


def _pair(owners: npt.NDArray[np.void]) -> tuple[list[int], list[int]]:
    return owners["tgid"].tolist(), owners["fd"].tolist()


_WORDS = {
    Cause.OWNED: "owned: the peer has closed, the program holds on to it",
    Cause.NEVER_ACCEPTED: "never accepted: waits in the listener's queue",
    Cause.ORPHANED: "orphaned: no process holds it by a descriptor",
    Cause.HIDDEN_OWNER: "its owner cannot be seen (run as root, or in its pid namespace)",
    Cause.CLOSED_HERE: "closed by the program",
    Cause.HALF_CLOSED: "shut down for writing, still held",
    Cause.QUEUE_WAITING: "{recv_q} waiting for accept (limit {send_q})",
    Cause.QUEUE_FULL: "accept queue full: {recv_q} waiting, limit {send_q}",
    Cause.RETRANSMITTING: "retransmitting ({retransmits} times): the peer does not answer",
    Cause.ZERO_WINDOW: "the peer's window is closed: it does not read",
    Cause.HANDSHAKE: "handshake not finished",
}
_CLOSING_WORDS = {
    TcpState.FIN_WAIT1: "our FIN is not acknowledged yet",
    TcpState.FIN_WAIT2: "the peer has not sent its FIN",
    TcpState.CLOSING: "both sides closed at once",
    TcpState.LAST_ACK: "our FIN is not acknowledged yet",
}


def explanation(cause: int, row: np.void) -> str:
    """One row's cause in words; empty where there is nothing to explain.

    Args:
        row: of SOCKET_DTYPE.
    """
    words = _WORDS.get(Cause(cause), "")
    state = int(row["state"])
    if cause in (Cause.CLOSED_HERE, Cause.HALF_CLOSED) and state in _CLOSING_WORDS:
        words += f"; {_CLOSING_WORDS[TcpState(state)]}"
    return words.format(recv_q=row["recv_q"], send_q=row["send_q"], retransmits=row["retransmits"])


def cause_texts(snapshot: Snapshot, order: npt.NDArray[np.int64], records: npt.NDArray[np.void]) -> list[str]:
    found = snapshot.causes[order]
    texts = [""] * len(order)
    # The same state and queues read the same: most texts are made once.
    made: dict[tuple[int, int, int, int, int], str] = {}
    rows = np.flatnonzero(found)
    names = ("state", "recv_q", "send_q", "retransmits")
    fields = zip(found[rows].tolist(), *(records[name][rows].tolist() for name in names), strict=True)
    for row, key in zip(rows.tolist(), fields, strict=True):
        text = made.get(key)
        if text is None:
            text = made[key] = explanation(key[0], records[row])
        texts[row] = text
    return texts


def info_texts(records: npt.NDArray[np.void]) -> list[str]:
    values = zip(*(records[name].tolist() for name in ("has_info", *_INFO)), strict=True)
    return [
        f"rtt {rtt / 1000:.3g} ms, cwnd {cwnd}, retrans {retrans}, unacked {unacked}, idle out {out} in {into} ms"
        if has_info
        else ""
        for has_info, rtt, cwnd, retrans, unacked, out, into in values
    ]


def summary(snapshot: Snapshot) -> str:
    """Counts by state on one line: `TCP 6: CLOSE_WAIT 2 (1 owned, 1 never accepted), LISTEN 1, …`."""
    records = snapshot.sockets.records
    parts = []
    for protocol, name in PROTOCOLS.items():
        mine = records["protocol"] == protocol
        if mine.any():
            parts.append(f"{name.upper()} {int(mine.sum())}: {', '.join(_state_counts(snapshot, mine))}")
    if snapshot.unreadable_count:
        parts.append(f"{snapshot.unreadable_count} processes could not be read (run as root to see their sockets)")
    return "; ".join(parts) or "no sockets"


def _state_counts(snapshot: Snapshot, mine: npt.NDArray[np.bool_]) -> Iterator[str]:
    states = snapshot.sockets.records["state"][mine]
    counts = np.bincount(states, minlength=256)
    for state in (*_ORDER, TcpState.NEW_SYN_RECV, TcpState.UNKNOWN):
        if not counts[state]:
            continue
        text = f"{state.name} {counts[state]}"
        if state == TcpState.CLOSE_WAIT:
            why = np.bincount(snapshot.causes[mine][states == state], minlength=len(Cause))
            known = [c for c in (Cause.OWNED, Cause.NEVER_ACCEPTED, Cause.ORPHANED, Cause.HIDDEN_OWNER) if why[c]]
            text += " (" + ", ".join(f"{why[c]} {c.slug.replace('-', ' ')}" for c in known) + ")" if known else ""
        yield text


_STYLES = {
    "CLOSE_WAIT": "bold red",
    "LAST_ACK": "yellow",
    "CLOSING": "yellow",
    "FIN_WAIT1": "yellow",
    "FIN_WAIT2": "yellow",
    "SYN_RECV": "magenta",
    "SYN_SENT": "magenta",
    "LISTEN": "cyan",
    "ESTABLISHED": "green",
}


def table(
    snapshot: Snapshot, *, info: bool = False, rows: int | None = None, narrow: bool = False
) -> tuple[Table, int]:
    """A table for a terminal (no markup of the target's is interpreted), and how many rows it leaves out.

    Args:
        rows: at most so many; None: all up to `TABLE_ROWS`, else `ROWS_OF_MANY`.
        narrow: fewer columns, for a terminal of 80: queues in one, owners and cause in one.
    """
    from rich.table import Table
    from rich.text import Text

    order = ordered(snapshot)
    limit = rows if rows is not None else len(order) if len(order) <= TABLE_ROWS else ROWS_OF_MANY
    cells = columns(snapshot, order[:limit], info=info)
    out = Table(box=None, pad_edge=False, header_style="bold")
    out.add_column("State", no_wrap=True)
    for title in ("Q r/s",) if narrow else ("Recv-Q", "Send-Q"):
        out.add_column(title, justify="right", no_wrap=True)
    # An address and port stay on one line; only long unix names are folded.
    out.add_column("Local", overflow="fold", min_width=_address_width(cells.local_host, cells.local_port))
    out.add_column("Peer", overflow="fold", min_width=_address_width(cells.peer_host, cells.peer_port))
    for title in ("Owners, cause",) if narrow else ("Owners", "Cause"):
        out.add_column(title, overflow="fold")
    several = len(set(cells.kind)) > 1
    for at in range(len(cells.state)):
        state = cells.state[at]
        queues = (str(cells.recv_q[at]), str(cells.send_q[at]))
        why = "\n".join(text for text in (cells.cause[at], cells.info[at] if info else "") if text)
        who = (cells.owners[at], why)
        out.add_row(
            Text(f"{cells.kind[at]} {state}" if several else state, style=_STYLES.get(state, "")),
            *map(Text, ("/".join(queues),) if narrow else queues),
            Text(f"{cells.local_host[at]}:{cells.local_port[at]}"),
            Text(f"{cells.peer_host[at]}:{cells.peer_port[at]}"),
            *map(Text, ("\n".join(filter(None, who)),) if narrow else who),
        )
    return out, len(order) - len(cells.state)


def _address_width(hosts: list[str], ports: list[str]) -> int:
    lengths = (len(host) + 1 + len(port) for host, port in zip(hosts, ports, strict=True))
    return min(21, max(lengths, default=0))


def to_json(snapshot: Snapshot) -> str:
    """`sockscope-snapshot/1`: {"schema", "time" (ISO 8601), "unreadable_processes", "sockets": [...]}."""
    rows = _json_rows(snapshot, ordered(snapshot))
    import json
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(snapshot.realtime_ns / 1e9, UTC).isoformat()
    head = {"schema": JSON_SCHEMA, "time": at, "unreadable_processes": snapshot.unreadable_count}
    # One socket a line: readable by eye and by line tools.
    body = ",\n".join(json.dumps(row) for row in rows)
    return json.dumps(head)[:-1] + f', "sockets": [\n{body}\n]}}\n'


def _json_rows(snapshot: Snapshot, order: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[dict[str, object]]:
    records = snapshot.sockets.records[order]
    found = snapshot.causes[order].tolist()
    cells = columns(snapshot, np.asarray(order))
    begins, ends = _owner_spans(snapshot, records)
    tgids, fds = _pair(snapshot.sockets.owners)
    numbers = ("inode", "cookie", "netns", "uid", "timer", "timer_ms", "retransmits")
    listed = {name: records[name].tolist() for name in (*numbers, *_INFO, *_INFO_LONG, "family", "has_info")}
    types, peer_inodes = records["type"].tolist(), records["peer_inode"].tolist()
    for at in range(len(records)):
        row: dict[str, object] = {
            "protocol": cells.kind[at],
            "family": _FAMILIES.get(listed["family"][at], str(listed["family"][at])),
            "state": cells.state[at],
        }
        if listed["family"][at] == Family.UNIX:
            row["path"] = None if cells.local_host[at] == "*" else cells.local_host[at]
            row["type"] = _UNIX_TYPES.get(types[at], str(types[at]))
            row["peer_inode"] = peer_inodes[at] or None
        else:
            row["local"] = f"{cells.local_host[at]}:{cells.local_port[at]}"
            row["peer"] = None if cells.peer_port[at] == "*" else f"{cells.peer_host[at]}:{cells.peer_port[at]}"
        row["recv_q"], row["send_q"] = cells.recv_q[at], cells.send_q[at]
        row.update((name, listed[name][at]) for name in numbers)
        row["owners"] = [
            {"tgid": tgids[n], "comm": snapshot.comms.get(tgids[n], "?"), "fd": fds[n]}
            for n in range(begins[at], ends[at])
        ]
        row["cause"] = Cause(found[at]).slug if found[at] else None
        row["explanation"] = cells.cause[at] or None
        row["tcp_info"] = {name: listed[name][at] for name in (*_INFO, *_INFO_LONG)} if listed["has_info"][at] else None
        yield row
