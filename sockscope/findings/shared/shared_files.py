"""Opens and removals of the files in /dev/shm, by name."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Session
from sockscope.model.calls import Call
from sockscope.model.columns import rows_of
from sockscope.model.event_rows import find_sections
from sockscope.model.events import Section

SHARED = "/dev/shm/"
SEMAPHORES = "/dev/shm/sem."

_OPENS = (Call.open, Call.openat, Call.openat2, Call.creat)
_REMOVALS = (Call.unlink, Call.unlinkat)
_O_CREAT, _O_EXCL = 0o100, 0o200


def opened(session: Session, beginning: str, *, created: bool = False) -> dict[str, list[int]]:
    """Successful opens of files whose path begins so, by path, each in time.

    Args:
        created: those with O_CREAT; otherwise those without it, which can only have found the file there.
    """
    records = session.events.records
    found = _named(session, _OPENS, beginning)
    picked: dict[str, list[int]] = {}
    for event, path in found:
        makes = records["call"][event] == Call.creat or bool(_flags(session, event) & _O_CREAT)
        if makes == created:
            picked.setdefault(path, []).append(event)
    return picked


def made_anew(session: Session, event: int) -> bool:
    """Whether this successful open was one with O_CREAT and O_EXCL: it made the file."""
    return _flags(session, event) & (_O_CREAT | _O_EXCL) == _O_CREAT | _O_EXCL


def _flags(session: Session, event: int) -> int:
    """Of an open; 0 for creat, which has none, and openat2, whose flags are in memory."""
    row = session.events.records[event]
    place = {Call.open: 1, Call.openat: 2}.get(row["call"])
    return int(row["args"][place]) if place is not None else 0


def unlinked(session: Session, beginning: str) -> dict[str, list[int]]:
    """Successful removals of files whose path begins so, by path, each in time."""
    picked: dict[str, list[int]] = {}
    for event, path in _named(session, _REMOVALS, beginning):
        picked.setdefault(path, []).append(event)
    return picked


def _named(session: Session, calls: Iterable[Call], beginning: str) -> list[tuple[int, str]]:
    records, blob = session.events.records, session.events.blob
    # A file server opens a file a request: all paths are compared at once.
    table = by_call(calls)
    rows = rows_of(session.event_call, lambda part: table[part])
    rows = rows[records["ret"][rows] >= 0]
    wanted = np.frombuffer(beginning.encode(), np.uint8)
    place, size = find_sections(session.events, rows, Section.PATH)
    long = (place >= 0) & (size >= len(wanted))
    rows, place, size = rows[long], place[long], size[long]
    if not len(rows):
        return []
    same = (blob[place[:, None] + np.arange(len(wanted))] == wanted).all(axis=1)
    rows, place, size = rows[same], place[same], size[same]
    order = np.argsort(session.effective_ns[rows], kind="stable")
    return [
        (int(rows[i]), blob[place[i] : place[i] + size[i]].tobytes().rstrip(b"\0").decode("utf-8", "backslashreplace"))
        for i in order.tolist()
    ]
