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
from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Events, Section

Times = npt.NDArray[np.int64]


def replay_order(events: Events) -> tuple[npt.NDArray[np.int64], Times]:
    """Sort events by the time they take effect.

    Args:
        events: in any order. Rows of one tracer are expected in its own order: ties keep row order.

    Returns:
        order: shape (k,), event rows; kernel events are left out (they are no call of anybody, and many), and so is
            what was never called but made from a snapshot or a name (EventFlag.SEEDED).
        effective_ns: shape (n,), by row. A task_new takes effect before any event of its child,
            even where the tracer saw the child first.
    """
    records = events.records
    call = records["call"]
    effective = _effect(events, None)
    rank: Times = np.arange(len(records), dtype=np.int64) * 2
    births = np.nonzero(call == Call.task_new)[0]
    uncalled = IS_KERNEL[call] | ((records["flags"] & EventFlag.SEEDED) != 0)
    kept = np.nonzero(~uncalled)[0] if uncalled.any() else None
    if len(births):
        _births_first(records, effective, rank, births)
        order = np.lexsort((rank, effective) if kept is None else (rank[kept], effective[kept]))
    else:
        order = np.argsort(effective if kept is None else effective[kept], kind="stable")
    if kept is not None:
        order = kept[order]
    return order.astype(np.int64, copy=False), effective


def _births_first(records: npt.NDArray[np.void], effective: Times, rank: Times, births: npt.NDArray[np.int64]) -> None:
    """Move each task_new before its child's first event (of this life: tids come again after task_exit)."""
    tid = records["tid"]
    child = records["args"][births, 0].astype(np.int64)
    concerned = np.nonzero(np.isin(tid, child))[0]
    by_tid = concerned[np.lexsort((rank[concerned], effective[concerned], tid[concerned]))]
    tids = tid[by_tid].astype(np.int64)
    low = np.searchsorted(tids, child, "left")
    high = np.searchsorted(tids, child, "right")
    is_exit = records["call"][by_tid] == Call.task_exit
    exits = np.nonzero(is_exit)[0]
    for birth, start, end in zip(births.tolist(), low.tolist(), high.tolist(), strict=True):
        if start == end:
            continue
        # The child's life begins after the last task_exit of its tid that precedes the birth.
        now = start + int(np.searchsorted(effective[by_tid[start:end]], effective[birth], "left"))
        last = int(np.searchsorted(exits, now, "left")) - 1
        first = int(exits[last]) + 1 if last >= 0 and exits[last] >= start else start
        if first >= end:
            continue
        row = by_tid[first]
        if effective[row] <= effective[birth]:
            effective[birth] = effective[row]
            rank[birth] = min(rank[birth], rank[row] - 1)


def times_of_effect(events: Events, order: npt.NDArray[np.int64]) -> Times:
    """When each of these events (given in replay order) takes effect: shape (k,), never decreasing."""
    return np.minimum.accumulate(_effect(events, order)[::-1])[::-1]


def _effect(events: Events, rows: npt.NDArray[np.int64] | None) -> Times:
    """Time of effect of the rows (None: all), but for births that were seen late."""
    everything = events.records
    records = everything if rows is None else everything[["enter_ns", "exit_ns", "call", "flags", "blob_bytes"]][rows]
    call = records["call"]
    enter: Times = records["enter_ns"].astype(np.int64)
    leave: Times = records["exit_ns"].astype(np.int64)
    at_entry = IS_RELEASE[call] | (leave < 0)
    senders = np.nonzero(MAY_SEND_RIGHTS[call] & (records["blob_bytes"] > 0))[0]
    if len(senders):
        sending = senders if rows is None else rows[senders]
        at_entry[senders[has_section(events, sending, Section.CONTROL)]] = True
    late = (records["flags"] & (EventFlag.NO_ENTRY | EventFlag.URING)) != 0
    at_entry &= ~late | ((leave < 0) & (enter >= 0))
    return np.where(at_entry, enter, leave)
