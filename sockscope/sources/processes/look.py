"""One look at the target's processes, their children, the PID 1 above them, and their network namespaces.

Only reads /proc; a process that is gone or may not be read has no row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sockscope.errors import CannotObserveError
from sockscope.model.facts import NETNS_FACT_DTYPE, PROCESS_FACT_DTYPE, Relation
from sockscope.sources.processes.parse import Status, Usage, parse_counters, parse_nofile, parse_status, parse_usage
from sockscope.sources.sockets.netns import in_netns, netns_of
from sockscope.sources.sockets.procfs import children_of_all, parse_ns_tgid, read_file, sees_every_process

_SCAN_EVERY = 8
"""Where the kernel lists no children (CONFIG_PROC_CHILDREN), all processes are looked through; not each time."""
_MANY_THREADS = 200
"""Children are listed by thread: of a process with more, only the first thread's are read at most looks."""
_MOST_PROCESSES = 2000
_SOMAXCONN = "/proc/sys/net/core/somaxconn"


class _Row(NamedTuple):
    """PROCESS_FACT_DTYPE, in its order."""

    time_ns: int
    tgid: int
    ppid: int
    ns_tgid: int
    init_tgid: int
    relation: Relation
    state: bytes
    thread_count: int
    sig_caught: int
    sig_ignored: int
    sig_blocked: int
    nofile: int
    cpu_ns: int
    comm: bytes


class Looker:
    """Looks, and remembers what does not change: pid namespaces and their PID 1."""

    def __init__(self) -> None:
        self._looks = 0
        self._lists_children = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
        self._scanned: dict[int, list[int]] = {}
        self._namespace_of: dict[int, int] = {}
        self._init_of: dict[int, int] = {}
        self._somaxconn: dict[int, int] = {}
        self._own_is_first = sees_every_process()

    def processes(self, tgids: Collection[int]) -> npt.NDArray[np.void]:
        """What they and their children are doing, PROCESS_FACT_DTYPE; targets that have ended have no row."""
        wanted = sorted(tgids)[:_MOST_PROCESSES]
        targets = [row for tgid in wanted if (row := self._row(tgid, Relation.TARGET)) is not None]
        rows = {row.tgid: row for row in targets}
        children = dict.fromkeys(self._children(targets)).keys() - rows.keys() - {os.getpid()}
        self._add(rows, sorted(children)[: _MOST_PROCESSES - len(rows)], Relation.CHILD)
        self._add(rows, sorted({row.init_tgid for row in targets} - rows.keys() - {0}), Relation.INIT)
        self._looks += 1
        self._forget(rows.keys())
        return np.array(list(rows.values()), PROCESS_FACT_DTYPE) if rows else np.zeros(0, PROCESS_FACT_DTYPE)

    def peers(self, tgids: Iterable[int]) -> npt.NDArray[np.void]:
        """What these others are, PROCESS_FACT_DTYPE."""
        rows: dict[int, _Row] = {}
        self._add(rows, sorted(tgids)[:_MOST_PROCESSES], Relation.PEER)
        return np.array(list(rows.values()), PROCESS_FACT_DTYPE) if rows else np.zeros(0, PROCESS_FACT_DTYPE)

    def namespaces(self, tgids: Iterable[int]) -> npt.NDArray[np.void]:
        """The counters of each network namespace that one of them is in, NETNS_FACT_DTYPE."""
        rows = []
        seen: set[int] = set()
        for tgid in tgids:
            netns = netns_of(tgid)
            if not netns or netns in seen:
                continue
            netstat, snmp = read_file(f"/proc/{tgid}/net/netstat"), read_file(f"/proc/{tgid}/net/snmp")
            counters = parse_counters(netstat or b"", snmp or b"")
            # Looked at again: a process that has just ended may have had its number taken over.
            if counters is None or netns_of(tgid) != netns:
                continue
            seen.add(netns)
            rows.append(
                (
                    time.monotonic_ns(),
                    netns,
                    counters.listen_overflows,
                    counters.listen_drops,
                    counters.syncookies_sent,
                    counters.retrans_segs,
                    self._limit(netns, tgid),
                )
            )
        self._somaxconn = {netns: limit for netns, limit in self._somaxconn.items() if netns in seen}
        return np.array(rows, NETNS_FACT_DTYPE) if rows else np.zeros(0, NETNS_FACT_DTYPE)

    def _add(self, rows: dict[int, _Row], tgids: Iterable[int], relation: Relation) -> None:
        for tgid in tgids:
            row = self._row(tgid, relation)
            if row is not None:
                rows[tgid] = row

    def _row(self, tgid: int, relation: Relation) -> _Row | None:
        now_ns = time.monotonic_ns()
        base = f"/proc/{tgid}"
        usage = parse_usage(read_file(f"{base}/stat") or b"")
        status = parse_status(read_file(f"{base}/status") or b"")
        if usage is None or status is None:
            return None
        return _Row(
            time_ns=now_ns,
            tgid=tgid,
            ppid=usage.ppid,
            ns_tgid=status.ns_tgids[-1] if status.ns_tgids else tgid,
            init_tgid=self._init(tgid, usage, status),
            relation=relation,
            state=usage.state,
            thread_count=status.thread_count,
            sig_caught=status.caught,
            sig_ignored=status.ignored,
            sig_blocked=status.blocked,
            nofile=parse_nofile(read_file(f"{base}/limits") or b"") or 0,
            cpu_ns=usage.cpu_ns,
            comm=usage.comm[:16],
        )

    def _children(self, targets: list[_Row]) -> Iterable[int]:
        if not self._lists_children:
            if self._looks % _SCAN_EVERY == 0:
                self._scanned = children_of_all()
            return [child for row in targets for child in self._scanned.get(row.tgid, ())]
        found: list[int] = []
        for row in targets:
            first_only = row.thread_count > _MANY_THREADS and self._looks % _SCAN_EVERY != 0
            found += _listed_children(row.tgid, first_thread_only=first_only)
        return found

    def _init(self, tgid: int, usage: Usage, status: Status) -> int:
        """PID 1 of its pid namespace, in our numbering; 0: the host's, or not found."""
        if len(status.ns_tgids) < 2:
            # In our own namespace, which may be a container's.
            return 0 if self._own_is_first else 1
        if status.ns_tgids[-1] == 1:
            return tgid
        namespace = self._namespace_of.get(tgid)
        if namespace is None:
            namespace = self._namespace_of[tgid] = _pid_namespace(tgid)
        if not namespace:
            # A zombie has left it already; its parent has not.
            return self._init_of.get(_pid_namespace(usage.ppid), 0)
        known = self._init_of.get(namespace)
        if known is None:
            known = _init_above(usage.ppid, namespace) or _init_anywhere(namespace)
            self._init_of[namespace] = known
        return known

    def _limit(self, netns: int, tgid: int) -> int:
        """net.core.somaxconn: shown of the reader's own namespace alone, so it is read there, once a while."""
        if netns not in self._somaxconn or self._looks % (_SCAN_EVERY * 4) == 0:
            try:
                self._somaxconn[netns] = in_netns(tgid, lambda: int(read_file(_SOMAXCONN) or b"0"))
            except (CannotObserveError, ValueError):
                self._somaxconn[netns] = 0
        return self._somaxconn[netns]

    def _forget(self, seen: Collection[int]) -> None:
        """Numbers come again."""
        self._namespace_of = {tgid: ns for tgid, ns in self._namespace_of.items() if tgid in seen}
        alive = set(self._namespace_of.values())
        self._init_of = {namespace: init for namespace, init in self._init_of.items() if namespace in alive}


def _listed_children(tgid: int, *, first_thread_only: bool) -> list[int]:
    """Those that are not waited for are among them. Source: proc_pid_task(5)."""
    try:
        tids = [str(tgid)] if first_thread_only else os.listdir(f"/proc/{tgid}/task")
    except OSError:
        return []
    return [int(child) for tid in tids for child in (read_file(f"/proc/{tgid}/task/{tid}/children") or b"").split()]


def _pid_namespace(tgid: int | str) -> int:
    """Its inode; 0 where it cannot be read, a zombie's for one."""
    try:
        return os.stat(f"/proc/{tgid}/ns/pid").st_ino
    except OSError:
        return 0


def _is_init(tgid: int) -> bool:
    return parse_ns_tgid(read_file(f"/proc/{tgid}/status") or b"") == 1


def _init_above(tgid: int, namespace: int) -> int:
    """Up the parents, as long as they are in the namespace; 0: not among them."""
    for _ in range(64):
        if tgid <= 1 or _pid_namespace(tgid) != namespace:
            return 0
        if _is_init(tgid):
            return tgid
        usage = parse_usage(read_file(f"/proc/{tgid}/stat") or b"")
        if usage is None:
            return 0
        tgid = usage.ppid
    return 0


def _init_anywhere(namespace: int) -> int:
    """For a process that came in from outside (nsenter, docker exec): its parents are not in the namespace."""
    for name in os.listdir("/proc"):
        if name.isdigit() and _pid_namespace(name) == namespace and _is_init(int(name)):
            return int(name)
    return 0
