"""Old control events as columns in order of effect, and which process and thread each belongs to.

A pid is used again sooner or later: a process here is one life of a tgid (`process`, a dense number).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import Call
from sockscope.model.constants import CLONE_FILES, CLONE_THREAD
from sockscope.model.event_rows import Rows, find_sections, words_at
from sockscope.model.events import EventFlag, Events, Section

Flags = npt.NDArray[np.bool_]

RANK_BITS = 40
"""A key is `group << RANK_BITS | rank`: sorted, it answers what of a group lies between two moments."""
_RANK = (1 << RANK_BITS) - 1

CLOSE_RANGE_UNSHARE = 2

_CMSG_BYTES = 16
_MOST_CMSGS = 8
_SOL_SOCKET = 1
_SCM_RIGHTS = 1


def of_calls(calls: Iterable[Call]) -> Flags:
    """A table for `table[records["call"]]`: shape (65536,)."""
    table = np.zeros(1 << 16, np.bool_)
    table[[int(c) for c in calls]] = True
    table.flags.writeable = False
    return table


_AT_ENTRY = of_calls({Call.close, Call.close_range})
_MESSAGES = of_calls({Call.sendmsg, Call.recvmsg, Call.sendmmsg, Call.recvmmsg})
IS_SEND = of_calls({Call.sendmsg, Call.sendmmsg})


def carries_rights(events: Events) -> Flags:
    """Which rows are messages with SCM_RIGHTS in their control data: shape (n,).

    Source: cmsg(3), unix(7); struct cmsghdr is size_t len, int level, int type on 64-bit.
    """
    found = np.zeros(len(events), np.bool_)
    rows = np.flatnonzero(_MESSAGES[events.records["call"]] & (events.records["blob_bytes"] > 0))
    if not len(rows):
        return found
    at, size = find_sections(events, rows, Section.CONTROL)
    end = at + size
    live = np.flatnonzero((at >= 0) & (size >= _CMSG_BYTES))
    at = at[live]
    for _ in range(_MOST_CMSGS):
        if not len(live):
            break
        length = words_at(events.blob, at)
        rights = (words_at(events.blob, at + 8) == _SOL_SOCKET) & (words_at(events.blob, at + 12) == _SCM_RIGHTS)
        found[rows[live[rights]]] = True
        at = at + ((length + 7) & ~7)
        going = ~rights & (length >= _CMSG_BYTES) & (at + _CMSG_BYTES <= end[live])
        live, at = live[going], at[going]
    return found


@dataclass(slots=True, kw_only=True)
class Columns:
    """n events in order of effect; the index into these arrays is the event's rank.

    Attributes:
        row: the event's row in `events`.
        a0, a1, a2: arguments as the ints they were (low 32 bits, signed).
        rights: it is a message that carries descriptors.
        process: whose life it belongs to.
        child: of a task_new that made a process: that process; else -1.
        born: of any task_new the process that the new task belongs to; else -1.
        process_count: lives there are.
        owner: shape (process_count,): its tgid.
        base: shape (process_count,): it began before any fork that is known.
        shares: shape (process_count,): its files table is or was another's too, so numbers tell little.
        dead: shape (process_count,): every thread of it has ended.
        first_of: tgid → its first life.
    """

    events: Events
    row: Rows
    call: npt.NDArray[np.uint16]
    tgid: Rows
    tid: Rows
    ret: Rows
    a0: Rows
    a1: Rows
    a2: Rows
    unreturned: Flags
    rights: Flags
    process: Rows
    child: Rows
    born: Rows
    process_count: int
    owner: Rows
    base: Flags
    shares: Flags
    dead: Flags
    first_of: dict[int, int]

    def __len__(self) -> int:
        return len(self.row)


def _int(column: npt.NDArray[np.uint64]) -> Rows:
    return column.astype(np.uint32).view(np.int32).astype(np.int64)


def make_columns(events: Events, seed_tids: Mapping[int, frozenset[int]], sharing: frozenset[int]) -> Columns:
    """Sort, and tell lives apart.

    Args:
        events: in any order, those of one tracer in its own.
        seed_tids: tgid → threads that were there at attach.
        sharing: tgids that were found to share a files table.
    """
    records = events.records
    rights = carries_rights(events)
    order = _order(records, rights)
    picked = records[order]
    call, tgid, tid = picked["call"], picked["tgid"].astype(np.int64), picked["tid"].astype(np.int64)
    args = picked["args"]
    a0, a1, a2 = (_int(np.ascontiguousarray(args[:, i])) for i in range(3))
    tgid, tid = tgid & 0xFFFF_FFFF, tid & 0xFFFF_FFFF
    count = len(order)
    new = np.flatnonzero(call == Call.task_new)
    forks = new[(a1[new] != tgid[new]) & (a2[new] & CLONE_THREAD == 0)]
    child_tgid = a1[forks] & 0xFFFF_FFFF
    ends = np.flatnonzero(call == Call.task_exit)
    end_keys = np.sort(tgid[ends] << RANK_BITS | ends)
    at = np.searchsorted(end_keys, child_tgid << RANK_BITS | forks) - 1
    before = end_keys[np.maximum(at, 0)] if len(end_keys) else np.zeros(len(forks), np.int64)
    ended = (at >= 0) & (before >> RANK_BITS == child_tgid) if len(end_keys) else np.zeros(len(forks), np.bool_)
    begins = child_tgid << RANK_BITS | np.where(ended, (before & _RANK) + 1, 0)
    everyone = np.unique(np.concatenate([tgid, child_tgid]))
    bounds = np.unique(np.concatenate([everyone << RANK_BITS, begins]))
    process = np.searchsorted(bounds, tgid << RANK_BITS | np.arange(count), "right") - 1
    child = np.full(count, -1, np.int64)
    child[forks] = np.searchsorted(bounds, begins)
    born = np.full(count, -1, np.int64)
    born[new] = process[new]
    born[forks] = child[forks]
    base = bounds & _RANK == 0
    made = Columns(
        events=events, row=order, call=call, tgid=tgid, tid=tid, ret=picked["ret"].astype(np.int64), a0=a0, a1=a1,
        a2=a2, unreturned=(picked["flags"] & EventFlag.ENTERED_ONLY) != 0, rights=rights[order], process=process,
        child=child, born=born, process_count=len(bounds), owner=bounds >> RANK_BITS, base=base,
        shares=np.zeros(len(bounds), np.bool_),
        dead=np.zeros(len(bounds), np.bool_),
        first_of=dict(zip((bounds[base] >> RANK_BITS).tolist(), np.flatnonzero(base).tolist(), strict=True)),
    )  # fmt: skip
    _find_sharers(made, sharing)
    _find_dead(made, seed_tids)
    return made


def _order(records: npt.NDArray[np.void], rights: Flags) -> Rows:
    """Rows by time of effect: what releases or hands over a number counts at its entry; a birth comes before
    what its child does."""
    enter, leave, call = records["enter_ns"], records["exit_ns"], records["call"]
    at_entry = (_AT_ENTRY[call] | (rights & IS_SEND[call]) | (leave < 0)) & (enter >= 0)
    order = np.argsort(np.where(at_entry, enter, leave), kind="stable").astype(np.int64, copy=False)
    call = call[order]
    births = np.flatnonzero(call == Call.task_new)
    if not len(births):
        return order
    tid = records["tid"][order].astype(np.int64)
    children = records["args"][order[births], 0].astype(np.int64) & 0xFFFF_FFFF
    keys = np.sort(tid << RANK_BITS | np.arange(len(order)))
    exits = np.flatnonzero(call == Call.task_exit)
    exit_keys = np.append(np.sort(tid[exits] << RANK_BITS | exits), np.iinfo(np.int64).max)
    at = np.searchsorted(exit_keys, children << RANK_BITS | births) - 1
    before = exit_keys[np.maximum(at, 0)]
    ended = (at >= 0) & (before >> RANK_BITS == children)
    since = children << RANK_BITS | np.where(ended, (before & _RANK) + 1, 0)
    first = keys[np.minimum(np.searchsorted(keys, since), len(keys) - 1)]
    early = (first >= since) & (first >> RANK_BITS == children) & (first & _RANK < births)
    if not early.any():
        return order
    place = np.arange(len(order)) * 2
    place[births[early]] = (first[early] & _RANK) * 2 - 1
    return order[np.argsort(place, kind="stable")]


def _find_sharers(columns: Columns, sharing: frozenset[int]) -> None:
    forks = np.flatnonzero((columns.child >= 0) & (columns.a2 & CLONE_FILES != 0))
    columns.shares[columns.process[forks]] = True
    columns.shares[columns.child[forks]] = True
    parts = (columns.call == Call.unshare) & (columns.a0 & CLONE_FILES != 0)
    parts |= (columns.call == Call.close_range) & (columns.a2 & CLOSE_RANGE_UNSHARE != 0)
    columns.shares[columns.process[parts & (columns.ret == 0)]] = True
    columns.shares[[columns.first_of[tgid] for tgid in sharing if tgid in columns.first_of]] = True


def _find_dead(columns: Columns, seed_tids: Mapping[int, frozenset[int]]) -> None:
    last = last_of_threads(columns, seed_tids)
    exits = np.flatnonzero(columns.call == Call.task_exit)
    seen = np.zeros(columns.process_count, np.bool_)
    seen[columns.process[exits]] = True
    alive = np.zeros(columns.process_count, np.bool_)
    alive[last.process[~last.gone]] = True
    columns.dead[:] = seen & ~alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """Every thread known of: its process, its tid, whether it has ended, and whether it did so by itself."""

    process: Rows
    tid: Rows
    gone: Flags
    exited: Flags


def last_of_threads(columns: Columns, seed_tids: Mapping[int, frozenset[int]]) -> Threads:
    """A thread has ended by its task_exit, or by another's exec after the last that it did."""
    new = np.flatnonzero(columns.call == Call.task_new)
    seeded = [
        (columns.first_of[tgid], tid) for tgid, tids in seed_tids.items() if tgid in columns.first_of for tid in tids
    ]
    seeds = np.array(seeded, np.int64).reshape(-1, 2)
    process = np.concatenate([seeds[:, 0], columns.born[new], columns.process])
    tid = np.concatenate([seeds[:, 1], columns.a0[new] & 0xFFFF_FFFF, columns.tid])
    rank = np.concatenate([np.full(len(seeds), -1, np.int64), new, np.arange(len(columns))])
    exits = np.concatenate([np.zeros(len(seeds) + len(new), np.bool_), columns.call == Call.task_exit])
    order = np.lexsort((rank, tid, process))
    process, tid, rank, exits = process[order], tid[order], rank[order], exits[order]
    final = np.append((process[1:] != process[:-1]) | (tid[1:] != tid[:-1]), True) if len(order) else exits
    process, tid, rank, exits = process[final], tid[final], rank[final], exits[final]
    executed = np.full(columns.process_count, -1, np.int64)
    execs = np.flatnonzero(columns.call == Call.task_exec)
    np.maximum.at(executed, columns.process[execs], execs)
    return Threads(process=process, tid=tid, gone=exits | (rank < executed[process]), exited=exits)
