"""Socket states through a session: a thread that looks again and again, and never costs much."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from sockscope.errors import SockscopeError
from sockscope.model.sockets import OWNER_DTYPE, SOCKET_DTYPE, Sockets
from sockscope.sources.sockets.listeners import descendants
from sockscope.sources.sockets.netns import enter_netns, netns_of
from sockscope.sources.sockets.owner_source import OwnerSource
from sockscope.sources.sockets.owners import owners
from sockscope.sources.sockets.sock_diag import ALL_QUERIES, UNIX_QUERIES, dump

_SHARE = 50
"""A sample may cost a fiftieth (2 %) of the time until the next."""
_BYTES_A_SECOND = 2 << 20
_FEW = 2000
"""Up to so many sockets on the host, all are read each time; above, only those with the target's ports."""
_FULL_EVERY = 8
"""Above, every eighth sample reads all, so that connections to other ports are not missed for long."""


class Sampler:
    """Samples the target's sockets: those with its ports, and those its processes hold.

    Use: `start`, `drain` now and then, `stop` once. A target that forks is followed.

    Args:
        ports: the target's listening ports.
        tgids: the target's processes; their descendants are found here.
        netns_pid: look in this process's network namespace; None: ours.
        period_s: time between two samples while they are cheap; it grows so that sampling stays
            below 2 % of a CPU and 2 MB/s of rows.
    """

    def __init__(
        self,
        *,
        ports: Collection[int] = (),
        tgids: Collection[int] = (),
        netns_pid: int | None = None,
        period_s: float = 0.25,
    ) -> None:
        self._ports = set(ports)
        self._tgids = set(tgids)
        self._netns_pid = netns_pid
        self._period_s = period_s
        self._lock = threading.Lock()
        self._taken: list[npt.NDArray[np.void]] = []
        self._count = 0
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._failure: SockscopeError | None = None
        self._final: npt.NDArray[np.void] = np.zeros(0, SOCKET_DTYPE)
        self._source = OwnerSource()
        self._held: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._held_again_s = 0.0
        self._known: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._host_count = 0
        self._thread = threading.Thread(target=self._run, name="socket-sampler", daemon=True)

    @property
    def snapshot_count(self) -> int:
        return self._count

    @property
    def failure(self) -> SockscopeError | None:
        """Why sampling ended before it was told to; None where it did not."""
        return self._failure

    def start(self) -> None:
        """Take the first snapshot (0) and go on in the background.

        Raises:
            CannotObserveError: sock_diag is refused, or the network namespace cannot be entered.
        """
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def drain(self) -> list[npt.NDArray[np.void]]:
        """The snapshots since the last call, SOCKET_DTYPE, one array each (the final one is `stop`'s)."""
        with self._lock:
            taken, self._taken = self._taken, []
        return taken

    def add_ports(self, ports: Collection[int]) -> None:
        """Ports that the target listens on since; from the next sample on."""
        with self._lock:
            self._ports.update(ports)

    def set_tgids(self, tgids: Collection[int]) -> None:
        """These roots alone from now on: the others have ended."""
        with self._lock:
            self._tgids = set(tgids)

    def add_tgids(self, tgids: Collection[int]) -> None:
        """More roots to follow (a launched command's pid is known only later)."""
        with self._lock:
            self._tgids.update(tgids)

    def stop(self) -> Sockets:
        """End, with a last snapshot of everything.

        Returns:
            The final snapshot's rows only (`drain` gives the earlier ones), with every owner on the host
            that holds one of them, or the other end of a unix connection, of the target or not.
        """
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        inodes = np.unique(np.concatenate([self._final["inode"], self._final["peer_inode"]]))
        with self._source as source:
            held = owners(inodes=inodes[inodes != 0], source=source)[0] if len(inodes) else np.zeros(0, OWNER_DTYPE)
        return Sockets(records=self._final, owners=held)

    def _run(self) -> None:
        try:
            if self._netns_pid is not None and netns_of(self._netns_pid) not in (0, netns_of()):
                enter_netns(self._netns_pid)
            while True:
                began = time.thread_time()
                rows = self._sample(whole=self._count % _FULL_EVERY == 0)
                self._keep(rows)
                # The first sample also pays for imports and cold caches: it is no measure.
                cost = time.thread_time() - began if self._started.is_set() else 0.0
                self._started.set()
                period = max(self._period_s, cost * _SHARE, rows.nbytes / _BYTES_A_SECOND)
                if self._stopping.wait(period):
                    break
            self._held_again_s = 0.0
            self._final = self._sample(whole=True)
            self._count += 1
        except SockscopeError as error:
            self._failure = error
        finally:
            self._started.set()

    def _keep(self, rows: npt.NDArray[np.void]) -> None:
        with self._lock:
            self._taken.append(rows)
            self._count += 1

    def _sample(self, *, whole: bool) -> npt.NDArray[np.void]:
        """One snapshot: rows whose local port is the target's, or that it holds, or that it was seen to hold."""
        with self._lock:
            ports = set(self._ports)
            tgids = set(self._tgids)
        self._look_at_holders(tgids)
        everything = whole or self._host_count <= _FEW
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if everything:
            rows = dump(time_ns=now, snapshot=self._count, families=ALL_QUERIES)
            self._host_count = len(rows)
        else:
            inet = dump(time_ns=now, snapshot=self._count, ports=ports, local_ports_only=True)
            rows = np.concatenate([inet, dump(time_ns=now, snapshot=self._count, families=UNIX_QUERIES)])
        mine = np.isin(rows["inode"], self._held)
        # TIME_WAIT and orphans have lost their inode, but not their cookie.
        mine |= np.isin(rows["cookie"], self._known)
        if ports:
            mine |= np.isin(rows["local_port"], np.fromiter(ports, np.uint16, len(ports)))
        rows = rows[mine]
        self._known = rows["cookie"].copy()
        return rows

    def _look_at_holders(self, tgids: set[int]) -> None:
        """Which sockets the target holds now; seldom enough to stay cheap with many descriptors."""
        now_s, began = time.monotonic(), time.thread_time()
        if not tgids or now_s < self._held_again_s:
            return
        held, _ = owners(descendants(tgids), workers=0, source=self._source)
        self._held = np.unique(held["inode"])
        self._held_again_s = now_s + (time.thread_time() - began) * _SHARE
