"""What replay knows, and the few moves that every event is made of: give a number, release it, infer
what was not seen.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from sockscope.analysis.replay.control import EBADF, EINPROGRESS, SOCKET_CALLS
from sockscope.model.calls import Call
from sockscope.model.descriptors import Descriptor, Ended, EpollInterest, FilesTable, How, OpenFile, Process
from sockscope.model.ids import NO_ID
from sockscope.model.seed import FileKind

Interests = dict[tuple[int, int], EpollInterest]
"""By (fd, open file)."""


@dataclass(slots=True)
class Message:
    """Descriptors on their way through a unix socket."""

    event: int
    sender: int
    """Open file the message was sent on."""
    files: list[int]
    sources: list[int]


@dataclass(slots=True)
class Step:
    """The event under replay. One object, filled anew for each event."""

    event: int = NO_ID
    call: int = 0
    ns: int = 0
    enter_ns: int = 0
    tgid: int = 0
    tid: int = 0
    ret: int = 0
    fd: int = -1
    a0: int = 0
    a1: int = 0
    a2: int = 0
    a3: int = 0
    flags: int = 0
    blob: bytes | memoryview = b""
    table: FilesTable = None  # type: ignore[assignment]  # set before any handler runs
    descriptor: int = NO_ID
    """What args[0] names, for calls that have a descriptor there."""


class ReplayState:
    """The target's descriptors as replay knows them, and the moves that events are made of.

    Args:
        unix_peers: inode → inode of connected unix sockets, where snapshots know it.

    Attributes:
        task_table: tid → files table id of every live task.
        spans: (tid, ns, table id or -1): when each task began to use which table.
        touched: event, descriptor, event, descriptor, … of each replayed event with a descriptor in args[0].
        targets: event, open file, … that epoll_ctl was about.
        connects: open file → (event, ns entered, ns returned) of the connect that began its connection.
    """

    def __init__(self, unix_peers: Mapping[int, int] | None = None) -> None:
        self.processes: dict[int, Process] = {}
        self.tables: list[FilesTable] = []
        self.descriptors: list[Descriptor] = []
        self.open_files: list[OpenFile] = []
        self.interests: list[EpollInterest] = []
        self.task_table: dict[int, int] = {}
        self.task_process: dict[int, int] = {}
        self.spans: list[tuple[int, int, int]] = []
        self.touched = array("q")
        self.targets = array("q")
        self.connects: dict[int, tuple[int, int, int]] = {}
        self.unix_peers = dict(unix_peers or {})
        # Counts kept beside the model: live descriptors an open file, tasks a table.
        self.holder_count: list[int] = []
        self.task_count: list[int] = []
        self.last_closed: dict[tuple[int, int], int] = {}
        self.late_seed: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.seeded_tgids: set[int] = set()
        self.by_epoll: dict[int, Interests] = {}
        self.watched_by: dict[int, list[tuple[int, int]]] = {}
        self.inode_file: dict[int, int] = {}
        self.unix_peer: dict[int, int] = {}
        self.unix_connecting: dict[bytes, deque[int]] = {}
        self.unix_accepted: dict[bytes, deque[int]] = {}
        self.messages: dict[int, deque[Message]] = {}
        self.pidfd_tgid: dict[int, int] = {}

    # --- what every handler is made of ----------------------------------------------------------------------

    def named(self, step: Step) -> int:
        """The descriptor that args[0] of this event names; inferred where the call proves that there is one."""
        table = step.table
        found = table.live.get(step.fd)
        if found is not None and self.descriptors[found].opened_ns <= step.enter_ns:
            return found
        # Another thread may have closed it, even given the number away, while this call was under way.
        before = self.last_closed.get((table.id, step.fd))
        if before is not None:
            closed = self.descriptors[before].closed_ns
            if closed is not None and closed >= step.enter_ns and step.call != Call.close:
                return before
        if found is not None:
            return found
        if step.fd < 0 or (step.ret < 0 and step.ret not in (-EINPROGRESS,)) or step.ret == -EBADF:
            return NO_ID
        kind = FileKind.SOCKET if step.call in SOCKET_CALLS else FileKind.OTHER
        if step.call == Call.epoll_ctl:
            kind = FileKind.EPOLL
        return self.infer(step, step.fd, kind)

    def infer(self, step: Step, fd: int, kind: FileKind) -> int:
        """A descriptor whose beginning was missed: open at the latest since the number was last closed."""
        table = step.table
        before = self.last_closed.get((table.id, fd))
        since = table.created_ns
        if before is not None:
            since = self.descriptors[before].closed_ns or since
        file = self.new_file(kind, since)
        return self.put(table, fd, file.id, How.INFERRED, since, NO_ID).id

    def known(self, step: Step, fd: int, kind: FileKind) -> int:
        """The live descriptor under another number that the call proves to be there; inferred if unseen."""
        found = step.table.live.get(fd)
        return found if found is not None else self.infer(step, fd, kind)

    def peer_of(self, file: int) -> int:
        """The other end of a connected unix socket (open file id), or -1."""
        known = self.open_files[file]
        if known.pair >= 0:
            return known.pair
        peer = self.unix_peer.get(file)
        if peer is None and known.inode:
            peer = self.inode_file.get(self.unix_peers.get(known.inode, NO_ID))
        return NO_ID if peer is None else peer

    def pair_up(self, one: int, other: int) -> None:
        """Two unix sockets are the ends of one connection."""
        self.unix_peer[one] = other
        self.unix_peer[other] = one
        self.open_files[one].far, self.open_files[other].far = other, one

    def new_file(self, kind: FileKind, ns: int, event: int = NO_ID, *, witnessed: bool = False) -> OpenFile:
        """An open file that nothing names yet."""
        file = OpenFile(id=len(self.open_files), kind=kind, created_ns=ns, created_event=event, witnessed=witnessed)
        self.open_files.append(file)
        self.holder_count.append(0)
        return file

    def put(
        self,
        table: FilesTable,
        fd: int,
        open_file: int,
        how: How,
        ns: int,
        event: int,
        source: int = NO_ID,
        cloexec: bool = False,
    ) -> Descriptor:
        """Give a number that is free in the table to an open file."""
        descriptor = Descriptor(
            id=len(self.descriptors),
            table=table.id,
            fd=fd,
            open_file=open_file,
            how=how,
            opened_ns=ns,
            opened_event=event,
            source=source,
            cloexec=cloexec,
        )
        self.descriptors.append(descriptor)
        file = self.open_files[open_file]
        file.copied = file.copied or bool(file.descriptors)
        file.descriptors.append(descriptor.id)
        file.released_ns = None
        self.holder_count[open_file] += 1
        table.live[fd] = descriptor.id
        return descriptor

    def create(self, step: Step, fd: int, kind: FileKind, how: How, cloexec: bool = False) -> OpenFile:
        """The event made a new open file under this number."""
        live = step.table.live.get(fd)
        key = (step.table.id, fd)
        if live is not None:
            seeded = self.descriptors[live]
            if seeded.how == How.SNAPSHOT and seeded.opened_ns >= step.ns:
                return self._seen_by_snapshot(step, seeded, kind, how, cloexec)
            self.release(seeded, step.ns, step.event, Ended.REUSED)
        file = self.new_file(kind, step.ns, step.event, witnessed=True)
        self.put(step.table, fd, file.id, how, step.ns, step.event, NO_ID, cloexec)
        if self.late_seed and key in self.late_seed:
            # The snapshot of this number was taken later still: its inode belongs to the last made before it.
            seen_ns, inode, holder = self.late_seed.pop(key)
            if step.ns <= seen_ns:
                self.open_files[holder].inode = 0
                file.inode = inode
                self.inode_file[inode] = file.id
                self.late_seed[key] = (seen_ns, inode, file.id)
        return file

    def _seen_by_snapshot(self, step: Step, seeded: Descriptor, kind: FileKind, how: How, cloexec: bool) -> OpenFile:
        """The snapshot ran while the target did, and shows what this event made: one and the same."""
        file = self.open_files[seeded.open_file]
        seen_ns = seeded.opened_ns
        seeded.how = how
        seeded.opened_ns = step.ns
        seeded.opened_event = step.event
        seeded.cloexec = cloexec
        if file.inode:
            self.late_seed[(step.table.id, seeded.fd)] = (seen_ns, file.inode, file.id)
        file.kind = kind
        file.created_ns = step.ns
        file.created_event = step.event
        file.witnessed = True
        return file

    def copy(
        self, step: Step, fd: int, source: int, how: How, cloexec: bool = False, table: FilesTable | None = None
    ) -> Descriptor:
        """A second descriptor for the open file that `source` names."""
        into = table if table is not None else step.table
        live = into.live.get(fd)
        file = self.descriptors[source].open_file
        if live is not None:
            old = self.descriptors[live]
            if old.how == How.SNAPSHOT and old.opened_ns >= step.ns:
                if old.open_file == file:
                    # The snapshot ran while the target did, and shows this very copy.
                    old.how, old.opened_ns, old.opened_event = how, step.ns, step.event
                    old.source, old.cloexec = source, cloexec
                return old
            self.release(old, step.ns, step.event, Ended.REPLACED if step.call in _TAKES_OVER else Ended.REUSED)
        return self.put(into, fd, file, how, step.ns, step.event, source, cloexec)

    def release(self, descriptor: Descriptor, ns: int, event: int, ended: Ended) -> None:
        """End a live descriptor, and its open file with the last one."""
        descriptor.closed_ns = ns
        descriptor.closed_event = event
        descriptor.ended = ended
        table = descriptor.table
        del self.tables[table].live[descriptor.fd]
        self.last_closed[(table, descriptor.fd)] = descriptor.id
        file = descriptor.open_file
        self.holder_count[file] -= 1
        if not self.holder_count[file]:
            self.drop_file(file, ns)

    def drop_file(self, file_id: int, ns: int) -> None:
        """The open file ends, unless something still holds it."""
        file = self.open_files[file_id]
        if self.holder_count[file_id] or file.in_flight or file.released_ns is not None:
            return
        file.released_ns = ns
        for epoll, fd in self.watched_by.pop(file_id, ()):
            interest = self.by_epoll.get(epoll, {}).pop((fd, file_id), None)
            if interest is not None:
                interest.removed_ns = ns
        if file.kind == FileKind.EPOLL:
            for interest in self.by_epoll.pop(file_id, {}).values():
                interest.removed_ns = ns
        if file_id in self.messages:
            self.discard_messages(file_id, ns)

    def discard_messages(self, receiver: int, ns: int) -> None:
        """Nobody can receive what was sent to this socket any more."""
        for message in self.messages.pop(receiver, ()):
            self.landed(message, ns)

    def landed(self, message: Message, ns: int) -> None:
        """The message is out of its socket, received or discarded."""
        for file in message.files:
            self.open_files[file].in_flight -= 1
            self.drop_file(file, ns)

    # --- tasks ----------------------------------------------------------------------------------------------

    def new_table(self, tgid: int, ns: int, forked_from: int = NO_ID, event: int = NO_ID) -> FilesTable:
        table = FilesTable(
            id=len(self.tables), tgids=[tgid], created_ns=ns, forked_from=forked_from, created_event=event
        )
        self.tables.append(table)
        self.task_count.append(0)
        return table

    def use_table(self, tid: int, tgid: int, table: FilesTable, ns: int) -> None:
        """The task uses this table from now on."""
        self.task_table[tid] = table.id
        self.task_process[tid] = tgid
        self.task_count[table.id] += 1
        if table.tgids[-1] != tgid and tgid not in table.tgids:
            table.tgids.append(tgid)
        self.spans.append((tid, ns, table.id))

    def table_of_process(self, tgid: int) -> FilesTable | None:
        """The files table a process uses now; None where it is gone or unknown."""
        process = self.processes.get(tgid)
        if process is None:
            return None
        leader = self.task_table.get(tgid)
        if leader is not None and tgid in process.tids:
            return self.tables[leader]
        for tid in sorted(process.tids):
            if tid in self.task_table:
                return self.tables[self.task_table[tid]]
        return None


_TAKES_OVER = frozenset({Call.dup2, Call.dup3})
