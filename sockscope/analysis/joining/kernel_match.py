"""Which life of a 4-tuple is which connection, where no cookie says so: by addresses and time."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.int64]

SLACK_NS = 2_000_000
"""How much later than a connection's first sign the kernel may open its socket (a packet is stamped earlier)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives:
    """One row a life: what happened to one socket from its opening to its CLOSE. Columns of shape (lives,).

    `connection` is -1 where it is still to be found.
    """

    first_ns: Column
    last_ns: Column
    local: npt.NDArray[np.uint8]
    peer: npt.NDArray[np.uint8]
    local_port: npt.NDArray[np.uint16]
    peer_port: npt.NDArray[np.uint16]
    connection: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """One row a TCP connection. `any_local`: only the wildcard of its listener is known of its local address."""

    id: npt.NDArray[np.int32]
    local: npt.NDArray[np.uint8]
    peer: npt.NDArray[np.uint8]
    local_port: npt.NDArray[np.uint16]
    peer_port: npt.NDArray[np.uint16]
    any_local: npt.NDArray[np.bool_]
    first_ns: Column
    accepted: npt.NDArray[np.bool_]


def match(lives: Lives, ends: Ends) -> None:
    """Fill `lives.connection` where it is -1, from connections that have no life yet. Each gets one at most."""
    open_lives = np.flatnonzero(lives.connection < 0)
    free = np.arange(len(ends.id), dtype=np.int64)
    if not len(open_lives) or not len(free):
        return
    group = _groups(lives, open_lives, ends, free)
    of_life, of_end = group[: len(open_lives)], group[len(open_lives) :]
    size = int(group.max()) + 1
    many_lives, many_ends = np.bincount(of_life, minlength=size), np.bincount(of_end, minlength=size)
    # The usual case: one life, one connection.
    life_of = np.full(size, -1, np.int64)
    life_of[of_life] = open_lives
    alone = (many_lives[of_end] == 1) & (many_ends[of_end] == 1)
    pairs = life_of[of_end[alone]], free[alone]
    fits = _fits(lives, ends, *pairs)
    lives.connection[pairs[0][fits]] = ends.id[pairs[1][fits]]
    # The others take their turns in order of time.
    several = (many_lives > 0) & (many_ends > 0) & ((many_lives > 1) | (many_ends > 1))
    if not several.any():
        return
    lives_by: dict[int, list[int]] = {}
    mine = np.flatnonzero(several[of_life])
    for at in mine[np.argsort(lives.first_ns[open_lives[mine]], kind="stable")].tolist():
        lives_by.setdefault(int(of_life[at]), []).append(int(open_lives[at]))
    theirs = np.flatnonzero(several[of_end])
    for at in theirs[np.argsort(ends.first_ns[free[theirs]], kind="stable")].tolist():
        _take(lives, lives_by[int(of_end[at])], ends, int(free[at]))


def _groups(lives: Lives, some_lives: Column, ends: Ends, some_ends: Column) -> Column:
    """A number for each peer, peer port and local port: first of the lives, then of the connections."""
    words = np.zeros((len(some_lives) + len(some_ends), 20), np.uint8)
    for part, table, rows in (
        (slice(0, len(some_lives)), lives, some_lives),
        (slice(len(some_lives), None), ends, some_ends),
    ):
        words[part, :16] = table.peer[rows]
        words[part, 16:18] = table.peer_port[rows].astype("<u2").view(np.uint8).reshape(-1, 2)
        words[part, 18:20] = table.local_port[rows].astype("<u2").view(np.uint8).reshape(-1, 2)
    columns = [column for column in words.view("<u4").T if (column != column[0]).any()]
    key = np.zeros(len(words), np.int64)
    for column in columns:
        # Two 32-bit words at a time fit into the key; each step makes dense numbers of them.
        _, key = np.unique(key << 32 | column, return_inverse=True)
        key = key.reshape(-1)
    return key


def _fits(lives: Lives, ends: Ends, some_lives: Column, some_ends: Column) -> npt.NDArray[np.bool_]:
    """Pair by pair: the local address may be the same, and the life is not over before the connection begins.

    An accepted one may be: its client came, sent and reset while it waited in the queue.
    """
    same = (lives.local[some_lives] == ends.local[some_ends]).all(axis=1) | ends.any_local[some_ends]
    in_time = (lives.last_ns[some_lives] >= ends.first_ns[some_ends] - SLACK_NS) | ends.accepted[some_ends]
    fits: npt.NDArray[np.bool_] = same & in_time
    return fits


def _take(lives: Lives, candidates: list[int], ends: Ends, end: int) -> None:
    """The youngest life that had begun when the connection did, else the next one, that nobody has."""
    began = int(ends.first_ns[end])
    past = bisect_right(candidates, began + SLACK_NS, key=lambda life: int(lives.first_ns[life]))
    for life in (*reversed(candidates[:past]), *candidates[past:]):
        one, other = np.array([life], np.int64), np.array([end], np.int64)
        if lives.connection[life] < 0 and bool(_fits(lives, ends, one, other)[0]):
            lives.connection[life] = ends.id[end]
            return
