"""Which sockets every process holds, by `readlink /proc/PID/fd/N`.

The kernel spends some 3 µs on each link. Compiled (`csrc/fd_scan.c`), so that the scan costs nothing more and
runs beside Python, on threads of its own. No numpy here: a command has the scan under way while it still imports.

Source: proc_pid_fd(5).
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Iterable
from types import TracebackType

from sockscope.errors import CannotObserveError

_FOLDER = os.path.dirname(__file__)
LIBRARY = os.path.join(_FOLDER, "_fd_scan.so")
ROW_BYTES = 16


def all_tgids() -> list[int]:
    """Every process of the pid namespace."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


class FdScan:
    """A scan in the background: made, then asked for its `result`; or a context manager, whose end ends it.

    Args:
        tgids: processes to look at; None: all.
        workers: threads; None: one a CPU, at most 8; 0: scan here and now, in the calling thread.

    Raises:
        CannotObserveError: the library was not compiled.
        MemoryError: for lack of it.
    """

    def __init__(self, tgids: Iterable[int] | None = None, *, workers: int | None = None) -> None:
        self._scan = ctypes.c_void_p()
        pids = array("i", all_tgids() if tgids is None else tgids)
        address, count = pids.buffer_info()
        self._library = library()
        threads = len(os.sched_getaffinity(0)) if workers is None else workers
        self._scan = ctypes.c_void_p(
            self._library.ss_scan_start(ctypes.c_void_p(address), ctypes.c_size_t(count), threads)
        )
        if not self._scan:
            raise MemoryError

    def __enter__(self) -> FdScan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __del__(self) -> None:
        self._end()

    def result(self) -> tuple[bytearray, int]:
        """Wait for the end. To be asked once.

        Returns:
            A row of `ROW_BYTES` a descriptor (socket inode u8, tgid i4, fd i4: OWNER_DTYPE), in no order; and how
            many processes refused to be read.
        """
        unreadable = ctypes.c_int32()
        count = self._library.ss_scan_wait(self._scan, ctypes.byref(unreadable))
        if count < 0:
            raise MemoryError
        rows = bytearray(count * ROW_BYTES)
        if count:
            self._library.ss_scan_rows(self._scan, (ctypes.c_char * len(rows)).from_buffer(rows))
        self._end()
        return rows, unreadable.value

    def _end(self) -> None:
        if self._scan:
            self._library.ss_scan_free(self._scan)
            self._scan = ctypes.c_void_p()


def library() -> ctypes.CDLL:
    """The compiled functions of this room.

    Raises:
        CannotObserveError: they were not compiled.
    """
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise CannotObserveError(
            f"the scan of descriptors is not compiled: {error}",
            help_text="install sockscope with pip (in a checkout: pip install -e .)",
        ) from error
    found.ss_scan_start.restype = ctypes.c_void_p
    found.ss_scan_wait.restype = ctypes.c_int64
    found.ss_receive.restype = ctypes.c_int64
    return found
