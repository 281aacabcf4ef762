"""Who holds which socket."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from sockscope.model.sockets import OWNER_DTYPE
from sockscope.sources.sockets.owner_source import OwnerSource, Scan


def owners(
    tgids: Collection[int] | None = None,
    inodes: npt.NDArray[np.uint64] | None = None,
    *,
    workers: int | None = None,
    source: OwnerSource | None = None,
) -> tuple[npt.NDArray[np.void], int]:
    """Every descriptor that names a socket.

    Args:
        tgids: only these processes; None: all that can be read.
        inodes: only these sockets; None: all.
        workers: as `FdScan` takes them, where /proc is read.
        source: for whoever asks again and again; None: a new one.

    Returns:
        Shape (descriptors,), OWNER_DTYPE, sorted by inode, tgid, fd; and how many processes could not be read.
    """
    if source is None:
        with OwnerSource() as once:
            return owners(tgids, inodes, workers=workers, source=once)
    rows, unreadable = source.read(tgids, workers=workers)
    out = np.frombuffer(rows, OWNER_DTYPE)
    if tgids is not None:
        out = out[np.isin(out["tgid"], np.fromiter(tgids, np.int32, len(tgids)))]
    return _table(out, inodes), unreadable


def owner_table(scan: Scan, inodes: npt.NDArray[np.uint64] | None = None) -> tuple[npt.NDArray[np.void], int]:
    """The same, of all processes, from a scan that was started earlier."""
    rows, unreadable = scan.result()
    return _table(np.frombuffer(rows, OWNER_DTYPE), inodes), unreadable


def _table(out: npt.NDArray[np.void], inodes: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.void]:
    if inodes is not None:
        out = out[np.isin(out["inode"], inodes)]
    # Two stable sorts of one key each: the rows come in runs, which such a sort only merges.
    out = out[np.argsort((out["tgid"].astype(np.int64) << 32) | out["fd"], kind="stable")]
    out = out[np.argsort(out["inode"], kind="stable")]
    twice = np.zeros(len(out), np.bool_)
    twice[1:] = out[1:] == out[:-1]
    return out[~twice] if twice.any() else out
