"""The flight recorder's memory: the last moments whole, of what was before only what still matters.

Data events are many and live as long as the window; control events are kept for the whole session, as far as they
say something of what is alive (`keep_prune`). Nothing here is done event by event in Python.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import DATA, KERNEL_EVENTS, READS, WRITES, Call
from sockscope.model.event_rows import Rows, subset
from sockscope.model.events import Events
from sockscope.model.seed import Seed
from sockscope.recording.keep_columns import Flags, carries_rights, of_calls
from sockscope.recording.keep_prune import Known, worth_keeping

WINDOW_BYTES = 512 << 20
"""Of the window; beyond, it becomes shorter."""
CONTROL_BYTES = 256 << 20
"""Of control events from before the window; beyond, the oldest are lost, and counted."""
SOCKET_BYTES = 64 << 20

_CHUNK_EVENTS = 16384
_CHUNKS_A_WINDOW = 32
_PENDING_EVENTS = 8192
"""So many have left the window before it is looked what of them matters."""

_IS_DATA = of_calls(DATA | KERNEL_EVENTS)
_IS_READ = of_calls(READS)
_IS_WRITE = of_calls(WRITES)
_IS_USE = of_calls(READS | WRITES | {Call.getsockname, Call.getpeername})
_EINTR, _EBADF, _EAGAIN = 4, 9, 11
_NOTHING_NEW = np.array([-_EINTR, -_EBADF, -_EAGAIN], np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is kept at a moment.

    Attributes:
        tables: in the order in which the events came.
        since_ns: from when on everything is there (CLOCK_MONOTONIC ns); None: nothing was let go yet.
        shortened: it is shorter than asked for, because it would not have fitted.
        lost_count: control events lost for want of room, all the session.
    """

    tables: tuple[Events, ...]
    since_ns: int | None
    shortened: bool
    lost_count: int

    @property
    def event_count(self) -> int:
        return sum(len(table) for table in self.tables)


@dataclass(frozen=True, slots=True)
class _Chunk:
    events: Events
    last_ns: int
    """When the last of them ended."""

    @property
    def size_bytes(self) -> int:
        return size_bytes(self.events)


class Kept:
    """Takes batches, gives the window.

    Args:
        keep_ns: how long the window is.
        spare: prunes in the background, so that `add` never takes long; None: within `add`.
        window_bytes: the most that the window may take.
        control_bytes: the most that control events from before it may take.
    """

    def __init__(
        self,
        keep_ns: int,
        *,
        spare: Executor | None = None,
        window_bytes: int = WINDOW_BYTES,
        control_bytes: int = CONTROL_BYTES,
    ) -> None:
        self._keep_ns = keep_ns
        self._spare = spare
        self._window_bytes = window_bytes
        self._control_bytes = control_bytes
        self._known = Known()
        self._chunks: deque[_Chunk] = deque()
        self._chunks_bytes = 0
        self._open: list[Events] = []
        self._open_count = self._open_bytes = 0
        self._open_since_ns = 0
        self._open_last_ns = 0
        self._complete_ns = 0
        self._since_ns: int | None = None
        self._shortened = False
        self._old = Events.empty()
        self._pending: list[Events] = []
        self._pending_count = self._pending_bytes = 0
        self._pruning: tuple[Future[Events], tuple[Events, ...]] | None = None
        self._lost_count = 0

    def begin(self, seed: Seed) -> None:
        """What was there at attach (again, and more, where processes are adopted later)."""
        self._known = Known.of(seed)

    def add(self, events: Events, complete_ns: int) -> None:
        """Take a batch.

        Args:
            events: copied; in any order.
            complete_ns: nothing that ended by then will come any more.
        """
        if len(events):
            self._take(events)
        self._complete_ns = max(self._complete_ns, complete_ns)
        long = self._complete_ns - self._open_since_ns > self._keep_ns // _CHUNKS_A_WINDOW
        if self._open and (long or self._open_count >= _CHUNK_EVENTS):
            self._seal()
        begins = self._complete_ns - self._keep_ns
        while self._chunks and self._chunks[0].last_ns < begins:
            self._age(self._chunks.popleft())
        while self._chunks_bytes + self._open_bytes > self._window_bytes and (self._chunks or self._open):
            if not self._chunks:
                self._seal()
            self._shortened = True
            self._age(self._chunks.popleft())
        self._prune()

    def window(self) -> Window:
        """What is kept now. The tables do not change any more."""
        pruning = self._pruning[1] if self._pruning is not None else (self._old,)
        tables = (*pruning, *self._pending, *(chunk.events for chunk in self._chunks), *self._open)
        return Window(
            tables=tuple(table for table in tables if len(table)),
            since_ns=self._since_ns,
            shortened=self._shortened,
            lost_count=self._lost_count,
        )

    @property
    def held_bytes(self) -> int:
        old = size_bytes(self._old) + self._pending_bytes
        return old + self._chunks_bytes + self._open_bytes

    def _take(self, events: Events) -> None:
        records = events.records
        ends = int(np.where(records["exit_ns"] >= 0, records["exit_ns"], records["enter_ns"]).max())
        if (records["exit_ns"] < 0).any():
            # It ends now, whatever came of it.
            ends = max(ends, self._complete_ns)
        mine = Events(records=records.copy(), blob=events.blob.copy())
        if not self._open:
            self._open_since_ns = self._complete_ns
            self._open_last_ns = ends
        self._open.append(mine)
        self._open_count += len(mine)
        self._open_bytes += size_bytes(mine)
        self._open_last_ns = max(self._open_last_ns, ends)

    def _seal(self) -> None:
        chunk = _Chunk(Events.concat(self._open), self._open_last_ns)
        self._chunks.append(chunk)
        self._chunks_bytes += chunk.size_bytes
        self._open = []
        self._open_count = self._open_bytes = 0

    def _age(self, chunk: _Chunk) -> None:
        """The chunk leaves the window: its control events stay for now, and how each descriptor was last used."""
        self._chunks_bytes -= chunk.size_bytes
        self._since_ns = max(self._since_ns or 0, chunk.last_ns + 1)
        events = chunk.events
        is_data = _IS_DATA[events.records["call"]] & ~carries_rights(events)
        rows = np.concatenate([np.flatnonzero(~is_data), last_uses(events, is_data)])
        left = subset(events, rows)
        self._pending.append(left)
        self._pending_count += len(left)
        self._pending_bytes += size_bytes(left)

    def _prune(self) -> None:
        if self._pruning is not None:
            if not self._pruning[0].done():
                return
            self._old = self._capped(self._pruning[0].result())
            self._pruning = None
        due = self._pending_count >= max(_PENDING_EVENTS, len(self._old) // 2)
        if not due and self._pending_bytes < self._control_bytes // 8:
            return
        tables = (self._old, *self._pending)
        self._pending = []
        self._pending_count = self._pending_bytes = 0
        if self._spare is None:
            self._old = self._capped(pruned(tables, self._known))
        else:
            self._pruning = (self._spare.submit(pruned, tables, self._known), tables)

    def _capped(self, old: Events) -> Events:
        over = size_bytes(old) - self._control_bytes
        if over <= 0:
            return old
        # A tenth more, so that it is not done for every batch.
        sizes = np.cumsum(old.records["blob_bytes"].astype(np.int64) + old.records.itemsize)
        first = int(np.searchsorted(sizes, over + self._control_bytes // 10)) + 1
        self._lost_count += min(first, len(old))
        return subset(old, np.arange(min(first, len(old)), len(old)))


def pruned(tables: Sequence[Events], known: Known) -> Events:
    """One table of what still matters of these."""
    events = Events.concat([table for table in tables if len(table)])
    return subset(events, np.flatnonzero(worth_keeping(events, known)))


def size_bytes(events: Events) -> int:
    return events.records.nbytes + events.blob.nbytes


def last_uses(events: Events, is_data: Flags) -> Rows:
    """Of each descriptor the last read, the last write, and the last answers of getsockname and getpeername.

    They say that an idle connection was used, and whether its end was read, long after the window has passed.
    """
    records = events.records
    rows = np.flatnonzero(is_data & _IS_USE[records["call"]] & (records["exit_ns"] >= 0))
    told = (records["ret"][rows] >= 0) | ~np.isin(records["ret"][rows], _NOTHING_NEW)
    rows = rows[told]
    if not len(rows):
        return rows
    rows = rows[np.argsort(records["exit_ns"][rows], kind="stable")[::-1]]
    call = records["call"][rows]
    kind = np.where(_IS_READ[call], 0, np.where(_IS_WRITE[call], 1, np.where(call == Call.getsockname, 2, 3)))
    number = records["args"][rows, 0].astype(np.int64) & 0xFFFF_FFFF
    _, first = np.unique((records["tgid"][rows].astype(np.int64) << 2 | kind) << 32 | number, return_index=True)
    return np.asarray(rows[first], np.int64)


class KeptSockets:
    """Socket snapshots of the window, and the newest however old."""

    def __init__(self, keep_ns: int, most_bytes: int = SOCKET_BYTES) -> None:
        self._keep_ns = keep_ns
        self._most_bytes = most_bytes
        self._snapshots: deque[npt.NDArray[np.void]] = deque()
        self._held_bytes = 0

    def add(self, records: npt.NDArray[np.void]) -> None:
        """One snapshot's rows (SOCKET_DTYPE); empty ones say nothing."""
        if not len(records):
            return
        self._snapshots.append(records)
        self._held_bytes += records.nbytes
        begins = int(records["time_ns"].max()) - self._keep_ns
        while len(self._snapshots) > 1 and (
            int(self._snapshots[0]["time_ns"].max()) < begins or self._held_bytes > self._most_bytes
        ):
            self._held_bytes -= self._snapshots.popleft().nbytes

    def snapshots(self) -> list[npt.NDArray[np.void]]:
        """Oldest first, numbered from 0."""
        numbered = []
        for at, records in enumerate(self._snapshots):
            mine = records.copy()
            mine["snapshot"] = at
            numbered.append(mine)
        return numbered
