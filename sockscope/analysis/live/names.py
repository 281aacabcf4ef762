"""Which open file a number meant at a moment just past, out of a replay that has moved on since."""

from __future__ import annotations

from collections import deque
from typing import Final

from sockscope.analysis.replay.state import ReplayState
from sockscope.model.descriptors import EpollInterest, OpenFile

_KEPT: Final = 64
"""Generations of one number that are kept: more do not fit into a batch worth reading."""


class Names:
    """Looks numbers up by thread and time in a replay that is fed batch by batch."""

    def __init__(self, state: ReplayState) -> None:
        self._state = state
        self._generations: dict[tuple[int, int], deque[int]] = {}
        self._table_of: dict[int, int] = {}
        self._descriptors_seen = 0
        self._spans_seen = 0
        self._over: set[int] = set()
        self._watched: dict[tuple[int, int], deque[EpollInterest]] = {}
        self._interests_seen = 0
        self.update()

    def update(self) -> None:
        """Take in what the last feed brought."""
        state = self._state
        for descriptor in state.descriptors[self._descriptors_seen :]:
            key = (descriptor.table, descriptor.fd)
            self._generations.setdefault(key, deque(maxlen=_KEPT)).append(descriptor.id)
        self._descriptors_seen = len(state.descriptors)
        for interest in state.interests[self._interests_seen :]:
            self._watched.setdefault((interest.epoll, interest.data), deque(maxlen=_KEPT)).append(interest)
        self._interests_seen = len(state.interests)
        for tid, _, table in state.spans[self._spans_seen :]:
            # -1 ends a task; its last events are still to be told.
            if table >= 0:
                self._table_of[tid] = table
        self._spans_seen = len(state.spans)

    def forget(self) -> None:
        """What the replay no longer knows; threads that had ended at the last call already."""
        state = self._state
        del state.spans[:]
        self._spans_seen = 0
        self._interests_seen = len(state.interests)
        for key in list(self._watched):
            left_ones = [one for one in self._watched[key] if one.removed_ns is None]
            if left_ones:
                self._watched[key] = deque(left_ones, maxlen=_KEPT)
            else:
                del self._watched[key]
        known = {descriptor.id for descriptor in state.descriptors}
        for key in list(self._generations):
            left = [index for index in self._generations[key] if index in known]
            if left:
                self._generations[key] = deque(left, maxlen=_KEPT)
            else:
                del self._generations[key]
        ended = self._table_of.keys() - state.task_table.keys()
        for tid in ended & self._over:
            del self._table_of[tid]
        self._over = ended - self._over

    def watched(self, epoll: int, data: int, time_ns: int) -> OpenFile | None:
        """What an epoll instance (its open file) told of under this data at that time."""
        for one in reversed(self._watched.get((epoll, data), ())):
            if one.added_ns <= time_ns and (one.removed_ns is None or one.removed_ns >= time_ns):
                try:
                    return self._state.open_files[one.open_file]
                except KeyError:
                    return None
        return None

    def open_file(self, tid: int, fd: int, time_ns: int) -> OpenFile | None:
        """What the number named for this thread at that time; None where nothing is known."""
        table = self._table_of.get(tid)
        if table is None:
            return None
        descriptors = self._state.descriptors
        for index in reversed(self._generations.get((table, fd), ())):
            descriptor = descriptors[index]
            if descriptor.opened_ns <= time_ns:
                over = descriptor.closed_ns is not None and descriptor.closed_ns < time_ns
                return None if over else self._state.open_files[descriptor.open_file]
        return None
