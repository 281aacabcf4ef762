"""From which place each connection is told: what TCP did is only true as one place saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.places.place import Hashes, Place, end_hashes
from sockscope.analysis.wire.columns import NEVER, distinct_bytes
from sockscope.analysis.wire.openings import handshakes

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """All places' flows, one place after another: shape (flows,) each.

    Attributes:
        first: where each place's flows begin: shape (places + 1,).
        place: whose.
        connection: the same number for flows of one connection; the smallest of their rows here.
        told: the connection is told from this place; of one that a single place saw always.
        reference: the place that tells most of what several saw.
    """

    first: Ints
    place: Ints
    connection: Ints
    told: Mask
    reference: int


def choose(places: Sequence[Place], nearest: int = -1) -> Sight:
    """Choose for each connection that several places saw.

    A place counts that has the beginning, if any has, and no less than half of the bytes that another has. Of these the
    nearest to the server is taken, where the SYN-ACK came soonest. Beside a log all that the traced server's own
    capture has is told from that; what it lacks of its own servers is not told at all: no other is close to the calls.

    Args:
        places: two at least.
        nearest: the place nearest to the traced server; -1: not known.
    """
    first = np.concatenate([[0], np.cumsum([one.flow_count for one in places])])
    place = np.repeat(np.arange(len(places)), np.diff(first))
    connection = _connections(places, first)
    shakes = [handshakes(one.table) for one in places]
    syn, synack = (np.concatenate([getattr(one, name) for one in shakes]) for name in ("syn", "synack"))
    began = (syn != NEVER) | (synack != NEVER)
    gap = np.where((syn != NEVER) & (synack != NEVER), synack - syn, NEVER)
    moved = np.concatenate([_moved(one) for one in places])
    seen = np.zeros(len(place), np.bool_)
    seen[connection[began]] = True
    most = np.zeros(len(place), np.int64)
    np.maximum.at(most, connection, moved)
    whole = (began | ~seen[connection]) & (2 * moved >= most[connection])
    many = np.bincount(connection, minlength=len(place))[connection] > 1
    ends = np.concatenate([_ends(one) for one in places])
    distance = _by_server(ends, place, gap, many)
    if nearest >= 0:
        reference = nearest
        tells = _first_of(connection, place == nearest, (distance, place))
        # Another interface of the same host has nothing in common with it, and is as close.
        afar = np.isin(place, place[np.isin(connection, connection[place == nearest])]) & (place != nearest)
        tells &= ~(afar & np.isin(ends, ends[place == nearest]).any(axis=1))
    else:
        tells = _first_of(connection, whole, (distance, place))
        unsure = np.zeros(len(place), np.bool_)
        unsure[connection[distance == NEVER]] = True
        votes = np.bincount(place[tells & many & ~unsure[connection]], minlength=len(places))
        reference = int(np.argmax(votes))
        # Where it is not known which is nearer, all are told from the same place.
        unlike = ((place != reference) & unsure[connection]).astype(np.int64)
        tells = _first_of(connection, whole, (unlike, distance, place))
    teller = np.full(len(place), -1, np.int64)
    teller[connection[tells]] = place[tells]
    return Sight(first=first, place=place, connection=connection, told=teller[connection] == place, reference=reference)


def _connections(places: Sequence[Place], first: Ints) -> Ints:
    """Flows that share a segment are one connection: shape (flows,), the smallest number of its flows."""
    key = np.concatenate([one.keys for one in places])
    flow = np.concatenate([one.table.flow[one.first] + begin for one, begin in zip(places, first, strict=False)])
    order = np.argsort(key, kind="stable")
    key, flow = key[order], flow[order]
    same = key[1:] == key[:-1]
    links = np.unique(np.stack([flow[:-1][same], flow[1:][same]], axis=1), axis=0)
    out = np.arange(first[-1])
    while True:
        least = np.minimum(out[links[:, 0]], out[links[:, 1]])
        before = out.copy()
        np.minimum.at(out, links[:, 0], least)
        np.minimum.at(out, links[:, 1], least)
        out = out[out]
        if (out == before).all():
            return out


def _moved(one: Place) -> Ints:
    """Bytes of each flow, each counted once: shape (flows,)."""
    table = one.table
    data = np.flatnonzero(table.length > 0)
    both = distinct_bytes(table.gid[data], table.seq[data], table.length[data], 2 * table.flow_count)
    found: Ints = both.reshape(-1, 2).sum(axis=1)
    return found


def _ends(one: Place) -> Hashes:
    """Who was connected to, and by whom: shape (flows, 2). Without a handshake the first to speak is taken for that."""
    rows = one.table.records[one.table.first_row]
    source, destination = end_hashes(rows, "src", "sport"), end_hashes(rows, "dst", "dport")
    opened = one.table.opener_is_source
    return np.stack([np.where(opened, destination, source), np.where(opened, source, destination)], axis=1)


def _by_server(ends: Hashes, place: Ints, gap: Ints, many: Mask) -> Ints:
    """How soon at best a SYN-ACK follows the SYN at each flow's place, of the same server: shape (flows,)."""
    names, number = np.unique(ends, return_inverse=True)
    count = int(place.max(initial=0)) + 1
    number = number.reshape(-1, 2) * count + place[:, None]
    best = np.full(len(names) * count, NEVER)
    known = many & (gap != NEVER)
    np.minimum.at(best, number[known, 0], gap[known])
    found: Ints = np.where(gap != NEVER, best[number[:, 0]], best[number].min(axis=1))
    return found


def _first_of(connection: Ints, good: Mask, ranks: tuple[Ints, ...]) -> Mask:
    """The flow of each connection that comes first: a good one if there is one, then by rank."""
    order = np.lexsort((*ranks[::-1], ~good, connection))
    out = np.zeros(len(connection), np.bool_)
    out[order[np.append(True, connection[order[1:]] != connection[order[:-1]])]] = True
    return out
