"""The syscalls of a Perfetto trace: a track a thread, a slice a call; what an io_uring did on tracks of its own."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import FD_IN_ARG0, FIRST_TASK_EVENT, GROUP_OF, KERNEL_EVENTS, READS, WRITES, Call
from sockscope.model.events import EventFlag, is_seeded
from sockscope.model.report import Report
from sockscope.model.tables import SessionTables
from sockscope.reports.export_words import call_text
from sockscope.reports.perfetto_lanes import lanes
from sockscope.reports.perfetto_names import Names, Tracks
from sockscope.reports.perfetto_wire import UNFINISHED, Int64s, Note, Rows, nested, number

MOST_TEXTS = 100_000
"""So many calls are decoded; one takes 30 µs."""

_PLACE_BITS = 33
"""A thread's number, one up."""
_MOST_CALL = 1 << 16
_SEEN_FLAGS = (
    (EventFlag.ENTERED_ONLY, "had not returned when the watching ended"),
    (EventFlag.NO_ENTRY, "was entered before the watching began"),
    (EventFlag.TRUNCATED, "only the first bytes were copied"),
    (EventFlag.TRACER_EINTR, "interrupted by the attach itself"),
    (EventFlag.COPY_FAILED, "its memory could not be read"),
    (EventFlag.URING, "io_uring"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Where each event lies in the trace.

    Attributes:
        rows: shape (k,), event ids, in order of time; kernel events and what was not witnessed are left out.
        begin_ns, end_ns: shape (k,); UNFINISHED.
        track: shape (k,).
        process_tracks: tgid → its track.
    """

    rows: Int64s
    begin_ns: Int64s
    end_ns: Int64s
    track: Int64s
    process_tracks: dict[int, int]

    def track_of(self, event: int) -> int:
        """0: it is not in the trace."""
        found = np.flatnonzero(self.rows == event)
        return int(self.track[found[0]]) if len(found) else 0


def lay_out(report: Report, tables: SessionTables, tracks: Tracks) -> Calls:
    """Give every event its track."""
    records = tables.events.records
    skipped = is_seeded(records)
    skipped |= np.isin(records["call"], [int(call) for call in KERNEL_EVENTS])
    rows = np.flatnonzero(~skipped)
    entered, left = records["enter_ns"][rows], records["exit_ns"][rows]
    begin = np.where(entered >= 0, entered, np.minimum(report.info.started_ns, np.maximum(left, 0)))
    end = np.where(left >= 0, np.maximum(left, begin), UNFINISHED)
    order = np.lexsort((np.where(end < 0, np.iinfo(np.int64).max, end), begin))
    rows, begin, end = rows[order], begin[order], end[order]
    process_tracks = _process_tracks(report, tables, rows, tracks)
    ringed = (records["flags"][rows] & EventFlag.URING) != 0
    instant = records["call"][rows] >= FIRST_TASK_EVENT
    tgid, tid = records["tgid"][rows].astype(np.int64), records["tid"][rows].astype(np.int64)
    # io_uring knows no threads: a process's calls lie together.
    place = np.where(ringed, -1, tid & 0xFFFFFFFF) + 1
    processes, rank = np.unique(tgid, return_inverse=True)
    places, key = np.unique(rank << _PLACE_BITS | place, return_inverse=True)
    lane = np.zeros(len(rows), np.int64)
    lane[~instant] = lanes(key[~instant], begin[~instant], end[~instant])
    most = int(lane.max(initial=0)) + 1
    used, which = np.unique(key * most + lane, return_inverse=True)
    track_of = np.zeros(max(len(used), 1), np.int64)
    for at, (one, number_of_lane) in enumerate(zip((used // most).tolist(), (used % most).tolist(), strict=True)):
        process = int(processes[places[one] >> _PLACE_BITS])
        where = int(places[one] & ((1 << _PLACE_BITS) - 1)) - 1
        parent, name = process_tracks[process], tables.comm(process)
        if where < 0:
            track_of[at] = tracks.plain("io_uring", parent=parent)
        elif number_of_lane:
            track_of[at] = tracks.plain(f"thread {where}, overlapping", parent=parent)
        else:
            track_of[at] = tracks.thread(process, where, name, parent=parent)
    return Calls(rows=rows, begin_ns=begin, end_ns=end, track=track_of[which], process_tracks=process_tracks)


def _process_tracks(report: Report, tables: SessionTables, rows: Int64s, tracks: Tracks) -> dict[int, int]:
    known = {process.tgid: process for process in report.processes}
    seen = np.unique(tables.events.records["tgid"][rows]).tolist()
    made = {}
    for tgid in sorted({*known, *seen}):
        process = known.get(tgid)
        comm = process.comm if process else tables.comm(tgid)
        made[tgid] = tracks.process(tgid, comm, process.cmdline if process else ())
    return made


class CallRows:
    """Makes the rows of calls, a chunk at a time."""

    def __init__(
        self, report: Report, tables: SessionTables, calls: Calls, names: Names, connection_string: Int64s
    ) -> None:
        """`connection_string`: shape (connections + 1,), interned names of connections; the last: none."""
        self._tables, self._calls, self._connection_string = tables, calls, connection_string
        self._name = np.full(_MOST_CALL, names.events.id(Call.unknown.name), np.int64)
        self._category = np.full(_MOST_CALL, names.categories.id("task"), np.int64)
        self._has_fd = np.zeros(_MOST_CALL, np.bool_)
        self._result = np.full(_MOST_CALL, names.notes.id("result"), np.int64)
        for call in Call:
            self._name[call] = names.events.id(
                call.name.removeprefix("task_") if call >= FIRST_TASK_EVENT else call.name
            )
        for call, group in GROUP_OF.items():
            self._category[call] = names.categories.id(str(group))
        self._has_fd[list(FD_IN_ARG0)] = True
        self._result[list(READS | WRITES)] = names.notes.id("bytes")
        self._fd, self._error = names.notes.id("fd"), names.notes.id("error")
        self._connection, self._seen = names.notes.id("connection"), names.notes.id("note")
        self._text = names.notes.id("call")
        records = tables.events.records
        self._errors = {
            number: names.strings.id(errno.errorcode.get(-number, f"errno {-number}"))
            for number in np.unique(records["ret"][(records["ret"] < 0) & (records["ret"] >= -4095)]).tolist()
        }
        self._flags = {
            flags: names.strings.id(", ".join(words for flag, words in _SEEN_FLAGS if flags & flag))
            for flags in np.unique(records["flags"]).tolist()
        }
        self._told = _told(report, tables, calls)

    def rows(self, begin: int, end: int) -> Rows:
        """Those of `Calls.rows[begin:end]`."""
        calls, tables = self._calls, self._tables
        events = calls.rows[begin:end]
        records = tables.events.records[events]
        call, ret, flags = records["call"], records["ret"], records["flags"]
        connection = tables.event_connection[events].astype(np.int64)
        instant = call >= FIRST_TASK_EVENT
        returned = ~instant & ((flags & EventFlag.ENTERED_ONLY) == 0)
        failed = returned & (ret < 0) & (ret >= -4095)
        joined = connection >= 0
        notes = (
            Note(name=self._fd, value=_fd(records["args"][:, 0]), present=self._has_fd[call]),
            Note(name=self._result[call], value=np.where(failed, 0, ret), present=returned & ~failed),
            Note(name=self._error, value=_looked_up(self._errors, ret, failed), present=failed, interned=True),
            Note(name=self._connection, value=self._connection_string[connection], present=joined, interned=True),
            Note(name=self._seen, value=_looked_up(self._flags, flags, flags != 0), present=flags != 0, interned=True),
        )
        return Rows(
            track=calls.track[begin:end],
            begin_ns=calls.begin_ns[begin:end],
            end_ns=calls.end_ns[begin:end],
            instant=instant,
            name=self._name[call],
            category=self._category[call],
            flow=connection + 1,
            notes=notes,
            texts=list(self._texts(events, instant | self._told[begin:end])),
        )

    def _texts(self, events: Int64s, told: npt.NDArray[np.bool_]) -> Iterator[bytes]:
        if not told.any():
            return
        for event, wanted in zip(events.tolist(), told.tolist(), strict=True):
            if not wanted:
                yield b""
                continue
            yield nested(4, number(1, self._text) + nested(6, call_text(self._tables, event)))


def _told(report: Report, tables: SessionTables, calls: Calls) -> npt.NDArray[np.bool_]:
    """Which calls are decoded: those on connections with findings first, then the earliest."""
    out = np.ones(len(calls.rows), np.bool_)
    if len(out) > MOST_TEXTS:
        found = np.array([bool(row.finding_indexes) for row in report.connections] + [False], np.bool_)
        rank = np.argsort(~found[tables.event_connection[calls.rows]], kind="stable")
        out[rank[MOST_TEXTS:]] = False
    return out


def _fd(argument: npt.NDArray[np.uint64]) -> Int64s:
    """An int as the kernel takes it from its register."""
    return argument.astype(np.uint32).view(np.int32).astype(np.int64)


def _looked_up(table: dict[int, int], keys: npt.NDArray[np.integer], wanted: npt.NDArray[np.bool_]) -> Int64s:
    out = np.zeros(len(keys), np.int64)
    for key in np.unique(keys[wanted]).tolist():
        out[wanted & (keys == key)] = table[key]
    return out
