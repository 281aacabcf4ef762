"""Connections' stories: their syscalls in every process, their packets, the kernel's states, in time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sockscope.analysis.collection import no_collection
from sockscope.analysis.narration.kernel_story import Told
from sockscope.analysis.narration.timeline_calls import CallTeller
from sockscope.analysis.narration.timeline_events import EventPicker
from sockscope.analysis.narration.timeline_states import (
    gone_rows,
    kernel_rows,
    sample_rows,
    telling_samples,
    untold_ends,
)
from sockscope.analysis.narration.timeline_wire import PacketTeller
from sockscope.analysis.session import Ids, Session
from sockscope.model.columns import group_pieces
from sockscope.model.connections import Connection
from sockscope.model.events import EventFlag
from sockscope.model.report import Lane, TimelineRow, TimelineTable

_EVENT, _PACKET, _SAMPLE, _GONE, _TOLD, _GAP = range(6)
_URING = int(EventFlag.URING)
_TOGETHER = 512
_ROWS_TOGETHER = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tickets:
    """What will become items, in order: columns, so that a long story is cut before anything is decoded.

    Attributes:
        place: shape (n,), int64, index into the connections, ascending.
        time_ns, source, ref: shape (n,), int64.
        came_in: shape (n,), a recvmsg that brought the connection.
    """

    place: Ids
    time_ns: Ids
    source: Ids
    ref: Ids
    came_in: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time_ns)

    def of(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> _Tickets:
        return _Tickets(
            place=self.place[rows],
            time_ns=self.time_ns[rows],
            source=self.source[rows],
            ref=self.ref[rows],
            came_in=self.came_in[rows],
        )


class Timelines:
    """Makes timelines of a session's connections when asked (its `tables` are a `model.report.TimelineTables`).

    What all connections need (which wait came before which call, who watches which descriptor) is
    worked out once, at the first call.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._picker = EventPicker(session)
        self._packets = PacketTeller(session)
        self._calls: CallTeller | None = None

    def tables(self, connections: Sequence[int], limits: Sequence[int]) -> Iterator[TimelineTable]:
        """The stories of connections, one after another, each in order of time.

        Over its limit of items the middle of one is left out, and one item says how much.
        """
        every = np.array(connections, np.int64)
        for first, end in self._together(every):
            some = [self._session.connections[number] for number in connections[first:end]]
            with no_collection():
                made = list(self._tables(some, np.array(limits[first:end], np.int64)))
            yield from made

    def _together(self, connections: Ids) -> Iterator[tuple[int, int]]:
        """Those that are told together: where each such part begins, and ends."""
        for low in range(0, len(connections), _TOGETHER):
            counts = self._session.row_counts(connections[low : low + _TOGETHER])
            for first, end in group_pieces(np.append(0, np.cumsum(counts)), _ROWS_TOGETHER):
                yield low + first, low + end

    def _tables(self, connections: Sequence[Connection], limits: Ids) -> Iterator[TimelineTable]:
        tickets, part, gaps = _cut(self._tickets(connections), np.maximum(limits, 3))
        rows = self._rows(connections, tickets, part, gaps)
        bounds = np.searchsorted(tickets.place, np.arange(len(connections) + 1)).tolist()
        for low, high in pairwise(bounds):
            yield TimelineTable.of_rows(rows[low:high])

    def _tickets(self, connections: Sequence[Connection]) -> _Tickets:
        session = self._session
        ids = np.array([one.id for one in connections], np.int64)
        records = session.events.records
        with_calls, events, came_in = self._picker.of(connections)
        entered, left = records["enter_ns"][events], records["exit_ns"][events]
        # What an io_uring did lies where it was done: submitted it may have been long before, and once for many.
        # Who waits for descriptors to come may have done so since long before this connection.
        late = came_in | ((records["flags"][events] & _URING) != 0)
        called_ns = np.where((entered >= 0) & ~(late & (left >= 0)), entered, left)
        on_wire, packets = session.packets_of_each(ids)
        states = Told(session, ids)
        sampled, samples = telling_samples(session, ids, states)
        ended, ends_ns = untold_ends(connections, states)
        heard, told = session.kernel_of_each(ids)
        # Of each source its number, the connections' places, the times and the refs.
        parts: tuple[tuple[int, Ids, Ids, Ids], ...] = (
            (_EVENT, with_calls, called_ns, events),
            (_PACKET, on_wire, session.packet_ns[packets], packets),
            (_SAMPLE, sampled, session.sockets.records["time_ns"][samples], samples),
            (_GONE, ended, ends_ns, np.full(len(ended), -1)),
            (_TOLD, heard, session.kernel["time_ns"][told], told),
        )
        place, time_ns, ref = (np.concatenate([part[column] for part in parts]) for column in (1, 2, 3))
        source = np.repeat([part[0] for part in parts], [len(part[1]) for part in parts])
        brought = np.zeros(len(place), np.bool_)
        brought[: len(came_in)] = came_in
        # At the same time the wire comes first: it is the cause.
        order = np.lexsort((ref, source != _PACKET, time_ns, place))
        return _Tickets(place=place, time_ns=time_ns, source=source, ref=ref, came_in=brought).of(order)

    def _rows(
        self, connections: Sequence[Connection], tickets: _Tickets, part: Ids, gaps: list[TimelineRow]
    ) -> list[TimelineRow]:
        """One a ticket."""
        if self._calls is None:
            self._calls = CallTeller(self._session, self._picker.data_by_open_file)
        picked = [np.flatnonzero(tickets.source == source) for source in range(_GAP + 1)]
        calls, packets, samples, gone, told, _ = (tickets.of(at) for at in picked)
        made: tuple[Iterable[TimelineRow], ...] = (
            self._calls.rows(connections, calls.place, part[picked[_EVENT]], calls.ref, calls.came_in),
            self._packets.rows(connections, packets.place, part[picked[_PACKET]], packets.ref),
            sample_rows(self._session, samples.ref),
            gone_rows(gone.time_ns.tolist()),
            kernel_rows(self._session, told.ref),
            gaps,
        )
        every = [row for rows in made for row in rows]
        return [every[at] for at in np.argsort(np.concatenate(picked)).tolist()]


def _cut(tickets: _Tickets, limits: Ids) -> tuple[_Tickets, Ids, list[TimelineRow]]:
    """Leave out the middle where there are more than the limit, shape (connections,).

    Returns:
        The tickets, one for each gap; shape (n,), a number that changes with the connection and after a gap; the gaps.
    """
    counts = np.bincount(tickets.place, minlength=len(limits))
    begins = np.cumsum(counts) - counts
    # The end tells more of what went wrong than the beginning: it gets the odd place.
    first = (limits - 1) // 2
    last = counts - (limits - 1 - first)
    long, rank = (counts > limits)[tickets.place], np.arange(len(tickets)) - begins[tickets.place]
    after = long & (rank >= last[tickets.place])
    gap = long & (rank == first[tickets.place])
    gaps: list[TimelineRow] = []
    for at in np.flatnonzero(counts > limits).tolist():
        began_ns, ended_ns = tickets.time_ns[[begins[at] + first[at], begins[at] + last[at] - 1]].tolist()
        text = f"… {last[at] - first[at]} more events …"
        gaps.append(
            (began_ns, ended_ns - began_ns, Lane.KERNEL, "--", "…", text, "left out here", -1, False, False, False)
        )
    kept = np.flatnonzero(~long | (rank <= first[tickets.place]) | after)
    source = np.where(gap, _GAP, tickets.source)
    return replace(tickets, source=source).of(kept), (tickets.place * 2 + after)[kept], gaps
