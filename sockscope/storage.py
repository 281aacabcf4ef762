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

SPILL_BYTES = 8 << 20
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
            _reserve(file, 0, size)
            return _mapped(file, size, kind)
    except OSError as error:
        raise _no_room(folder, size, error) from error


class Growing:
    """An array that grows at its end, in memory while it is small, then in place in a file.

    Args:
        dtype: of its elements.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._room: npt.NDArray[Any] = np.empty(0, dtype)
        self._count = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    def append(self, part: npt.NDArray[Any]) -> None:
        """Copy elements to the end.

        Args:
            part: shape (k,), of the array's dtype.

        Raises:
            UsageError: the disk has no room for it.
        """
        count = self._count + len(part)
        if count > len(self._room):
            self._reach(count + count // 8)
        self._room[self._count : count] = part
        self._count = count

    def whole(self) -> npt.NDArray[Any]:
        """All elements so far, shape (n,), to be written to as well. A view: void once something is added."""
        return self._room[: self._count]

    def close(self) -> None:
        """Let go of the file; what `whole` gave stays, and nothing can be added any more."""
        if self._file is not None:
            self._file.close()

    def _reach(self, count: int) -> None:
        dtype, old = self._room.dtype, self.whole()
        size = count * dtype.itemsize
        if size <= SPILL_BYTES:
            self._room = np.empty(count, dtype)
            self._room[: self._count] = old
            return
        folder = temporary_folder()
        file = self._file
        try:
            if file is None:
                file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            _reserve(file, self._room.nbytes if self._file is not None else 0, size)
            self._room = _mapped(file, size, dtype)
        except OSError as error:
            if file is not None:
                file.close()
            raise _no_room(folder, size, error) from error
        if self._file is None:
            self._room[: self._count] = old
            self._file = file


def _mapped(file: IO[bytes], size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(mmap.mmap(file.fileno(), size), dtype)


def _reserve(file: IO[bytes], begin: int, end: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), begin, end - begin)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        # A file system (or a libc) that cannot reserve: zeros do.
        file.seek(begin)
        for at in range(begin, end, len(_FILL)):
            file.write(_FILL[: min(len(_FILL), end - at)])
        file.flush()


def _no_room(folder: str, size: int, error: OSError) -> UsageError:
    return UsageError(
        f"{folder} has no room for {size >> 20} MiB of temporary data: {error.strerror}",
        help_text="set TMPDIR to a folder on a disk that has room; nothing was left behind",
    )
