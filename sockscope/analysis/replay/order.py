"""The order in which events take effect: rows come from several tracers, in none.

A call that releases a descriptor frees its number when it is entered: another thread's accept can
return the same number before the close has returned. A call that hands descriptors over (sendmsg
with SCM_RIGHTS) lets the receiver return first. Both count at their entry, all others at their return.

What went through an io_uring counts at its completion: between submission and execution may lie any time (links,
a busy submission queue), so the entry of a close there frees nothing yet.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import IS_KERNEL, IS_RELEASE, MAY_SEND_RIGHTS
from sockscope.analysis.replay.decode import has_section
from sockscope.model import columns as columns_module
from sockscope.model.calls import Call
from sockscope.model.columns import Columns, Ids, in_memory, pieces, rows_of
from sockscope.model.events import EventFlag, Events, Section, is_seeded

Times = npt.NDArray[np.int64]


def replay_order(events: Events, columns: Columns = in_memory) -> tuple[npt.NDArray[np.int64], Times]:
    """Sort events by the time they take effect.

    Args:
        events: in any order. Rows of one tracer are expected in its own order: ties keep row order.
        columns: makes room for the result.

    Returns:
        order: shape (k,), event rows; kernel events are left out (they are no call of anybody, and many), and so is
            what was never called but made from a snapshot or a name (EventFlag.SEEDED).
        effective_ns: shape (n,), by row. A task_new takes effect before any event of its child,
            even where the tracer saw the child first.
    """
    records = events.records
    effective: Times = columns(len(records), np.int64)
    found: list[Ids] = []
    for part in pieces(len(records)):
        effective[part] = _effect(events, part)
        found.append(np.flatnonzero(records["call"][part] == Call.task_new) + part.start)
    births = np.concatenate(found)
    # Twice the row: a birth finds a place between two.
    rank = births * 2
    if len(births):
        _births_first(records, effective, births, rank)
    return _sorted(records, effective, births, rank, columns), effective


def _called(records: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    called: npt.NDArray[np.bool_] = ~IS_KERNEL[records["call"]] & ~is_seeded(records)
    return called


def _sorted(records: npt.NDArray[np.void], effective: Times, births: Ids, rank: Ids, columns: Columns) -> Ids:
    """Rows by time, then rank: dealt out to stretches of time first, so that each can be sorted by itself."""
    borders = _borders(effective)
    sizes = np.zeros(len(borders) + 1, np.int64)
    for part in pieces(len(records)):
        stretch = np.searchsorted(borders, effective[part][_called(records[part])], "right")
        sizes += np.bincount(stretch, minlength=len(sizes))
    ends = np.cumsum(sizes)
    free = ends - sizes
    order: Ids = columns(int(ends[-1]), np.int64)
    for part in pieces(len(records)):
        rows = np.flatnonzero(_called(records[part])) + part.start
        if not len(borders):
            order[free[0] : free[0] + len(rows)] = rows
            free[0] += len(rows)
            continue
        stretch = np.searchsorted(borders, effective[rows], "right")
        # Tracers write nearly in time: a piece touches few stretches.
        for at in np.unique(stretch).tolist():
            mine = rows[stretch == at]
            order[free[at] : free[at] + len(mine)] = mine
            free[at] += len(mine)
    for begin, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True):
        rows = order[begin:end].copy()
        times = effective[rows]
        if len(births):
            ranks = rows * 2
            place = np.searchsorted(rows, births)
            here = np.flatnonzero(place < len(rows))
            here = here[rows[place[here]] == births[here]]
            ranks[place[here]] = rank[here]
            order[begin:end] = rows[np.lexsort((ranks, times))]
        else:
            order[begin:end] = rows[np.argsort(times, kind="stable")]
    return order


def _borders(effective: Times) -> Times:
    """Moments that cut the events into stretches of about a piece each."""
    stretches = -(-len(effective) // (4 * columns_module.PIECE_ROWS))
    if stretches <= 1:
        return np.zeros(0, np.int64)
    sample = np.sort(effective[:: max(len(effective) // (64 * stretches), 1)])
    return np.unique(sample[np.arange(1, stretches) * len(sample) // stretches])


def _births_first(records: npt.NDArray[np.void], effective: Times, births: Ids, rank: Ids) -> None:
    """Move each task_new before its child's first event (of this life: tids come again after task_exit).

    Args:
        rank: shape (births,), filled anew.
    """
    child = records["args"][births, 0].astype(np.int64)
    by_tid = _landmarks(records, effective, np.unique(child))
    tids = records["tid"][by_tid].astype(np.int64)
    low = np.searchsorted(tids, child, "left")
    high = np.searchsorted(tids, child, "right")
    is_exit = records["call"][by_tid] == Call.task_exit
    exits = np.nonzero(is_exit)[0]
    moved: dict[int, int] = {}
    pairs = zip(births.tolist(), low.tolist(), high.tolist(), strict=True)
    for at, (birth, start, end) in enumerate(pairs):
        if start == end:
            continue
        # The child's life begins after the last task_exit of its tid that precedes the birth.
        now = start + int(np.searchsorted(effective[by_tid[start:end]], effective[birth], "left"))
        last = int(np.searchsorted(exits, now, "left")) - 1
        first = int(exits[last]) + 1 if last >= 0 and exits[last] >= start else start
        if first >= end:
            continue
        row = int(by_tid[first])
        if effective[row] <= effective[birth]:
            effective[birth] = effective[row]
            rank[at] = moved[birth] = min(int(rank[at]), moved.get(row, row * 2) - 1)


def _landmarks(records: npt.NDArray[np.void], effective: Times, tids: Ids) -> Ids:
    """Of these threads every task_exit, and the first event of each life: rows by tid and time."""
    exits = rows_of(records, lambda part: (part["call"] == Call.task_exit) & np.isin(part["tid"], tids))
    kept: list[Ids] = []
    for part in pieces(len(records), max(columns_module.PIECE_ROWS, len(exits))):
        rows = np.flatnonzero(np.isin(records["tid"][part], tids)) + part.start
        rows = np.union1d(rows, exits)
        rows = rows[np.lexsort((effective[rows], records["tid"][rows]))]
        tid, ends = records["tid"][rows], records["call"][rows] == Call.task_exit
        begins = np.append(True, (tid[1:] != tid[:-1]) | ends[:-1])[: len(rows)]
        kept.append(rows[begins | ends])
    rows = np.unique(np.concatenate(kept))
    return rows[np.lexsort((effective[rows], records["tid"][rows]))]


def times_of_effect(events: Events, order: npt.NDArray[np.int64]) -> Times:
    """When each of these events (given in replay order) takes effect: shape (k,), never decreasing."""
    return np.minimum.accumulate(_effect(events, order)[::-1])[::-1]


def _effect(events: Events, rows: Ids | slice) -> Times:
    """Time of effect of the rows, but for births that were seen late."""
    columns = events.records[["enter_ns", "exit_ns", "call", "flags", "blob_bytes"]]
    records = columns[rows]
    call = records["call"]
    enter: Times = records["enter_ns"].astype(np.int64)
    leave: Times = records["exit_ns"].astype(np.int64)
    at_entry = IS_RELEASE[call] | (leave < 0)
    senders = np.nonzero(MAY_SEND_RIGHTS[call] & (records["blob_bytes"] > 0))[0]
    if len(senders):
        sending = senders + rows.start if isinstance(rows, slice) else rows[senders]
        at_entry[senders[has_section(events, sending, Section.CONTROL)]] = True
    late = (records["flags"] & (EventFlag.NO_ENTRY | EventFlag.URING)) != 0
    at_entry &= ~late | ((leave < 0) & (enter >= 0))
    return np.where(at_entry, enter, leave)
