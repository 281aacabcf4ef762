"""Who begins to serve a port while it is watched: a restart, another worker, a service that a socket activated."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterable

from sockscope.errors import CannotObserveError
from sockscope.sources.sockets.fd_scan import all_tgids
from sockscope.sources.sockets.listeners import descendants, server_inodes
from sockscope.sources.sockets.netns import in_netns, netns_of
from sockscope.sources.sockets.owners import owners

PERIOD_S = 0.5
YOUNG_S = 3.0
"""A listener that is passed on rather than opened shows in the young: their descriptors are read at every look."""


class PortWatch:
    """Looks for processes that serve a port, in a thread of its own.

    A look costs a millisecond: the kernel lists the port's listeners, and only young processes are asked whether they
    hold one; all of them where a listener is new and no young process holds it. Listeners in the network namespaces
    of the target count, no others'.

    Args:
        port: TCP, or a bound UDP socket's.
        tgids: the target, as it serves the port now.
    """

    def __init__(self, port: int, tgids: Collection[int]) -> None:
        self._port = port
        self._found = set(tgids)
        self._netns = {netns_of(tgid) for tgid in tgids} - {0}
        self._first_seen = dict.fromkeys(all_tgids(), float("-inf"))
        self._inodes: set[int] = set()
        self._lock = threading.Lock()
        self._servers: frozenset[int] = frozenset()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="port-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def servers(self) -> frozenset[int]:
        """Every process that was found to serve the port (with its descendants then) and still lives."""
        with self._lock:
            return self._servers

    def stop(self) -> None:
        """Safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """One look, by the thread or (in tests) by the caller."""
        now = time.monotonic()
        living = set(all_tgids())
        self._first_seen = {tgid: self._first_seen.get(tgid, now) for tgid in living}
        self._found = {tgid for tgid in self._found & living if _runs(tgid)}
        inodes = self._listeners()
        fresh, self._inodes = inodes - self._inodes, inodes
        if inodes:
            holders = _holders([tgid for tgid, at in self._first_seen.items() if now - at < YOUNG_S], inodes)
            if fresh - holders.keys():
                holders = _holders(None, inodes)
            # Process 1 may hold it for others (socket activation), and everything descends from it.
            new = {tgid for held in holders.values() for tgid in held} - self._found - {1}
            if new:
                self._found.update(descendants(new))
        with self._lock:
            self._servers = frozenset(self._found)

    def _listeners(self) -> set[int]:
        """Inodes of the port's listeners where the target lives; empty where that cannot be asked."""
        inodes: set[int] = set()
        left = set(self._netns)
        own = netns_of()
        for pid in [None, *self._found]:
            netns = own if pid is None else netns_of(pid)
            if netns not in left:
                continue
            try:
                inodes.update(in_netns(pid, lambda: server_inodes(self._port)))
            except CannotObserveError:
                # It ended just now, say: another process of the namespace may still be there.
                continue
            left.discard(netns)
        return inodes

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            self.look()


def _runs(tgid: int) -> bool:
    """False for what has ended, though its parent may not have asked yet (a zombie has no program)."""
    try:
        os.stat(f"/proc/{tgid}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        # Not ours to look at.
        return True
    return True


def _holders(tgids: Iterable[int] | None, inodes: set[int]) -> dict[int, set[int]]:
    """inode → the processes that hold it."""
    import numpy as np

    held, _ = owners(None if tgids is None else list(tgids), np.fromiter(inodes, np.uint64, len(inodes)), workers=0)
    out: dict[int, set[int]] = {}
    for inode, tgid, _fd in held.tolist():
        out.setdefault(inode, set()).add(tgid)
    return out
