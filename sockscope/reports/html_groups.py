"""All connections of a large session in some dozens of groups: what the page says of those that it does not show.

A connection is in exactly one group, so the groups' counts and bytes add up to the session's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sockscope.model.connections import Protocol, Role
from sockscope.model.report import ConnectionRow, Report
from sockscope.model.sockaddr import Address
from sockscope.reports import format as words

GROUP_COUNT = 40
"""Groups beyond are folded into coarser ones: a page is read, not searched, up to here."""
NAMED_PROCESSES = 16
"""With more of them (a process a connection) groups tell programs, not processes."""
VARIOUS = "various"
_REQUEST = re.compile(r"(\S+) (\S+) → (no answer|\d{3}|\?)")
_NUMBER = re.compile(r"[0-9a-fA-F]*[0-9][0-9a-fA-F-]{7,}|\d+")
"""Counters, dates, hashes and UUIDs: what makes one path of many."""
_MANY_TITLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What the connections of a group have in common; `VARIOUS` where they differ, empty where there is nothing."""

    server: str
    state: str
    rule: str
    """Of the worst finding they are in; empty: in none."""
    processes: str
    did: str


ALL_OTHERS = Key(server=VARIOUS, state=VARIOUS, rule="", processes=VARIOUS, did=VARIOUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasted:
    """How long connections were seen, ns."""

    median_ns: int
    p95_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Connections alike, summed."""

    key: Key
    count: int
    read_bytes: int
    written_bytes: int
    lasted: Lasted


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """Every connection in its group.

    Attributes:
        groups: those with findings first, then the largest.
        of_row: shape (rows,), int64: index into `groups`.
        whole: of all of them.
    """

    groups: tuple[Group, ...]
    of_row: npt.NDArray[np.int64]
    whole: Group


def group_rows(report: Report) -> Grouped:
    """Group all connections of a report (at least one)."""
    rows = report.connections
    keys, of_row = _folded(*_keyed(report))
    lasted = np.array([row.connection.last_ns - row.connection.first_ns for row in rows], np.int64)
    # Python's integers: the sum of many is exact, and need not fit into 64 bits.
    read, written = [0] * len(keys), [0] * len(keys)
    for row, at in zip(rows, of_row.tolist(), strict=True):
        read[at] += row.connection.read_bytes
        written[at] += row.connection.written_bytes
    counts = np.bincount(of_row, minlength=len(keys)).tolist()
    order = sorted(range(len(keys)), key=lambda at: (not keys[at].rule, keys[at] == ALL_OTHERS, -counts[at]))
    by_group = np.argsort(of_row, kind="stable")
    members = np.split(lasted[by_group], np.cumsum(counts)[:-1])
    groups = tuple(
        Group(
            key=keys[at], count=counts[at], read_bytes=read[at], written_bytes=written[at], lasted=_lasted(members[at])
        )
        for at in order
    )
    place = np.empty(len(keys), np.int64)
    place[order] = np.arange(len(keys))
    whole = Group(
        key=ALL_OTHERS, count=len(rows), read_bytes=sum(read), written_bytes=sum(written), lasted=_lasted(lasted)
    )
    return Grouped(groups=groups, of_row=place[of_row], whole=whole)


def _lasted(durations: npt.NDArray[np.int64]) -> Lasted:
    ordered = np.sort(durations)
    # The nearest rank: a duration that was there, not one between two.
    ranks = np.ceil(np.array([0.5, 0.95, 1.0]) * len(ordered)).astype(np.int64) - 1
    median, p95, most = ordered[np.maximum(ranks, 0)].tolist()
    return Lasted(median_ns=median, p95_ns=p95, max_ns=most)


def _keyed(report: Report) -> tuple[list[Key], npt.NDArray[np.int64]]:
    """Distinct keys, and shape (rows,), int64: each row's."""
    comms = {process.tgid: process.comm for process in report.processes}
    tgids = {tgid for row in report.connections for tgid in row.processes}
    named = len(tgids) <= NAMED_PROCESSES
    addresses: dict[Address, str] = {}
    shapes: dict[str, str] = {}
    processes: dict[tuple[int, ...], str] = {}
    index: dict[tuple[str, str, str, str, str], int] = {}
    of_row = np.empty(len(report.connections), np.int64)
    for at, row in enumerate(report.connections):
        if row.processes not in processes:
            processes[row.processes] = _names(row.processes, comms, named=named)
        if row.summary not in shapes:
            shapes[row.summary] = shape(row.summary)
        key = (
            _server(row, addresses),
            words.state_name(row.connection),
            report.findings[min(row.finding_indexes)].rule if row.finding_indexes else "",
            processes[row.processes],
            shapes[row.summary],
        )
        of_row[at] = index.setdefault(key, len(index))
    keys = [Key(server=k[0], state=k[1], rule=k[2], processes=k[3], did=k[4]) for k in index]
    return keys, of_row


def _server(row: ConnectionRow, addresses: dict[Address, str]) -> str:
    """The end that clients connect to: they are many, it is one."""
    connection = row.connection
    if connection.protocol is Protocol.UNIX:
        ends = (connection.local, connection.peer)
        named = next((end for end in ends if end is not None and end.packed), None)
        return "unix pairs" if named is None else f"unix {named}"
    client = connection.role is Role.CLIENT
    end = connection.peer if client else connection.local
    if end is None:
        return "*"
    if end not in addresses:
        addresses[end] = str(end)
    return f"→ {addresses[end]}" if client else addresses[end]


def _names(tgids: Sequence[int], comms: dict[int, str], *, named: bool) -> str:
    if named:
        return ", ".join(words.process_name(comms.get(tgid, "?"), tgid) for tgid in tgids)
    return ", ".join(dict.fromkeys(comms.get(tgid, "?") for tgid in tgids))


def shape(summary: str) -> str:
    """What one connection did, told so that others did the same: `GET /item/7 → 200, 615 bytes` is `GET /item/… → 200`.

    Numbers become `…`, sizes and queries go, and so do requests after the third kind.
    """
    if not summary:
        return ""
    titles = []
    for part in summary.split("; "):
        found = _REQUEST.match(part)
        if found:
            path = _NUMBER.sub("…", found[2].partition("?")[0])
            titles.append(f"{found[1]} {path} → {found[3]}")
    if not titles:
        return "other data"
    kinds = list(dict.fromkeys(titles))
    return "; ".join(kinds[:_MANY_TITLES]) + ("; …" if len(kinds) > _MANY_TITLES else "")


def _folded(keys: list[Key], of_row: npt.NDArray[np.int64]) -> tuple[list[Key], npt.NDArray[np.int64]]:
    """At most `GROUP_COUNT` groups, by leaving out what tells them apart.

    First the processes, everywhere: a column that some rows have and others not is hard to read. Then the largest
    stay as they are, and the others lose what they did, then the server, then all.
    """
    steps = ((0, _without_processes), (30, _without_deeds), (20, _without_server), (GROUP_COUNT - 1, _without_all))
    for kept_count, coarser in steps:
        if len(keys) <= GROUP_COUNT:
            break
        counts = np.bincount(of_row, minlength=len(keys))
        kept = set(np.argsort(-counts, kind="stable")[:kept_count].tolist())
        made = [key if at in kept else coarser(key) for at, key in enumerate(keys)]
        index = {key: at for at, key in enumerate(dict.fromkeys(made))}
        of_row = np.array([index[key] for key in made], np.int64)[of_row]
        keys = list(index)
    return keys, of_row


def _without_processes(key: Key) -> Key:
    return replace(key, processes=VARIOUS)


def _without_deeds(key: Key) -> Key:
    return replace(key, did=VARIOUS)


def _without_server(key: Key) -> Key:
    return replace(key, did=VARIOUS, server=VARIOUS)


def _without_all(key: Key) -> Key:
    return ALL_OTHERS


def state_counts(report: Report) -> dict[str, int]:
    """State → connections in it, the most frequent first."""
    return dict(Counter(words.state_name(row.connection) for row in report.connections).most_common())
