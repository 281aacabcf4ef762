"""Which sockets every process holds, in one pass of the kernel (`owners.bpf.c`). No numpy: see `fd_scan`."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from sockscope.sources.bpf.libbpf import BpfRefusedError
from sockscope.sources.bpf.objects import BpfObject

OBJECT = Path(os.path.dirname(__file__), "_owners.bpf.o")
PROGRAM = "socket_owners"
FEW_PROCESSES = 50
"""Up to so many are asked one by one, some 20 µs each; above, all of the host at once."""

_LINK_INFO = struct.Struct("=IIII")  # union bpf_iter_link_info: task.tid, task.pid, task.pid_fd


class OwnerIterator:
    """The program, loaded (some 25 ms) and run as often as wanted; a context manager. Use it in one thread at a time.

    Raises:
        BpfRefusedError: libbpf or the kernel refuses, or the program was not compiled.
    """

    def __init__(self) -> None:
        self._object = BpfObject(OBJECT)
        try:
            self._object.load()
        except BpfRefusedError:
            self._object.close()
            raise

    def __enter__(self) -> OwnerIterator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._object.close()

    def rows(self, tgids: Collection[int] | None = None) -> bytes:
        """A row a descriptor, as `FdScan.result` gives them (OWNER_DTYPE), in no order.

        A thread with a files table of its own counts here, and its rows bear its tgid: /proc/PID/fd shows only the
        main thread's. So a row may be there several times, where threads have outlived their main thread.

        Args:
            tgids: rows of others may be left out; None: all processes.

        Raises:
            BpfRefusedError: the kernel refuses.
        """
        if tgids is None or len(tgids) > FEW_PROCESSES:
            return self._object.run_iterator(PROGRAM)
        try:
            return b"".join(
                self._object.run_iterator(PROGRAM, _LINK_INFO.pack(0, tgid, 0, 0)) for tgid in tgids if tgid > 0
            )
        except BpfRefusedError:
            # Before 6.1 an iterator could not be told a process.
            return self._object.run_iterator(PROGRAM)
