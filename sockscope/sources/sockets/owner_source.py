"""Who holds sockets, by the cheaper of two ways: the bpf iterator where it pays to load it, /proc otherwise.

Measured (2 CPUs, Linux 6.18): loading takes 25 ms, then 0.4 µs a descriptor; /proc takes 3.9 µs a descriptor. No
numpy here: see `fd_scan`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from sockscope.errors import SockscopeError
from sockscope.sources.sockets.fd_scan import ROW_BYTES, FdScan

if TYPE_CHECKING:
    from sockscope.sources.sockets.bpf.iterator import OwnerIterator

WORTH_LOADING = 10_000
"""Open files on the host from which one look at all processes is worth the load."""
WORTH_KEEPING = 2_000
"""Sockets that one look at some processes found, from which the next looks at them are worth it."""

Rows = tuple[bytes | bytearray, int]
"""As `FdScan.result` gives them."""


class Scan(Protocol):
    """A scan under way."""

    def result(self) -> Rows:
        """Wait for the end. To be asked once."""
        ...


def open_file_count() -> int:
    """Open files of the host, roughly (counted per CPU). Source: proc_sys_fs(5), file-nr."""
    try:
        with open("/proc/sys/fs/file-nr", "rb") as file:
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def process_1_is_guarded() -> bool:
    """Whether not even root may look into process 1: a kernel that guards it hides it from iterators, too."""
    return not os.access("/proc/1/fd", os.R_OK)


class OwnerSource:
    """Looks at owners, once or again and again; a context manager that keeps the iterator once it is loaded.

    Args:
        bpf: True: load it at the first look; False: never; None: where it pays.
    """

    def __init__(self, *, bpf: bool | None = None) -> None:
        self._bpf = bpf
        self._iterator: OwnerIterator | None = None
        self._refusal: SockscopeError | None = None
        self._seen_count = 0

    def __enter__(self) -> OwnerSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def refusal(self) -> SockscopeError | None:
        """Why /proc is read though bpf was worth it; None: nothing is in the way."""
        return self._refusal

    @property
    def uses_bpf(self) -> bool:
        """Whether the iterator is loaded."""
        return self._iterator is not None

    def close(self) -> None:
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def read(self, tgids: Collection[int] | None = None, *, workers: int | None = None) -> Rows:
        """Look now, in the calling thread.

        Args:
            tgids: these processes, and perhaps others; None: all.
            workers: for the scan of /proc, as `FdScan` takes them.

        Returns:
            A row of `ROW_BYTES` a descriptor (OWNER_DTYPE), in no order, perhaps twice; and how many processes
            refused to be read.
        """
        rows = self._by_bpf(tgids) if self._pays(tgids) else None
        found: Rows
        if rows is None:
            found = FdScan(tgids, workers=workers).result()
        else:
            found = rows, int(tgids is None and process_1_is_guarded())
        self._seen_count = len(found[0]) // ROW_BYTES
        return found

    def scan(self) -> Background | FdScan:
        """Look at all processes in the background; nothing else may be asked of the source until its end."""
        return Background(self.read) if self._pays(None) else FdScan()

    def _pays(self, tgids: Collection[int] | None) -> bool:
        if self._iterator is not None:
            return True
        if self._refusal is not None:
            return False
        if self._bpf is not None:
            return self._bpf
        if tgids is not None:
            return self._seen_count >= WORTH_KEEPING
        return open_file_count() >= WORTH_LOADING

    def _by_bpf(self, tgids: Collection[int] | None) -> bytes | None:
        """None: refused, and not to be tried again."""
        from sockscope.sources.bpf.libbpf import BpfRefusedError, problems
        from sockscope.sources.sockets.bpf.iterator import OwnerIterator

        try:
            if self._iterator is None:
                # Asked first: whoever is not root need not load anything to know.
                for message, help_text in problems():
                    raise BpfRefusedError(message, help_text=help_text)
                self._iterator = OwnerIterator()
            return self._iterator.rows(tgids)
        except BpfRefusedError as error:
            self._refusal = error
            self.close()
            return None


class Background:
    """A look in a thread of its own; a context manager whose end waits for it."""

    def __init__(self, look: Callable[[], Rows]) -> None:
        self._look = look
        self._found: Rows | None = None
        self._failure: SockscopeError | MemoryError | None = None
        self._thread = threading.Thread(target=self._run, name="socket-owners", daemon=True)
        self._thread.start()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join()

    def result(self) -> Rows:
        """As `Scan.result`."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self._found is None:
            raise RuntimeError("the look at the owners broke off")
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._look()
        except (SockscopeError, MemoryError) as error:
            self._failure = error
