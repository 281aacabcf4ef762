"""Events to descriptors, open files and connections, in bulk: (files table, fd, time) by sorted search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import EBADF, HAS_FD, IS_KERNEL, IS_READ, IS_SOCKET_CALL, IS_WAIT, IS_WRITE
from sockscope.analysis.replay.decode import message_bytes
from sockscope.analysis.replay.state import ReplayState
from sockscope.model.calls import Call
from sockscope.model.connections import Connection
from sockscope.model.descriptors import Descriptor, Ended, How
from sockscope.model.events import EventFlag, Events, Unassigned
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


def assign_descriptors(state: ReplayState, events: Events) -> Assignment:
    """Name table, descriptor and open file of every event; infer descriptors that only data events show.

    Calls name the descriptor their number meant when they were *entered* (another thread may close it
    while they are blocked). What replay settled one by one is kept.
    """
    records = events.records
    count = len(records)
    enter: Ids = records["enter_ns"].astype(np.int64)
    leave: Ids = records["exit_ns"].astype(np.int64)
    # Neither: entered before the attach, never returned.
    began = np.maximum(np.where(enter >= 0, enter, leave), 0)
    over = np.where(leave >= 0, leave, began)
    table = _tables(state, records["tid"], records["tgid"], began, IS_KERNEL[records["call"]])
    descriptor = np.full(count, NO_ID, np.int64)
    if state.touched:
        touched = np.frombuffer(state.touched, np.int64).reshape(-1, 2)
        descriptor[touched[:, 0]] = touched[:, 1]
    fds: Ids = records["args"][:, 0].astype(np.uint32).view(np.int32).astype(np.int64)
    rows = np.nonzero(HAS_FD[records["call"]] & (table >= 0) & (descriptor < 0))[0]
    index = DescriptorIndex(state)
    descriptor[rows] = index.find(table[rows], fds[rows], began[rows], over[rows])
    works = (records["ret"][rows] >= 0) & ((records["flags"][rows] & EventFlag.ENTERED_ONLY) == 0)
    unknown = rows[(descriptor[rows] < 0) & works & (fds[rows] >= 0)]
    if len(unknown):
        _infer(state, index, table[unknown], fds[unknown], began[unknown], IS_SOCKET_CALL[records["call"][unknown]])
        index = DescriptorIndex(state)
        descriptor[unknown] = index.find(table[unknown], fds[unknown], began[unknown], over[unknown])
    file_of = np.array([d.open_file for d in state.descriptors] or [NO_ID], np.int64)
    open_file = np.where(descriptor >= 0, file_of[descriptor], NO_ID)
    _tell_sockets(state, records, open_file)
    target = np.full(count, NO_ID, np.int64)
    if state.targets:
        pairs = np.frombuffer(state.targets, np.int64).reshape(-1, 2)
        target[pairs[:, 0]] = pairs[:, 1]
    spliced = np.nonzero((records["call"] == Call.splice) & (table >= 0))[0]
    if len(spliced):
        outs = records["args"][spliced, 2].astype(np.uint32).view(np.int32).astype(np.int64)
        into = index.find(table[spliced], outs, began[spliced], over[spliced])
        target[spliced] = np.where(into >= 0, file_of[into], NO_ID)
    return Assignment(
        table=table.astype(np.int32),
        descriptor=descriptor.astype(np.int32),
        open_file=open_file.astype(np.int32),
        target=target.astype(np.int32),
    )


def _tables(state: ReplayState, tids: Column, tgids: Column, began: Ids, taskless: Flags) -> Ids:
    """The files table of each event's task at its entry; -1 for kernel events, which are no task's."""
    if taskless.any():
        own = np.nonzero(~taskless)[0]
        table = np.full(len(tids), NO_ID, np.int64)
        table[own] = _tables(state, tids[own], tgids[own], began[own], taskless[own])
        return table
    if not state.spans:
        return np.full(len(tids), NO_ID, np.int64)
    spans = np.array(state.spans, np.int64)
    index = Intervals(spans[:, 0], spans[:, 1])
    wide = tids.astype(np.int64)
    at = index.find(wide, began)
    table = np.where(at >= 0, spans[at, 2], NO_ID)
    lost = np.nonzero(table < 0)[0]
    if len(lost):
        # Entered before the first span of its thread, or after an exit that came too early: the nearest will do.
        first: dict[int, int] = {}
        by_tgid: dict[int, int] = {}
        for tid, _, used in state.spans:
            if used >= 0:
                first.setdefault(tid, used)
        for made in state.tables:
            for tgid in made.tgids:
                by_tgid.setdefault(tgid, made.id)
        pairs = zip(tids[lost].tolist(), tgids[lost].tolist(), strict=True)
        table[lost] = [first.get(tid, by_tgid.get(tgid, NO_ID)) for tid, tgid in pairs]
    return table


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


def _infer(state: ReplayState, index: DescriptorIndex, tables: Ids, fds: Ids, began: Ids, by_socket: Flags) -> None:
    """Descriptors that only data events show: one for each gap between known generations of the number."""
    before = index.before(tables, fds, began)
    gaps, first, which = np.unique(
        np.stack([_group(tables, fds), before]), axis=1, return_index=True, return_inverse=True
    )
    socket_use = np.bincount(which.reshape(-1), weights=by_socket, minlength=len(first)) > 0
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


def _tell_sockets(state: ReplayState, records: npt.NDArray[np.void], open_file: Ids) -> None:
    """Files of unknown kind on which a socket call succeeded are sockets."""
    used = open_file[(open_file >= 0) & IS_SOCKET_CALL[records["call"]] & (records["ret"] >= 0)]
    for file in np.unique(used).tolist():
        if state.open_files[file].kind == FileKind.OTHER:
            state.open_files[file].kind = FileKind.SOCKET


def assign_connections(
    state: ReplayState, events: Events, assignment: Assignment, connections: Sequence[Connection]
) -> tuple[Column, npt.NDArray[np.uint8]]:
    """The connection of each event, and the reason where there is none.

    Returns:
        event_connection: shape (n,), int32. accept belongs to the connection it returned, epoll_ctl to
            the one it registers, splice to the socket on either side.
        event_reason: shape (n,), uint8, `Unassigned`.
    """
    records = events.records
    call = records["call"]
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
    connection = of_file[assignment.open_file]
    reason = why[assignment.open_file]
    second = (connection < 0) & (assignment.target >= 0)
    connection[second] = of_file[assignment.target[second]]
    for made in connections:
        if made.opened_event >= 0:
            connection[made.opened_event] = made.id
    reason[~HAS_FD[call]] = Unassigned.NOT_A_DESCRIPTOR_CALL
    reason[IS_WAIT[call]] = Unassigned.WAIT
    reason[IS_KERNEL[call]] = Unassigned.KERNEL_EVENT
    bad = (records["ret"] == -EBADF) & HAS_FD[call]
    reason[bad] = Unassigned.BAD_FD
    connection[bad] = NO_ID
    reason[connection >= 0] = Unassigned.ASSIGNED
    return connection, reason


def _seen(state: ReplayState, descriptors: Sequence[int]) -> bool:
    return any(state.descriptors[d].how == How.SNAPSHOT for d in descriptors)


def moved_on(state: ReplayState, events: Events, assignment: Assignment) -> Flags:
    """Which open files saw a read or a write that succeeded: shape (open files,)."""
    records = events.records
    good = (IS_READ | IS_WRITE)[records["call"]] & (records["ret"] >= 0) & (assignment.open_file >= 0)
    good &= (records["flags"] & EventFlag.ENTERED_ONLY) == 0
    moved = np.zeros(len(state.open_files), np.bool_)
    moved[assignment.open_file[good]] = True
    return moved


def moved_bytes(events: Events) -> tuple[Ids, Ids]:
    """Bytes each event took from and put into its descriptor: two arrays, shape (n,), int64.

    MSG_PEEK takes nothing. recvmmsg and sendmmsg are summed from their message lengths.
    """
    records = events.records
    call = records["call"]
    moved = np.maximum(records["ret"], 0)
    moved[(records["flags"] & EventFlag.ENTERED_ONLY) != 0] = 0
    for row in np.nonzero((call == Call.recvmmsg) | (call == Call.sendmmsg))[0].tolist():
        moved[row] = message_bytes(events.blob_of(row))
    peeked = ((call == Call.recvfrom) & (records["args"][:, 3] & 2 != 0)) | (
        (call == Call.recvmsg) & (records["args"][:, 2] & 2 != 0)
    )
    read = np.where(IS_READ[call] & ~peeked, moved, 0)
    written = np.where(IS_WRITE[call], moved, 0)
    return read, written
