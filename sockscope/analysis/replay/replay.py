"""Replay of control events into files tables, descriptors, open files and interest lists.

What one event does to which table is in `tasks`, `calls` and `rights`; the state
and the moves they are made of are in `state`; here is the loop.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay import calls, rights, tasks
from sockscope.analysis.replay.control import HAS_FD, IS_REPLAYED, MAY_CARRY_RIGHTS
from sockscope.analysis.replay.decode import has_section
from sockscope.analysis.replay.order import times_of_effect
from sockscope.analysis.replay.state import ReplayState, Step
from sockscope.model.calls import Call
from sockscope.model.columns import pieces
from sockscope.model.events import EventFlag, Events, Section
from sockscope.model.ids import NO_ID
from sockscope.model.seed import Seed

Ids = npt.NDArray[np.int64]

_ROWS_AT_ONCE = 1 << 16
"""Of each that matters a dozen Python numbers are made."""

HANDLERS = {**tasks.HANDLERS, **calls.HANDLERS, **rights.HANDLERS}

COUNTS_UNRETURNED = frozenset({Call.close, Call.close_range, Call.connect, Call.sendmsg})
"""What has begun to take effect though it has not returned."""

_URING_CLOSES = frozenset({Call.close, Call.close_range})
"""Submitted to an io_uring they may not even have begun."""


class Replay(ReplayState):
    """The state of the target's descriptors, moved on event by event.

    Feeding a table in several pieces (each in replay order) gives the same state as feeding it at once.

    Args:
        seed: the target as found at attach.
        unix_peers: inode → inode of connected unix sockets, where snapshots know it.
    """

    def __init__(self, seed: Seed, unix_peers: Mapping[int, int] | None = None) -> None:
        super().__init__(unix_peers)
        tasks.load_seed(self, seed)

    def feed(self, events: Events, order: Ids, *, effective_ns: Ids | None = None, first_id: int = 0) -> None:
        """Replay what matters of these events.

        Args:
            events: the table that `order` indexes.
            order: shape (k,), rows in replay order (`order.replay_order`), none fed before.
            effective_ns: what `replay_order` gave with the order; None: worked out from these rows.
            first_id: event id of row 0 (the live view feeds tables that begin anew).
        """
        if not len(order):
            return
        times = None
        if effective_ns is None:
            times = effective_ns = times_of_effect(events, order)
        known = set(self.task_table)
        for part in pieces(len(order), _ROWS_AT_ONCE):
            rows = order[part]
            at, handled = self._wanted(events, rows, known)
            rows = rows[at]
            self._run(events, rows, effective_ns[rows] if times is None else times[part][at], handled, first_id)

    def _wanted(self, events: Events, rows: Ids, known: set[int]) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Which of these rows are replayed, or make a thread known; and of those, which are replayed.

        Args:
            known: threads that were there or were met before these rows; filled up.
        """
        call = events.records["call"][rows]
        handled = IS_REPLAYED[call]
        messages = np.nonzero(MAY_CARRY_RIGHTS[call] & (events.records["blob_bytes"][rows] > 0))[0]
        if len(messages):
            handled[messages] |= has_section(events, rows[messages], Section.CONTROL)
        # The first event of each thread makes sure that the thread is known from then on.
        tids, first = np.unique(events.records["tid"][rows], return_index=True)
        pairs = zip(tids.tolist(), first.tolist(), strict=True)
        wanted = handled.copy()
        wanted[[at for tid, at in pairs if tid not in known]] = True
        known.update(tids.tolist())
        at = np.flatnonzero(wanted)
        return at, handled[at]

    def _run(self, events: Events, rows: Ids, times: Ids, handled: npt.NDArray[np.bool_], first_id: int) -> None:
        picked = events.records[rows]
        args = picked["args"]
        blob_at = picked["blob_offset"].astype(np.int64)
        blob = events.blob.data if len(events.blob) else memoryview(b"")
        has_fd = HAS_FD[picked["call"]]
        entered_only, uring, task_exit = int(EventFlag.ENTERED_ONLY), int(EventFlag.URING), int(Call.task_exit)
        step = Step()
        columns = zip(
            rows.tolist(), picked["call"].tolist(), times.tolist(), picked["enter_ns"].tolist(),
            picked["tgid"].tolist(), picked["tid"].tolist(), picked["ret"].tolist(), picked["flags"].tolist(),
            args[:, 0].astype(np.uint32).view(np.int32).tolist(), *(args[:, at].tolist() for at in range(4)),
            blob_at.tolist(), (blob_at + picked["blob_bytes"]).tolist(), has_fd.tolist(), handled.tolist(),
            strict=True,
        )  # fmt: skip
        task_table, tables, touched = self.task_table, self.tables, self.touched
        for row, call, ns, enter, tgid, tid, ret, flags, fd, a0, a1, a2, a3, start, end, named, wanted in columns:
            table = task_table.get(tid)
            if table is None and flags & uring:
                # Its submitter may be gone (what it left is cancelled), or a kernel thread that polls the queue.
                living = self.table_of_process(tgid)
                table = living.id if living is not None else None
            elif table is None and call != task_exit:
                table = tasks.adopt(self, tid, tgid, ns)
            if not wanted or table is None:
                continue
            if flags & entered_only and (call not in COUNTS_UNRETURNED or (flags & uring and call in _URING_CLOSES)):
                continue
            step.event = row + first_id
            step.call = call
            step.ns = ns
            step.enter_ns = enter if enter >= 0 else ns
            step.tgid = tgid
            step.tid = tid
            step.ret = ret
            step.fd = fd
            step.a0 = a0
            step.a1 = a1
            step.a2 = a2
            step.a3 = a3
            step.blob = blob[start:end] if end > start else b""
            step.table = tables[table]
            step.descriptor = NO_ID
            if named:
                step.descriptor = self.named(step)
                if step.descriptor >= 0:
                    touched.append(step.event)
                    touched.append(step.descriptor)
            HANDLERS[call](self, step)
