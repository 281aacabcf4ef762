"""What the names of descriptors (-y, -yy) tell: what was open before, and the addresses of sockets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import Call
from sockscope.model.constants import CLONE_FILES
from sockscope.model.events import EVENT_DTYPE, EventFlag
from sockscope.model.seed import SEED_EPOLL_DTYPE, SEED_FD_DTYPE, FileKind, Seed, SeedProcess
from sockscope.sources.syscalls.strace_log.table import USE_DTYPE
from sockscope.sources.syscalls.strace_log.tasks import Birth, Tasks

Rows = npt.NDArray[np.void]
_Told = tuple[int, int]
"""Blob offsets of the local and the peer address."""


class _Known:
    """The descriptors of every process as far as the log shows them, moved on in time."""

    def __init__(self, tasks: Tasks, first_ns: int) -> None:
        self._tasks = tasks
        self._first_ns = first_ns
        self._tables: dict[int, dict[int, _Told]] = {}
        self._root: dict[int, int] = {}
        self._ever: set[tuple[int, int]] = set()
        self._sockets: dict[int, int] = {}
        self.seeds: list[tuple[int, int, int, int, int, int, int, int]] = []
        self.rows: list[int] = []
        self.calls: list[Call] = []

    def born(self, birth: Birth) -> None:
        parent, child = self._tasks.tgid(birth.parent), self._tasks.tgid(birth.child)
        if parent == child:
            return
        own = self._tables.setdefault(parent, {})
        self._tables[child] = own if birth.flags & CLONE_FILES else dict(own)
        self._root[child] = self._root.get(parent, parent)

    def used(
        self, at: int, tgid: int, fd: int, made: bool, kind: int, inode: int, told: _Told, has: tuple[bool, bool]
    ) -> None:
        if fd < 0:
            return
        table = self._tables.setdefault(tgid, {})
        before = table.get(fd)
        if made:
            self._ever.add((tgid, fd))
        elif fd not in table:
            self._seed(tgid, fd, kind, inode, told)
        if before != told or made:
            table[fd] = told
            if has[0]:
                self.rows.append(at)
                self.calls.append(Call.getsockname)
            if has[1]:
                self.rows.append(at)
                self.calls.append(Call.getpeername)

    def _seed(self, tgid: int, fd: int, kind: int, inode: int, told: _Told) -> None:
        """It was open before the log begins; a child has it from the first of its line."""
        root = self._root.get(tgid, tgid)
        if (root, fd) in self._ever:
            return
        self._ever.add((root, fd))
        self._tables.setdefault(root, {}).setdefault(fd, told)
        number = len(self.seeds) + 1
        if kind == FileKind.SOCKET and inode:
            number = self._sockets.setdefault(inode, number)
        # Nothing tells whether it is closed on exec; if it is not, its use after that will show it.
        self.seeds.append((self._first_ns, root, fd, kind, 1, 0, inode if kind == FileKind.SOCKET else 0, number))


def tell_names(parts: list[Rows], tasks: Tasks, comms: dict[int, bytes], first_ns: int) -> tuple[Seed, Rows]:
    """The seed, and addresses as events.

    Args:
        parts: USE_DTYPE.
        first_ns: when the log begins: all that is seeded was open by then.

    Returns:
        The seed; getsockname and getpeername events flagged SEEDED, EVENT_DTYPE.
    """
    uses = np.concatenate(parts) if parts else np.zeros(0, USE_DTYPE)
    uses = uses[np.argsort(uses["time_ns"], kind="stable")]
    known = _Known(tasks, first_ns)
    births = [*tasks.births]
    births.reverse()
    tgids = np.zeros(len(uses), EVENT_DTYPE)
    tgids["tid"], tgids["enter_ns"] = uses["tid"], uses["time_ns"]
    tasks.fill_tgids(tgids)
    columns = ("time_ns", "fd", "made", "kind", "inode", "local", "peer", "local_bytes", "peer_bytes")
    rows = zip(tgids["tgid"].tolist(), *(uses[column].tolist() for column in columns), strict=True)
    for at, (tgid, ns, fd, made, kind, inode, local, peer, has_local, has_peer) in enumerate(rows):
        while births and births[-1].time_ns <= ns:
            known.born(births.pop())
        known.used(at, tgid, fd, bool(made), kind, inode, (local, peer), (has_local > 0, has_peer > 0))
    return _seed_of(known, tasks, comms), _told(uses, known, tasks)


def _seed_of(known: _Known, tasks: Tasks, comms: dict[int, bytes]) -> Seed:
    members: dict[int, list[int]] = {}
    for tid, tgid in tasks.roots.items():
        members.setdefault(tgid, []).append(tid)
    processes = tuple(
        SeedProcess(
            tgid=tgid,
            ppid=0,
            tids=tuple(sorted(tids)),
            comm=comms.get(tgid, b"?").decode("utf-8", "backslashreplace"),
            exe="",
            cmdline=(),
            netns=0,
        )
        for tgid, tids in sorted(members.items())
    )
    fds = np.array(known.seeds, SEED_FD_DTYPE) if known.seeds else np.zeros(0, SEED_FD_DTYPE)
    return Seed(processes=processes, fds=fds, epolls=np.zeros(0, SEED_EPOLL_DTYPE))


def _told(uses: Rows, known: _Known, tasks: Tasks) -> Rows:
    picked = uses[known.rows]
    events = np.zeros(len(picked), EVENT_DTYPE)
    calls = np.array(known.calls, np.uint16)
    events["call"] = calls
    events["enter_ns"] = events["exit_ns"] = picked["time_ns"]
    events["tid"] = picked["tid"]
    events["args"][:, 0] = picked["fd"]
    events["flags"] = EventFlag.SEEDED
    local = calls == Call.getsockname
    events["blob_offset"] = np.where(local, picked["local"], picked["peer"])
    events["blob_bytes"] = np.where(local, picked["local_bytes"], picked["peer_bytes"])
    tasks.fill_tgids(events)
    return events
