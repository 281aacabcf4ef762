"""The requests of a Perfetto trace: below each process what it was asked, from the first byte to the answer's last."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.tables import SessionTables
from sockscope.reports.perfetto_lanes import lanes
from sockscope.reports.perfetto_names import Names, Tracks
from sockscope.reports.perfetto_wire import UNFINISHED, Int64s, Note, Rows

_SPANS = (
    ("lay unread ns", "arrived_ns", "first_read_ns"),
    ("thought about ns", "last_read_ns", "first_write_ns"),
    ("written ns", "first_write_ns", "last_write_ns"),
    ("ACK of the peer ns", "sent_ns", "acked_ns"),
)
"""What took how long: a name, and the two columns it lies between."""
_COUNTS = (("bytes read", "read_bytes"), ("bytes written", "written_bytes"))


def request_rows(
    tables: SessionTables, process_tracks: dict[int, int], tracks: Tracks, names: Names, connection_string: Int64s
) -> Rows:
    """A slice a request, on tracks `requests` of the process that answered; an instant for one without an answer.

    Args:
        process_tracks: tgid → its track.
        connection_string: shape (connections + 1,), interned names of connections.
    """
    made = tables.exchanges
    begin = np.where(made["arrived_ns"] >= 0, made["arrived_ns"], made["first_read_ns"])
    begin = np.where(begin >= 0, begin, made["first_write_ns"])
    known = np.array(list(process_tracks), np.int64)
    kept = np.flatnonzero((begin >= 0) & np.isin(made["tgid"], known))
    end = np.where(made["answered"] != 0, np.maximum(made["last_write_ns"], begin), UNFINISHED)
    far = np.where(end < 0, np.iinfo(np.int64).max, end)
    kept = kept[np.lexsort((far[kept], begin[kept]))]
    made, begin, end = made[kept], begin[kept], end[kept]
    tgid = made["tgid"].astype(np.int64)
    answered = end != UNFINISHED
    lane = np.zeros(len(made), np.int64)
    lane[answered] = lanes(tgid[answered], begin[answered], end[answered])
    track = np.zeros(len(made), np.int64)
    for process in np.unique(tgid).tolist():
        mine = tgid == process
        laid = [
            tracks.plain("requests", parent=process_tracks[process]) for _ in range(int(lane[mine].max(initial=-1)) + 1)
        ]
        track[mine] = np.array(laid, np.int64)[lane[mine]]
    connection = made["connection"].astype(np.int64)
    every = np.ones(len(made), np.bool_)
    notes = [
        Note(name=names.notes.id("connection"), value=connection_string[connection], present=every, interned=True),
        *(
            Note(name=names.notes.id(name), value=made[column].astype(np.int64), present=every)
            for name, column in _COUNTS
        ),
        *(_span(names.notes.id(name), made[first], made[last]) for name, first, last in _SPANS),
    ]
    return Rows(
        track=track,
        begin_ns=begin,
        end_ns=end,
        instant=~answered,
        name=np.where(answered, names.events.id("request"), names.events.id("request without an answer")),
        category=np.full(len(made), names.categories.id("request"), np.int64),
        flow=np.zeros(len(made), np.int64),
        notes=notes,
    )


def _span(name: int, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> Note:
    return Note(name=name, value=np.maximum(last - first, 0), present=(first >= 0) & (last >= first))
