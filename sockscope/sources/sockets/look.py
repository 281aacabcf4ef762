"""One look at the host's sockets, for `sockscope snapshot`."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from sockscope.errors import CannotObserveError
from sockscope.model.snapshot import Snapshot, causes
from sockscope.model.sockaddr import Family
from sockscope.model.sockets import OWNER_DTYPE, Sockets, first_owners
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets import procfs
from sockscope.sources.sockets.listeners import descendants
from sockscope.sources.sockets.netlink import Ahead
from sockscope.sources.sockets.netns import in_netns
from sockscope.sources.sockets.owner_source import OwnerSource, Scan
from sockscope.sources.sockets.owners import owner_table, owners
from sockscope.sources.sockets.sock_diag import ALL_STATES, TCP_QUERIES, Query, dump, state_mask


def look(
    *,
    scan: Scan,
    source: OwnerSource | None = None,
    ahead: Ahead | None = None,
    families: Iterable[Query] = TCP_QUERIES,
    ports: Collection[int] | None = None,
    pid: int | None = None,
    states: Collection[TcpState] | None = None,
    tcp_info: bool = False,
) -> Snapshot:
    """Sockets with their owners.

    Args:
        scan: of the descriptors of all processes, under way since before.
        source: whose scan that is, to be asked once more for what came since; None: a new one.
        ahead: the tables, asked for already; used where nothing narrows the look.
        ports: only TCP and UDP sockets with one of them at either end.
        pid: only sockets that this process or a descendant holds, and those that wait in its listeners'
            queues; looked up in its network namespace.
        states: only these.

    Raises:
        CannotObserveError: no such process, or sock_diag is refused.
    """
    if pid is not None and procfs.read_stat(pid) is None:
        help_text = "`sockscope snapshot` alone shows who holds what"
        raise CannotObserveError(f"there is no process {pid}", help_text=help_text)
    mask = ALL_STATES if states is None else state_mask(states)
    realtime_ns = time.time_ns()
    early = ahead if pid is None else None  # of our own network namespace
    rows = in_netns(pid, lambda: dump(families=families, ports=ports, states=mask, tcp_info=tcp_info, ahead=early))
    if mask == ALL_STATES and ports is None:
        listeners = rows[(rows["state"] == TcpState.LISTEN) & (rows["protocol"] == 6)]
    else:
        # Also wanted where the filter hides them: they tell what waits for accept.
        listeners = in_netns(pid, lambda: dump(states=state_mask([TcpState.LISTEN]), tcp_info=False))
    held, unreadable = owner_table(scan)
    hidden = unreadable > 0 or not procfs.sees_every_process()
    owned = first_owners(held, rows["inode"]) < len(held)
    if not hidden:
        late = _latecomers(rows[~owned], source)
        if len(late):
            held = np.concatenate([held, late])
            held = held[np.argsort(held["inode"], kind="stable")]
            owned = first_owners(held, rows["inode"]) < len(held)
        doubtful = _doubtful(rows) & ~owned
        if doubtful.any():
            # Closed meanwhile, most likely. What is called orphaned must be there still.
            again = in_netns(pid, lambda: dump(families=families, ports=ports, states=mask, tcp_info=False))
            there = ~doubtful | np.isin(rows["cookie"], again["cookie"][again["inode"] != 0])
            rows, owned = rows[there], owned[there]
    if pid is not None:
        mine = np.isin(held["tgid"], descendants([pid]))
        inodes = held["inode"][mine]
        served = listeners["local_port"][np.isin(listeners["inode"], inodes)]
        queued = (rows["inode"] == 0) & (rows["family"] != Family.UNIX) & np.isin(rows["local_port"], served)
        wanted = queued | np.isin(rows["inode"], inodes)
        rows, owned = rows[wanted], owned[wanted]
    if ports is not None or pid is not None or states is not None:
        held = held[np.isin(held["inode"], rows["inode"])]
    return Snapshot(
        sockets=Sockets(records=rows, owners=held),
        causes=causes(rows, owned, listeners, owners_may_hide=hidden),
        comms=_comms(set(held["tgid"].tolist())),
        realtime_ns=realtime_ns,
        unreadable_count=unreadable,
    )


def _doubtful(rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Sockets that some process ought to hold."""
    ought: npt.NDArray[np.bool_] = (rows["inode"] != 0) & (rows["state"] != TcpState.LISTEN)
    return ought


def _latecomers(nobodys: npt.NDArray[np.void], source: OwnerSource | None) -> npt.NDArray[np.void]:
    """The owners of sockets that came to be after the scan had passed their process.

    Without that a fresh connection would be called orphaned.
    """
    missing = nobodys["inode"][_doubtful(nobodys)]
    return owners(inodes=missing, source=source)[0] if len(missing) else np.zeros(0, OWNER_DTYPE)


def _comms(tgids: Iterable[int]) -> dict[int, str]:
    """The names of processes; `?` for one that ended meanwhile."""
    out: dict[int, str] = {}
    for tgid in tgids:
        data = procfs.read_file(f"/proc/{tgid}/comm")
        out[tgid] = data.rstrip(b"\n").decode("utf-8", "backslashreplace") if data else "?"
    return out
