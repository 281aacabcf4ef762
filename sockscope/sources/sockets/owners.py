"""Who holds which socket."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from sockscope.model.sockets import OWNER_DTYPE
from sockscope.sources.sockets.fd_scan import FdScan, Scan


def owners(
    tgids: Collection[int] | None = None,
    inodes: npt.NDArray[np.uint64] | None = None,
    *,
    workers: int | None = None,
) -> tuple[npt.NDArray[np.void], int]:
    """Every descriptor that names a socket.

    Args:
        tgids: only these processes; None: all that can be read.
        inodes: only these sockets; None: all.
        workers: as `FdScan` takes them.

    Returns:
        Shape (descriptors,), OWNER_DTYPE, sorted by inode, tgid, fd; and how many processes could not be read.
    """
    return owner_table(FdScan(tgids, workers=workers), inodes)


def owner_table(scan: Scan, inodes: npt.NDArray[np.uint64] | None = None) -> tuple[npt.NDArray[np.void], int]:
    """The same from a scan that was started earlier."""
    parts, unreadable = scan.result()
    out = np.zeros(sum(len(fds) for _, fds, _ in parts), OWNER_DTYPE)
    at = 0
    for tgid, fds, held in parts:
        rows = out[at : at + len(fds)]
        rows["tgid"] = tgid
        rows["fd"] = np.frombuffer(fds, np.int64)
        rows["inode"] = np.frombuffer(held, np.int64)
        at += len(fds)
    if inodes is not None:
        out = out[np.isin(out["inode"], inodes)]
    return out[np.lexsort((out["fd"], out["tgid"], out["inode"]))], unreadable
