"""Names of processes that neither the seed nor an exec told: strace logs and socket listings have them elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sockscope.model.connections import Connection
from sockscope.model.descriptors import Process

_UNNAMED = ("", "?")


def name_processes(
    processes: dict[int, Process], connections: Iterable[Connection], facts: npt.NDArray[np.void], *, followed: bool
) -> None:
    """Complete the processes by what was said of them beside.

    Args:
        processes: tgid → process; completed. Where nobody was followed, those that hold a connection are added:
            there is no other target.
        facts: PROCESS_FACT_DTYPE, in order of time.
        followed: syscalls were recorded.
    """
    tgids, lasts = np.unique(facts["tgid"][::-1], return_index=True)
    comms = facts["comm"][::-1][lasts].tolist()
    names = {
        tgid: comm.decode("utf-8", "backslashreplace") for tgid, comm in zip(tgids.tolist(), comms, strict=True) if comm
    }
    if not followed:
        for tgid in sorted({tgid for one in connections for tgid, _ in one.owners}):
            processes.setdefault(tgid, Process(tgid=tgid))
    for tgid, process in processes.items():
        if process.comm in _UNNAMED:
            process.comm = names.get(tgid, process.comm)
