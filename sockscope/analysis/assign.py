"""Events to descriptors, open files and connections, in bulk: (files table, fd, time) by sorted search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.control import EBADF, HAS_FD, IS_READ, IS_SOCKET_CALL, IS_WAIT, IS_WRITE
from sockscope.analysis.replay_state import ReplayState
from sockscope.model.calls import Call
from sockscope.model.connections import Connection
from sockscope.model.descriptors import Ended, How
from sockscope.model.events import EventFlag, Events, Unassigned
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

Ids = npt.NDArray[np.int64]
Column = npt.NDArray[np.int32]
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
    began = np.where(enter >= 0, enter, leave)
    over = np.where(leave >= 0, leave, began)
    table = _tables(state, records["tid"], records["tgid"], began)
    descriptor = np.full(count, NO_ID, np.int64)
    if state.touched:
        touched = np.array(state.touched, np.int64)
        descriptor[touched[:, 0]] = touched[:, 1]
    fds: Ids = records["args"][:, 0].astype(np.uint32).view(np.int32).astype(np.int64)
    rows = np.nonzero(HAS_FD[records["call"]] & (table >= 0) & (descriptor < 0))[0]
    found = _look_up(state, table[rows], fds[rows], began[rows], over[rows])
    descriptor[rows] = found
    usable = (found < 0) & (records["ret"][rows] >= 0) & (records["flags"][rows] & EventFlag.ENTERED_ONLY == 0)
    unknown = rows[usable & (fds[rows] >= 0)]
    if len(unknown):
        _infer(state, events, unknown, table, fds, began)
        descriptor[unknown] = _look_up(state, table[unknown], fds[unknown], began[unknown], over[unknown])
    file_of = np.array([d.open_file for d in state.descriptors] or [NO_ID], np.int64)
    open_file = np.where(descriptor >= 0, file_of[descriptor], NO_ID)
    _tell_sockets(state, records, open_file)
    target = np.full(count, NO_ID, np.int64)
    if state.targets:
        pairs = np.array(state.targets, np.int64)
        target[pairs[:, 0]] = pairs[:, 1]
    spliced = np.nonzero((records["call"] == Call.splice) & (table >= 0))[0]
    if len(spliced):
        outs = records["args"][spliced, 2].astype(np.uint32).view(np.int32).astype(np.int64)
        into = _look_up(state, table[spliced], outs, began[spliced], over[spliced])
        target[spliced] = np.where(into >= 0, file_of[into], NO_ID)
    return Assignment(
        table=table.astype(np.int32),
        descriptor=descriptor.astype(np.int32),
        open_file=open_file.astype(np.int32),
        target=target.astype(np.int32),
    )


def _tables(state: ReplayState, tids: Column, tgids: Column, began: Ids) -> Ids:
    """The files table of each event's task at its entry."""
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


def descriptor_intervals(state: ReplayState) -> tuple[Intervals, Ids]:
    """An index of all descriptors by (table, fd) and time of birth, and when each was closed."""
    rows = np.array(
        [(d.table, d.fd, d.opened_ns, FOREVER if d.closed_ns is None else d.closed_ns) for d in state.descriptors],
        np.int64,
    ).reshape(-1, 4)
    starts = rows[:, 2].copy()
    unseen = [
        d.id
        for d in state.descriptors
        if d.how == How.SNAPSHOT or (d.how == How.INFERRED and d.opened_ns <= state.tables[d.table].created_ns)
    ]
    # Nobody saw them begin, so whatever came before the snapshot is theirs too.
    starts[unseen] = 0
    return Intervals(_group(rows[:, 0], rows[:, 1]), starts), rows[:, 3]


def _look_up(state: ReplayState, tables: Ids, fds: Ids, began: Ids, over: Ids) -> Ids:
    index, closed = descriptor_intervals(state)
    if not len(closed):
        return np.full(len(tables), NO_ID, np.int64)
    groups = _group(tables, fds)
    found = index.find(groups, began)
    missed = np.nonzero((found < 0) | (closed[found] < began))[0]
    if len(missed):
        # Born while the call was under way (or stamped a little late): what was there when it returned.
        later = index.find(groups[missed], over[missed])
        found[missed] = np.where((later >= 0) & (closed[later] >= over[missed]), later, NO_ID)
    return found


def _infer(state: ReplayState, events: Events, rows: Ids, table: Ids, fds: Ids, began: Ids) -> None:
    """Descriptors that only data events show: one a gap between known generations of the number."""
    index, _ = descriptor_intervals(state)
    groups = _group(table[rows], fds[rows])
    before = index.find(groups, began[rows])
    _, first, which = np.unique(np.stack([groups, before]), axis=1, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    socket_use = np.zeros(len(first), np.bool_)
    np.logical_or.at(socket_use, which, IS_SOCKET_CALL[events.records["call"][rows]])
    for gap, at in enumerate(first.tolist()):
        owner = state.tables[int(table[rows[at]])]
        fd = int(fds[rows[at]])
        previous = int(before[at])
        since = owner.created_ns if previous < 0 else state.descriptors[previous].closed_ns or owner.created_ns
        file = state.new_file(FileKind.SOCKET if socket_use[gap] else FileKind.OTHER, since)
        live = owner.live.get(fd)
        made = state.put(owner, fd, file.id, How.INFERRED, since, NO_ID)
        following = (
            [
                d
                for d in state.descriptors
                if d.table == owner.id and d.fd == fd and d.opened_ns >= since and d is not made
            ]
            if live is not None or (owner.id, fd) in state.last_closed
            else []
        )
        if live is not None:
            owner.live[fd] = live
        ends = min((d.opened_ns for d in following if d.opened_ns >= int(began[rows[at]])), default=owner.ended_ns)
        if ends is not None:
            made.closed_ns = ends
            made.ended = Ended.REUSED if following else Ended.EXIT
            state.holder_count[file.id] -= 1
            file.released_ns = ends
            if live is None:
                del owner.live[fd]


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
    bad = (records["ret"] == -EBADF) & HAS_FD[call]
    reason[bad] = Unassigned.BAD_FD
    connection[bad] = NO_ID
    reason[connection >= 0] = Unassigned.ASSIGNED
    return connection, reason


def _seen(state: ReplayState, descriptors: Sequence[int]) -> bool:
    return any(state.descriptors[d].how == How.SNAPSHOT for d in descriptors)


def moved_bytes(events: Events) -> tuple[Ids, Ids]:
    """Bytes each event took from and put into its descriptor: two arrays, shape (n,), int64.

    MSG_PEEK takes nothing. recvmmsg and sendmmsg are summed from their message lengths.
    """
    from sockscope.analysis.decode import message_bytes

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
