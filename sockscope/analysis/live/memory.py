"""Keeps the live view's replay small: what has ended a while ago is forgotten. The offline replay keeps all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, SupportsIndex, TypeVar, overload

from sockscope.analysis.replay.state import ReplayState
from sockscope.model.ids import NO_ID

_T = TypeVar("_T")

_MOST_UNDER_WAY: Final = 1000
"""Messages with descriptors to whom nobody knows: older ones have surely arrived."""
_AT_LEAST: Final = 8192
"""So many new descriptors and files are worth a round."""


class Forgetful(list[_T]):
    """A list whose items keep their index when others are forgotten. Its length is the next index."""

    def __init__(self, items: Iterable[_T] = ()) -> None:
        super().__init__()
        self._items = dict(enumerate(items))
        self._next = len(self._items)

    def __len__(self) -> int:
        return self._next

    def __iter__(self) -> Iterator[_T]:
        return iter(self._items.values())

    def append(self, item: _T) -> None:
        self._items[self._next] = item
        self._next += 1

    @overload
    def __getitem__(self, at: SupportsIndex) -> _T: ...
    @overload
    def __getitem__(self, at: slice) -> list[_T]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> _T | list[_T]:
        if at.__class__ is int:
            return self._items[at]
        if isinstance(at, slice):
            indexes = range(*at.indices(self._next))
            return [self._items[i] for i in indexes if i in self._items]
        return self._items[at.__index__()]

    @overload
    def __setitem__(self, at: SupportsIndex, item: _T) -> None: ...
    @overload
    def __setitem__(self, at: slice, item: Iterable[_T]) -> None: ...
    def __setitem__(self, at: SupportsIndex | slice, item: _T | Iterable[_T]) -> None:
        assert not isinstance(at, slice)
        self._items[at.__index__()] = item  # type: ignore[assignment]

    def knows(self, at: int) -> bool:
        return at in self._items

    def forget(self, indexes: Iterable[int]) -> None:
        for at in indexes:
            self._items.pop(at, None)

    @property
    def known_count(self) -> int:
        return len(self._items)


class Forgetting:
    """Makes a replay forget.

    Args:
        state: its lists are replaced by forgetful ones.
    """

    def __init__(self, state: ReplayState) -> None:
        self._state = state
        self._descriptors = Forgetful(state.descriptors)
        self._files = Forgetful(state.open_files)
        self._tables = Forgetful(state.tables)
        self._holders = Forgetful(state.holder_count)
        self._tasks = Forgetful(state.task_count)
        state.descriptors, state.open_files, state.tables = self._descriptors, self._files, self._tables
        state.holder_count, state.task_count = self._holders, self._tasks
        self._due_at = len(self._descriptors) + len(self._files) + _AT_LEAST

    @property
    def due(self) -> bool:
        """So much is new that a round is worth its time."""
        return len(self._descriptors) + len(self._files) >= self._due_at

    def forget(self, before_ns: int) -> None:
        """Forget what had ended by then."""
        state = self._state
        del state.interests[:]
        self._messages()
        under_way = {d for queue in state.messages.values() for message in queue for d in message.sources}
        closed = {d.id for d in self._descriptors if d.closed_ns is not None and d.closed_ns < before_ns} - under_way
        for descriptor in closed:
            one = self._descriptors[descriptor]
            key = (one.table, one.fd)
            if state.last_closed.get(key) == descriptor:
                del state.last_closed[key]
        for file in self._files:
            if len(file.descriptors) > 1:
                file.descriptors = [d for d in file.descriptors if d not in closed]
        self._forget_files(before_ns, {self._descriptors[d].open_file for d in under_way if self._descriptors.knows(d)})
        self._descriptors.forget(closed)
        self._forget_tables(before_ns)
        for tgid in [t for t, p in state.processes.items() if p.exited_ns is not None and p.exited_ns < before_ns]:
            del state.processes[tgid]
            state.seeded_tgids.discard(tgid)
        known = self._descriptors.known_count + self._files.known_count
        self._due_at = len(self._descriptors) + len(self._files) + max(_AT_LEAST, known)

    def _messages(self) -> None:
        queue = self._state.messages.get(NO_ID)
        while queue is not None and len(queue) > _MOST_UNDER_WAY:
            message = queue.popleft()
            self._state.landed(message, 0)

    def _forget_files(self, before_ns: int, needed: set[int]) -> None:
        state = self._state
        gone = {f.id for f in self._files if f.released_ns is not None and f.released_ns < before_ns} - needed
        for number in gone:
            file = self._files[number]
            if state.inode_file.get(file.inode) == number:
                del state.inode_file[file.inode]
            state.connects.pop(number, None)
            state.pidfd_tgid.pop(number, None)
            state.messages.pop(number, None)
            for peer in (file.pair, state.unix_peer.pop(number, NO_ID)):
                if peer in gone or not self._files.knows(peer):
                    continue
                if state.unix_peer.get(peer) == number:
                    del state.unix_peer[peer]
                if self._files[peer].pair == number:
                    self._files[peer].pair = NO_ID
        for waiting in (state.unix_connecting, state.unix_accepted):
            for path in list(waiting):
                left = [file for file in waiting[path] if file not in gone]
                waiting[path].clear()
                waiting[path].extend(left)
                if not left:
                    del waiting[path]
        for key in [key for key, (_, _, holder) in state.late_seed.items() if holder in gone]:
            del state.late_seed[key]
        self._files.forget(gone)
        self._holders.forget(gone)

    def _forget_tables(self, before_ns: int) -> None:
        state = self._state
        gone = {t.id for t in self._tables if t.ended_ns is not None and t.ended_ns < before_ns}
        if not gone:
            return
        for key in [key for key in state.last_closed if key[0] in gone]:
            del state.last_closed[key]
        for key in [key for key in state.late_seed if key[0] in gone]:
            del state.late_seed[key]
        self._tables.forget(gone)
        self._tasks.forget(gone)
