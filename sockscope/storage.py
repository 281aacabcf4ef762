"""Arrays that may be bigger than memory: from some size on they live in unlinked temporary files.

What is in a file the kernel writes out and takes back when others need the memory, so ten million events do not have to
fit. Nothing is left behind, however the program ends: the files have no name.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sockscope.errors import UsageError

SPILL_BYTES = 16 << 20
"""Arrays up to here stay in anonymous memory: most sessions need no file at all."""

_FILL = bytes(1 << 20)


def temporary_folder() -> str:
    """Where big temporary files go.

    TMPDIR, where it is set; else /var/tmp, which is on a disk where /tmp is often memory; else what Python finds.

    Source: file-hierarchy(7): "/var/tmp/ … The place for larger and persistent temporary files".
    """
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK | os.X_OK):
        return "/var/tmp"
    return tempfile.gettempdir()


def allocate(count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Like np.empty; a big one lies in a file (and is zeroed).

    Args:
        count: elements; the shape is (count,).

    Raises:
        UsageError: the disk has no room for it.
    """
    kind = np.dtype(dtype)
    size = count * kind.itemsize
    if size <= SPILL_BYTES:
        return np.empty(count, kind)
    folder = temporary_folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Without its blocks a full disk would be a SIGBUS at some store later on.
            _reserve(file, size)
            return _mapped(file, size, kind)
    except OSError as error:
        raise _no_room(folder, size, error) from error


class Growing:
    """An array made piece by piece, in memory while it is small.

    Args:
        dtype: of its elements.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[npt.NDArray[Any]] = []
        self._file: IO[bytes] | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size // self._dtype.itemsize

    def append(self, part: npt.NDArray[Any]) -> None:
        """Add elements; the array is kept, not copied, until there is a file.

        Args:
            part: shape (k,), of the array's dtype.

        Raises:
            UsageError: the disk has no room for it.
        """
        if not len(part):
            return
        self._size += len(part) * self._dtype.itemsize
        self._parts.append(part)
        if self._file is None and self._size <= SPILL_BYTES:
            return
        folder = temporary_folder()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            for each in self._parts:
                data = np.ascontiguousarray(each).view(np.uint8).data
                while len(data):
                    data = data[self._file.write(data) :]
        except OSError as error:
            self.close()
            raise _no_room(folder, self._size, error) from error
        self._parts.clear()

    def whole(self) -> npt.NDArray[Any]:
        """All elements, shape (n,), to be written to as well; nothing can be added any more."""
        if self._file is None:
            parts, self._parts = self._parts, []
            if len(parts) == 1 and parts[0].flags.writeable:
                return parts[0]
            return np.concatenate(parts) if parts else np.zeros(0, self._dtype)
        found = _mapped(self._file, self._size, self._dtype)
        self.close()
        return found

    def close(self) -> None:
        """Let go of the file; what `whole` gave stays."""
        self._parts.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def _mapped(file: IO[bytes], size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(mmap.mmap(file.fileno(), size), dtype)


def _reserve(file: IO[bytes], size: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        # A file system (or a libc) that cannot reserve: zeros do.
        for at in range(0, size, len(_FILL)):
            file.write(_FILL[: min(len(_FILL), size - at)])
        file.flush()


def _no_room(folder: str, size: int, error: OSError) -> UsageError:
    return UsageError(
        f"{folder} has no room for {size >> 20} MiB of temporary data: {error.strerror}",
        help_text="set TMPDIR to a folder on a disk that has room; nothing was left behind",
    )
