"""Events to descriptors, open files and connections, in bulk: (files table, fd, time) by sorted search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import EBADF, HAS_FD, IS_KERNEL, IS_READ, IS_SOCKET_CALL, IS_WAIT, IS_WRITE
from sockscope.analysis.replay.decode import message_bytes
from sockscope.analysis.replay.state import ReplayState
from sockscope.model.calls import Call
from sockscope.model.columns import Columns, in_memory, pieces, rows_of
from sockscope.model.connections import Connection
from sockscope.model.constants import SOL_TCP
from sockscope.model.descriptors import Descriptor, Ended, How
from sockscope.model.events import EventFlag, Events, Unassigned, is_seeded
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

Ids = npt.NDArray[np.int64]
Column = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
FOREVER = np.iinfo(np.int64).max
COMPOSITE_LIMIT = 1 << 62


class Intervals:
    """Finds, for a group and a time, the last interval of the group that began by then.

    Group and start are folded into one sorted int64 key, so that one `searchsorted` answers for all.

    Args:
        groups, starts: shape (m,), int64; intervals in the order in which ties are to be settled (last wins).
    """

    def __init__(self, groups: Ids, starts: Ids) -> None:
        self._groups, group = np.unique(groups, return_inverse=True)
        low = int(starts.min()) if len(starts) else 0
        span = int(starts.max()) - low + 2 if len(starts) else 2
        self._ranks: Ids | None = None
        if len(self._groups) * span >= COMPOSITE_LIMIT:
            # Long recordings of many groups: fold the rank of the start instead of the start.
            self._ranks = np.unique(starts)
            starts = np.searchsorted(self._ranks, starts, "right") - 1
            low, span = 0, len(self._ranks) + 2
        self._low, self._span = low, span
        keys = group.reshape(-1) * span + (starts - low + 1)
        self._rows: Ids = np.argsort(keys, kind="stable").astype(np.int64, copy=False)
        self._keys = keys[self._rows]
        self._group_of = group.reshape(-1)

    def find(self, groups: Ids, times: Ids) -> Ids:
        """The interval of each query, -1 where the group is unknown or none had begun: shape (k,)."""
        if not len(self._keys):
            return np.full(len(groups), NO_ID, np.int64)
        at = np.searchsorted(self._groups, groups)
        at[at == len(self._groups)] = 0
        known = self._groups[at] == groups
        if self._ranks is not None:
            times = np.searchsorted(self._ranks, times, "right") - 1
        offset = np.clip(times - self._low + 1, 0, self._span - 1)
        place = np.searchsorted(self._keys, at * self._span + offset, "right") - 1
        row = self._rows[np.maximum(place, 0)]
        good = known & (place >= 0) & (self._group_of[row] == at)
        return np.where(good, row, NO_ID)


@dataclass(slots=True)
class Assignment:
    """What each event names: shape (n,) int32, -1 none.

    `target` is a second open file that the event is about: what epoll_ctl registers, where splice puts.
    """

    table: Column
    descriptor: Column
    open_file: Column
    target: Column

    def forget(self, rows: Ids) -> None:
        """These events name nothing any more."""
        for column in (self.table, self.descriptor, self.open_file, self.target):
            column[rows] = NO_ID


def assign_descriptors(state: ReplayState, events: Events, columns: Columns = in_memory) -> Assignment:
    """Name table, descriptor and open file of every event; infer descriptors that only data events show.

    Calls name the descriptor their number meant when they were *entered* (another thread may close it
    while they are blocked). What replay settled one by one is kept.

    Args:
        columns: makes room for the result.
    """
    records = events.records
    table, descriptor, open_file, target = (columns(len(records), np.int32) for _ in range(4))
    for column in (descriptor, target):
        column[:] = NO_ID
    for told, column in ((state.touched, descriptor), (state.targets, target)):
        if told:
            pairs = np.frombuffer(told, np.int64).reshape(-1, 2)
            column[pairs[:, 0]] = pairs[:, 1]
    task_tables, index = _TaskTables(state), DescriptorIndex(state)
    unknown: list[_Uses] = []
    for part in pieces(len(records)):
        piece = records[part]
        began, over = _span(piece)
        table[part] = task_tables.of(piece["tid"], piece["tgid"], began, IS_KERNEL[piece["call"]])
        uses = _Uses.of(piece, table[part], descriptor[part], began, over)
        found = index.find(uses.table, uses.fd, uses.began, uses.over)
        descriptor[part][uses.row] = found
        works = (piece["ret"][uses.row] >= 0) & ((piece["flags"][uses.row] & EventFlag.ENTERED_ONLY) == 0)
        left = uses.only(np.flatnonzero((found < 0) & works & (uses.fd >= 0)))
        if len(left.row):
            unknown.append(_first_uses(index, left))
    if unknown:
        _infer(state, index, _Uses.concat(unknown))
        index = DescriptorIndex(state)
    file_of = np.array([d.open_file for d in state.descriptors] or [NO_ID], np.int64)
    sockets = np.zeros(len(state.open_files), np.bool_)
    for part in pieces(len(records)):
        piece = records[part]
        began, over = _span(piece)
        if unknown:
            uses = _Uses.of(piece, table[part], descriptor[part], began, over)
            works = (piece["ret"][uses.row] >= 0) & ((piece["flags"][uses.row] & EventFlag.ENTERED_ONLY) == 0)
            left = uses.only(np.flatnonzero(works & (uses.fd >= 0)))
            descriptor[part][left.row] = index.find(left.table, left.fd, left.began, left.over)
        named = descriptor[part]
        files = np.where(named >= 0, file_of[named], NO_ID)
        open_file[part] = files
        sockets[files[(files >= 0) & IS_SOCKET_CALL[piece["call"]] & (piece["ret"] >= 0)]] = True
        spliced = np.nonzero((piece["call"] == Call.splice) & (table[part] >= 0))[0]
        if len(spliced):
            outs = piece["args"][spliced, 2].astype(np.uint32).view(np.int32).astype(np.int64)
            into = index.find(table[part][spliced].astype(np.int64), outs, began[spliced], over[spliced])
            target[part][spliced] = np.where(into >= 0, file_of[into], NO_ID)
    # Files of unknown kind on which a socket call succeeded are sockets.
    for file in np.flatnonzero(sockets).tolist():
        if state.open_files[file].kind == FileKind.OTHER:
            state.open_files[file].kind = FileKind.SOCKET
    return Assignment(table=table, descriptor=descriptor, open_file=open_file, target=target)


def _span(records: npt.NDArray[np.void]) -> tuple[Ids, Ids]:
    """When each call began and when it was over."""
    enter: Ids = records["enter_ns"].astype(np.int64)
    leave: Ids = records["exit_ns"].astype(np.int64)
    # Neither: entered before the attach, never returned.
    began = np.maximum(np.where(enter >= 0, enter, leave), 0)
    return began, np.where(leave >= 0, leave, began)


@dataclass(frozen=True, slots=True)
class _Uses:
    """Calls that name a descriptor by its number, as far as it is not known which: shape (k,) each.

    `row` is the place in the piece of the table that they come from.
    """

    row: Ids
    table: Ids
    fd: Ids
    began: Ids
    over: Ids
    by_socket: Flags

    @classmethod
    def of(cls, records: npt.NDArray[np.void], table: Column, descriptor: Column, began: Ids, over: Ids) -> _Uses:
        rows = np.nonzero(HAS_FD[records["call"]] & (table >= 0) & (descriptor < 0))[0]
        fds = records["args"][rows, 0].astype(np.uint32).view(np.int32).astype(np.int64)
        by_socket = IS_SOCKET_CALL[records["call"][rows]]
        return cls(rows, table[rows].astype(np.int64), fds, began[rows], over[rows], by_socket)

    def only(self, at: Ids) -> _Uses:
        return _Uses(self.row[at], self.table[at], self.fd[at], self.began[at], self.over[at], self.by_socket[at])

    @classmethod
    def concat(cls, parts: Sequence[_Uses]) -> _Uses:
        names = ("row", "table", "fd", "began", "over", "by_socket")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class _TaskTables:
    """The files table of each event's task at its entry."""

    def __init__(self, state: ReplayState) -> None:
        self._state = state
        self._spans = np.array(state.spans, np.int64).reshape(-1, 3)
        self._index = Intervals(self._spans[:, 0], self._spans[:, 1])

    def of(self, tids: Column, tgids: Column, began: Ids, taskless: Flags) -> Ids:
        """Shape (k,); -1 for kernel events, which are no task's."""
        if taskless.any():
            own = np.nonzero(~taskless)[0]
            table = np.full(len(tids), NO_ID, np.int64)
            table[own] = self.of(tids[own], tgids[own], began[own], taskless[own])
            return table
        if not len(self._spans):
            return np.full(len(tids), NO_ID, np.int64)
        at = self._index.find(tids.astype(np.int64), began)
        table = np.where(at >= 0, self._spans[at, 2], NO_ID)
        lost = np.nonzero(table < 0)[0]
        if len(lost):
            # Entered before the first span of its thread, or after an exit that came too early: the nearest will do.
            first, by_tgid = self._nearest
            pairs = zip(tids[lost].tolist(), tgids[lost].tolist(), strict=True)
            table[lost] = [first.get(tid, by_tgid.get(tgid, NO_ID)) for tid, tgid in pairs]
        return table

    @cached_property
    def _nearest(self) -> tuple[dict[int, int], dict[int, int]]:
        """A table of each tid, and of each tgid."""
        first: dict[int, int] = {}
        by_tgid: dict[int, int] = {}
        for tid, _, used in self._state.spans:
            if used >= 0:
                first.setdefault(tid, used)
        for made in self._state.tables:
            for tgid in made.tgids:
                by_tgid.setdefault(tgid, made.id)
        return first, by_tgid


def _group(table: Ids, fd: Ids) -> Ids:
    return table << 32 | (fd & 0xFFFF_FFFF)


_UNSEEN = (How.SNAPSHOT, How.INFERRED)


def _as_old(state: ReplayState, descriptor: Descriptor) -> bool:
    """Inferred, and as far as is known as old as its table."""
    return descriptor.opened_ns <= state.tables[descriptor.table].created_ns


class DescriptorIndex:
    """All descriptors by (files table, fd) and time."""

    def __init__(self, state: ReplayState) -> None:
        every, count = state.descriptors, len(state.descriptors)
        tables = np.fromiter((d.table for d in every), np.int64, count)
        fds = np.fromiter((d.fd for d in every), np.int64, count)
        starts = np.fromiter((d.opened_ns for d in every), np.int64, count)
        closed = (FOREVER if d.closed_ns is None else d.closed_ns for d in every)
        self._closed: Ids = np.fromiter(closed, np.int64, count)
        # Nobody saw some of them begin, so whatever came before the snapshot is theirs too.
        unseen = [d.id for d in every if d.how in _UNSEEN and (d.how == How.SNAPSHOT or _as_old(state, d))]
        starts[unseen] = 0
        self._intervals = Intervals(_group(tables, fds), starts)

    def find(self, tables: Ids, fds: Ids, began: Ids, over: Ids) -> Ids:
        """What each number named when the call was entered, else when it returned: shape (k,), -1 nothing."""
        if not len(self._closed):
            return np.full(len(tables), NO_ID, np.int64)
        groups = _group(tables, fds)
        found = self._intervals.find(groups, began)
        missed = np.nonzero((found < 0) | (self._closed[found] < began))[0]
        if len(missed):
            # Born while the call was under way (or stamped a little late).
            later = self._intervals.find(groups[missed], over[missed])
            found[missed] = np.where((later >= 0) & (self._closed[later] >= over[missed]), later, NO_ID)
        return found

    def before(self, tables: Ids, fds: Ids, when: Ids) -> Ids:
        """The last descriptor born by then under each number, closed or not."""
        return self._intervals.find(_group(tables, fds), when)


def _gaps(index: DescriptorIndex, uses: _Uses) -> tuple[Ids, Ids, Flags, Ids]:
    """Gaps between known generations of a number in which it is used.

    Returns:
        Shape (2, gaps): number and the generation before; shape (gaps,): the first use, and whether one is a socket's;
        shape (uses,): the generation before each.
    """
    before = index.before(uses.table, uses.fd, uses.began)
    gaps, first, which = np.unique(
        np.stack([_group(uses.table, uses.fd), before]), axis=1, return_index=True, return_inverse=True
    )
    socket_use = np.bincount(which.reshape(-1), weights=uses.by_socket, minlength=len(first)) > 0
    return gaps, first, socket_use, before


def _first_uses(index: DescriptorIndex, uses: _Uses) -> _Uses:
    """One use of each gap stands for all of this piece."""
    _, first, socket_use, _ = _gaps(index, uses)
    return replace(uses.only(first), by_socket=socket_use)


def _infer(state: ReplayState, index: DescriptorIndex, uses: _Uses) -> None:
    """Descriptors that only data events show: one for each gap between known generations of the number."""
    tables, fds, began = uses.table, uses.fd, uses.began
    gaps, first, socket_use, before = _gaps(index, uses)
    births: dict[int, list[int]] = {group: [] for group in gaps[0].tolist()}
    for known in state.descriptors:
        at = births.get(known.table << 32 | (known.fd & 0xFFFF_FFFF))
        if at is not None:
            at.append(known.opened_ns)
    for gap, at in enumerate(first.tolist()):
        table = state.tables[int(tables[at])]
        fd, used_ns, previous = int(fds[at]), int(began[at]), int(before[at])
        since = state.descriptors[previous].closed_ns if previous >= 0 else None
        if since is None:
            since = table.created_ns
        file = state.new_file(FileKind.SOCKET if socket_use[gap] else FileKind.OTHER, since)
        live = table.live.get(fd)
        made = state.put(table, fd, file.id, How.INFERRED, since, NO_ID)
        ends = min((ns for ns in births[int(gaps[0][gap])] if ns > used_ns), default=None)
        if ends is not None:
            state.release(made, ends, NO_ID, Ended.REUSED)
        elif table.ended_ns is not None:
            state.release(made, table.ended_ns, NO_ID, Ended.EXIT)
        if live is not None:
            table.live[fd] = live


def assign_connections(
    state: ReplayState,
    events: Events,
    assignment: Assignment,
    connections: Sequence[Connection],
    columns: Columns = in_memory,
) -> tuple[Column, npt.NDArray[np.uint8]]:
    """The connection of each event, and the reason where there is none.

    Returns:
        event_connection: shape (n,), int32. accept belongs to the connection it returned, epoll_ctl to
            the one it registers, splice to the socket on either side.
        event_reason: shape (n,), uint8, `Unassigned`.
    """
    records = events.records
    # One more place at the end, for -1.
    of_file = np.full(len(state.open_files) + 1, NO_ID, np.int32)
    why = np.full(len(state.open_files) + 1, Unassigned.UNKNOWN_FD, np.uint8)
    for file in state.open_files:
        of_file[file.id] = file.connection
        if file.listening:
            why[file.id] = Unassigned.LISTENER
        elif file.kind == FileKind.SOCKET:
            why[file.id] = Unassigned.UNCONNECTED
        elif file.witnessed or file.kind != FileKind.OTHER or file.inode or _seen(state, file.descriptors):
            why[file.id] = Unassigned.OTHER_FILE
    connection, reason = columns(len(records), np.int32), columns(len(records), np.uint8)
    for part in pieces(len(records)):
        files, target = assignment.open_file[part], assignment.target[part]
        own = of_file[files]
        second = (own < 0) & (target >= 0)
        own[second] = of_file[target[second]]
        connection[part] = own
        reason[part] = why[files]
    for made in connections:
        if made.opened_event >= 0:
            connection[made.opened_event] = made.id
    for part in pieces(len(records)):
        call, own, because = records["call"][part], connection[part], reason[part]
        because[~HAS_FD[call]] = Unassigned.NOT_A_DESCRIPTOR_CALL
        because[IS_WAIT[call]] = Unassigned.WAIT
        because[IS_KERNEL[call]] = Unassigned.KERNEL_EVENT
        bad = (records["ret"][part] == -EBADF) & HAS_FD[call]
        because[bad] = Unassigned.BAD_FD
        own[bad] = NO_ID
        because[own >= 0] = Unassigned.ASSIGNED
        because[is_seeded(records[part])] = Unassigned.SEEDED
    return connection, reason


def _seen(state: ReplayState, descriptors: Sequence[int]) -> bool:
    return any(state.descriptors[d].how == How.SNAPSHOT for d in descriptors)


def moved_on(state: ReplayState, events: Events, assignment: Assignment) -> Flags:
    """Which open files saw a read or a write that succeeded: shape (open files,)."""
    is_move = IS_READ | IS_WRITE
    moved = np.zeros(len(state.open_files), np.bool_)
    for part in pieces(len(events)):
        records, files = events.records[part], assignment.open_file[part]
        good = is_move[records["call"]] & (records["ret"] >= 0) & (files >= 0)
        good &= (records["flags"] & EventFlag.ENTERED_ONLY) == 0
        moved[files[good]] = True
    return moved


def kernel_tls(events: Events) -> Ids:
    """Calls that put TLS below a socket's own: its bytes on the wire are not those of its calls. Shape (k,), events.

    Source: Documentation/networking/tls.rst.
    """
    records = events.records
    asked = rows_of(records, lambda part: part["call"] == Call.setsockopt)
    tls: Ids = asked[(records["args"][asked, 1] == SOL_TCP) & (records["args"][asked, 2] == _TCP_ULP)]
    return tls


_TCP_ULP = 31


def moved_bytes(events: Events, rows: slice | None = None) -> tuple[Ids, Ids]:
    """Bytes each event took from and put into its descriptor: two arrays, shape (n,), int64.

    MSG_PEEK takes nothing. recvmmsg and sendmmsg are summed from their message lengths.

    Args:
        rows: of these events alone, step 1.
    """
    first = rows.start if rows is not None else 0
    records = events.records if rows is None else events.records[rows]
    call = records["call"]
    moved = np.maximum(records["ret"], 0)
    moved[(records["flags"] & EventFlag.ENTERED_ONLY) != 0] = 0
    for row in np.nonzero((call == Call.recvmmsg) | (call == Call.sendmmsg))[0].tolist():
        moved[row] = message_bytes(events.blob_of(first + row))
    peeked = ((call == Call.recvfrom) & (records["args"][:, 3] & 2 != 0)) | (
        (call == Call.recvmsg) & (records["args"][:, 2] & 2 != 0)
    )
    read = np.where(IS_READ[call] & ~peeked, moved, 0)
    written = np.where(IS_WRITE[call], moved, 0)
    return read, written
