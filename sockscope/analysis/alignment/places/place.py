"""Places at which packets were captured: which files are of one place, and which segments two places both have.

A segment is known again by all that TCP says of it. The pieces of a rotated capture have none in common but for what
was sent again at a seam; two places of one path have nearly all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.clocks import Files
from sockscope.analysis.wire.columns import copies
from sockscope.analysis.wire.segments import Segments
from sockscope.model.columns import picked
from sockscope.model.packets import Packets
from sockscope.model.tcp import TcpFlag

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

_TCP = 6
_ENDS = int(TcpFlag.SYN | TcpFlag.FIN | TcpFlag.RST)
FEWEST = 3
"""So many segments two places have in common, or they have nothing to do with each other."""
_WITHIN = 0.5
"""Share of one's segments that lies where the other's streams are, in connections that both have."""
_SAMPLED_ROWS = 250_000
"""Of more, whole connections are left out before files are compared, if that leaves some of each file."""
_MOST_FILES = 8
"""No path has more places; what more files have is of nobody's use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What was captured at one place, its segments flow after flow.

    Attributes:
        name: of its files, by number `files`. whole: they lack nothing that they should have, as far as they say.
        begin_ns, end_ns: its first and last packet, by its clock as it stands.
        rows: shape (n,), rows of the packets' table, as `table` has them. copied: rows that repeat one of these.
        table: the segments, by the place's own clock.
        key: shape (n,), equal exactly where TCP says the same.
        way: shape (n,), equal where connection and direction are.
        telling: shape (n,), brings something that was not there before: no repeated ACK, no keep-alive, no probe.
        keys, first: shape (k,), keys of telling segments, ascending, each once, and where in the table it first is.
        once: shape (k,), one telling segment alone has it.
    """

    name: str
    files: tuple[int, ...]
    whole: bool
    begin_ns: int
    end_ns: int
    rows: Ints
    copied: Ints
    table: Segments
    key: Hashes
    way: Hashes
    telling: Mask
    keys: Hashes
    first: Ints
    once: Mask

    @property
    def flow_count(self) -> int:
        return self.table.flow_count

    @classmethod
    def of(cls, packets: Packets, packet_ns: Ints, rows: Ints, files: Files, numbers: Sequence[int]) -> Place:
        """Of the rows of its files.

        Args:
            packets, packet_ns: all of them, with times as they stand.
            rows: shape (k,), its TCP packets.
            files, numbers: all files, and which are the place's.
        """
        rows = rows[np.argsort(packet_ns[rows], kind="stable")]
        copied = copies(packets.records, rows, packet_ns) if len(rows) else np.zeros(0, np.bool_)
        repeated, rows = rows[copied], rows[~copied]
        records = picked(packets.records, rows)
        table = Segments.of(records, packet_ns[rows])
        hashes, way = _hashes(records)
        key, telling = hashes[table.order], _telling(table)
        told = np.flatnonzero(telling)
        keys, first, count = np.unique(key[told], return_index=True, return_counts=True)
        names = [files.names[each] for each in numbers]
        return cls(
            name=names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more",
            files=tuple(numbers),
            whole=all(files.whole[each] for each in numbers),
            begin_ns=int(packet_ns[rows[0]]) if len(rows) else 0,
            end_ns=int(packet_ns[rows[-1]]) if len(rows) else 0,
            rows=rows[table.order],
            copied=repeated,
            table=table,
            key=key,
            way=way[table.order],
            telling=telling,
            keys=keys,
            first=told[first],
            once=count == 1,
        )


def common(one: Place, other: Place) -> tuple[Ints, Ints]:
    """Segments that occur exactly once in either: their places in the two tables, shape (k,) each."""
    mine, theirs = one.keys[one.once], other.keys[other.once]
    _, first, second = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
    return one.first[one.once][first], other.first[other.once][second]


def places(packets: Packets, packet_ns: Ints, files: Files) -> list[Place]:
    """The places that the files are of, in order of their first packets.

    Files of which two have segments in common are of different places; any others may be pieces of one capture, if one
    begins after the other has ended.
    """
    records = packets.records
    rows = np.flatnonzero((records["protocol"] == _TCP) & (records["sport"] > 0) & (records["dport"] > 0))
    number = files.number[rows].astype(np.int64)
    few = rows
    if len(rows) > _SAMPLED_ROWS:
        ends = _ends(picked(records, rows))
        few = rows[ends % np.uint64(len(rows) // _SAMPLED_ROWS + 1) == 0]
        if len(np.unique(files.number[few])) < len(np.unique(number)):
            few = rows
    of_few = files.number[few]
    one_by_one = [
        Place.of(packets, packet_ns, few[of_few == each], files, [each]) for each in np.unique(of_few).tolist()
    ]
    if len(one_by_one) < 2:
        return []
    groups = _groups(one_by_one, _related(one_by_one))
    if len(groups) < 2:
        return []
    found = []
    for group in groups:
        if len(group) == 1 and len(few) == len(rows):
            found.append(one_by_one[group[0]])
            continue
        numbers = [one_by_one[each].files[0] for each in group]
        found.append(Place.of(packets, packet_ns, rows[np.isin(number, numbers)], files, numbers))
    return found


def _groups(files: Sequence[Place], related: Mask) -> list[list[int]]:
    """Files by place: what may follow several goes on with that which ended last."""

    def ended_ns(group: list[int]) -> int:
        return max(files[each].end_ns for each in group)

    groups: list[list[int]] = []
    for each in sorted(range(len(files)), key=lambda number: files[number].begin_ns):
        fit = [one for one in groups if not related[each, one].any() and ended_ns(one) <= files[each].begin_ns]
        if fit:
            max(fit, key=ended_ns).append(each)
        else:
            groups.append([each])
    return groups


def _related(files: Sequence[Place]) -> Mask:
    """Which files were captured at two places of the same paths: shape (files, files)."""
    out = np.zeros((len(files), len(files)), np.bool_)
    keys = np.concatenate([file.keys[file.once] for file in files])
    owner = np.repeat(np.arange(len(files)), [np.count_nonzero(file.once) for file in files])
    order = np.argsort(keys, kind="stable")
    keys, owner = keys[order], owner[order]
    shared = np.zeros((len(files), len(files)), np.int64)
    for step in range(1, min(len(files), _MOST_FILES)):
        same = keys[step:] == keys[:-step]
        np.add.at(shared, (owner[:-step][same], owner[step:][same]), 1)
    for first, second in np.argwhere(shared >= FEWEST).tolist():
        one, other = files[first], files[second]
        together = max(_within(one, other), _within(other, one)) >= _WITHIN
        out[first, second] = out[second, first] = together
    return out


def _within(one: Place, other: Place) -> float:
    """Share of one's telling segments that begin where the other's streams are, of directions that both have."""
    ways, mine = np.unique(one.way, return_inverse=True)
    theirs = np.minimum(np.searchsorted(ways, other.way), len(ways) - 1)
    there = (ways[theirs] == other.way) & other.telling
    theirs, seq = theirs[there], other.table.seq[there]
    base = np.zeros(len(ways), np.uint32)
    base[theirs[::-1]] = seq[::-1]
    place = (seq - base[theirs]).view(np.int32)
    least, most = np.full(len(ways), 2**31 - 1, np.int32), np.full(len(ways), -(2**31), np.int32)
    np.minimum.at(least, theirs, place)
    np.maximum.at(most, theirs, place)
    known = np.isin(mine, theirs) & one.telling
    mine = mine[known]
    place = (one.table.seq[known] - base[mine]).view(np.int32)
    return float(((place >= least[mine]) & (place <= most[mine])).mean()) if len(mine) else 0.0


def _telling(table: Segments) -> Mask:
    """SYN, FIN, RST, more than one byte, or an ACK of something new to the capture."""
    out: Mask = ((table.flags & np.uint8(_ENDS)) != 0) | (table.length > 1)
    order = np.argsort(table.gid, kind="stable")
    fresh = (table.ack[order[1:]] != table.ack[order[:-1]]) & (table.gid[order[1:]] == table.gid[order[:-1]])
    out[order[1:]] |= fresh & (table.length[order[1:]] == 0)
    return out


def _ends(records: npt.NDArray[np.void]) -> Hashes:
    """Equal where the connection is, whoever sent: shape (n,)."""
    source, destination = (end_hashes(records, *names) for names in (("src", "sport"), ("dst", "dport")))
    return source + destination


def end_hashes(records: npt.NDArray[np.void], address: str, port: str) -> Hashes:
    """Of the ends in these two columns: shape (n,)."""
    halves = records[address].view("<u8")
    return _mixed(_mixed(halves[:, 0], halves[:, 1]), records[port].astype(np.uint64))


def _hashes(records: npt.NDArray[np.void]) -> tuple[Hashes, Hashes]:
    """Of all that TCP says of a segment, and of connection and direction alone: shape (n,) each.

    64 bits: of ten million segments two that differ are taken for one once in some hundred thousand captures.
    """
    way = ways_of(records)
    numbers = records["seq"].astype(np.uint64) << np.uint64(32) | records["ack"]
    rest = (
        records["payload_bytes"].astype(np.uint64) << np.uint64(32)
        | records["window"].astype(np.uint64) << np.uint64(8)
        | records["flags"]
    )
    return _mixed(_mixed(way, numbers), rest), way


def ways_of(records: npt.NDArray[np.void]) -> Hashes:
    """Who sends to whom: shape (n,)."""
    return _mixed(end_hashes(records, "src", "sport"), end_hashes(records, "dst", "dport"))


def _mixed(seed: Hashes, word: Hashes) -> Hashes:
    """One more word of a hash, by the finalizer of MurmurHash3."""
    out: Hashes = (seed * np.uint64(0x9E3779B97F4A7C15)) ^ word
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        out ^= out >> np.uint64(33)
        out *= np.uint64(factor)
    out ^= out >> np.uint64(33)
    return out
