"""What the flight recorder holds at a moment, and how it becomes a recording like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from sockscope.errors import SockscopeError
from sockscope.model.events import Events
from sockscope.model.facts import Facts
from sockscope.model.info import SessionInfo
from sockscope.model.seed import Seed
from sockscope.model.sockets import Sockets
from sockscope.recording.keep import WINDOW_BYTES, Window
from sockscope.recording.writer import Writer
from sockscope.sources.packets.segments import join

_ROWS_A_BATCH = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A moment, held fast: nothing of it changes while it is written.

    Attributes:
        info: of the session as a whole; `dump_info` makes it the window's.
        snapshots: socket rows, one array a snapshot.
        owners: who held them at the last; None: not known.
        facts: of /proc.
        segments: packets, opened; written once, then closed.
    """

    info: SessionInfo
    seed: Seed
    window: Window
    snapshots: Sequence[npt.NDArray[np.void]]
    facts: Facts
    owners: Sockets | None
    segments: Sequence[BinaryIO]
    keep_s: float

    def drop(self) -> None:
        """It will not be written."""
        for segment in self.segments:
            segment.close()


def dump_info(shot: Shot) -> SessionInfo:
    """The window's facts: it begins where the data does, and says what was before."""
    info, window = shot.info, shot.window
    lost = dict(info.syscalls.lost)
    if window.lost_count:
        lost["flight recorder full"] = window.lost_count
    syscalls = replace(info.syscalls, event_count=window.event_count, lost=lost)
    sockets = replace(info.sockets, snapshot_count=len(shot.snapshots))
    # The file is counted when it is read: the count here is the whole session's.
    packets = replace(info.packets, seen_count=0)
    info = replace(info, syscalls=syscalls, sockets=sockets, packets=packets, complete=True)
    since = window.since_ns
    if since is None or since <= info.started_ns:
        return info
    before, now = info.clock_samples[0], info.clock_samples[-1]
    realtime = now[1] - (now[0] - since)
    watched_s, kept_s = (info.ended_ns - info.started_ns) / 1e9, (info.ended_ns - since) / 1e9
    notes = [
        f"flight recorder: the last {_span(kept_s)} of {_span(watched_s)}; of what was before, what still mattered"
    ]
    if window.shortened:
        notes.append(
            f"flight recorder: {_span(shot.keep_s)} did not fit into {WINDOW_BYTES >> 20} MiB; the window is shorter"
        )
    samples = tuple(sample for sample in info.clock_samples[1:] if sample[0] >= since - 2_000_000_000)
    return replace(
        info,
        started_ns=since,
        started_realtime_ns=realtime,
        clock_samples=samples or (before, now),
        notes=(*info.notes, *notes),
    )


def write(shot: Shot, folder: Path) -> str:
    """Make a recording.

    Returns:
        What did not fit, or why there is nothing; empty: all is there.
    """
    info = dump_info(shot)
    try:
        writer = Writer(folder)
    except SockscopeError as error:
        shot.drop()
        return error.message
    writer.begin(replace(info, complete=False), shot.seed)
    for table in shot.window.tables:
        for first in range(0, len(table), _ROWS_A_BATCH):
            writer.write_events(Events(records=table.records[first : first + _ROWS_A_BATCH], blob=table.blob))
    for records in shot.snapshots:
        writer.write_sockets(records)
    writer.write_facts(shot.facts)
    problem = ""
    if shot.segments:
        try:
            join(shot.segments, writer.packets_path)
        except OSError as error:
            problem = f"the packets could not be written to {folder}: {error.strerror}"
    problem = writer.problem or problem
    if writer.lost_event_count:
        lost = {**info.syscalls.lost, "disk full": writer.lost_event_count}
        info = replace(info, syscalls=replace(info.syscalls, lost=lost))
    if problem:
        info = replace(info, notes=(*info.notes, problem))
    writer.finish(info, shot.owners)
    return writer.problem or problem


def _span(seconds: float) -> str:
    """`60 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
