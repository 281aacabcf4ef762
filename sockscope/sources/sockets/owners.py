"""Who holds which socket."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from sockscope.model.sockets import OWNER_DTYPE
from sockscope.sources.sockets.fd_scan import FdScan


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


def owner_table(scan: FdScan, inodes: npt.NDArray[np.uint64] | None = None) -> tuple[npt.NDArray[np.void], int]:
    """The same from a scan that was started earlier."""
    rows, unreadable = scan.result()
    out = np.frombuffer(rows, OWNER_DTYPE)
    if inodes is not None:
        out = out[np.isin(out["inode"], inodes)]
    # Two stable sorts of one key each: the rows come in runs, which such a sort only merges.
    out = out[np.argsort((out["tgid"].astype(np.int64) << 32) | out["fd"], kind="stable")]
    return out[np.argsort(out["inode"], kind="stable")], unreadable
