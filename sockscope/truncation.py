"""Files of the user that are mapped: where somebody cuts one while it is read, the program ends, but says why.

Reading a page that the file no longer has raises SIGBUS (mmap(2)). Python's own signal handlers run between two of its
instructions, and so never: the one that faults is run again for ever. `tcpdump -W` cuts the files that it rotates.
"""

from __future__ import annotations

import ctypes
import os
import signal
from functools import cache

from sockscope.errors import DamagedInputError


class _Watch:
    """The files that are mapped, and the handler that tells of them."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        # Kept, or the handler would be gone with its wrapper.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._end)
        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(signal.SIGBUS, ctypes.cast(self._handler, ctypes.c_void_p))

    def add(self, path: str, size: int) -> None:
        self._sizes[path] = size

    def _end(self, _: int) -> None:
        """In the signal handler of the thread that was reading: nothing is cleaned up, files without a name go."""
        words = [f"sockscope: {name} was cut short while it was being read\n" for name in self._cut()]
        words = words or ["sockscope: a mapped file could not be read (SIGBUS): the disk may be failing\n"]
        words.append("  → copy it first, or analyze it when nobody writes to it any more\n")
        os.write(2, "".join(words).encode(errors="backslashreplace"))
        os._exit(DamagedInputError.exit_code)

    def _cut(self) -> list[str]:
        return [path for path, size in self._sizes.items() if _size(path) < size]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        # Deleted is not cut: what is mapped of it stays.
        return 1 << 62


@cache
def _watch() -> _Watch:
    return _Watch()


def watch(descriptor: int) -> None:
    """Say so, and end with the exit code for damaged input, where this file is cut while it is mapped.

    Args:
        descriptor: of a regular file; unnamed ones are nobody's to cut.
    """
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if not path.endswith(" (deleted)"):
        _watch().add(path, os.fstat(descriptor).st_size)
