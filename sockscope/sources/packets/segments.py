"""Where captured packets go: one file, or segments of which the old ones are deleted again.

Every segment is a pcapng file; pcapng sections may follow one another in a file
(draft-ietf-opsawg-pcapng section 3), so segments joined end to end are a pcapng file, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

MOST_BYTES = 1 << 30
"""Of all segments together; beyond, the oldest go though they are not old enough."""
_SEGMENTS = 6
_LEAST_S = 2.0
_SUFFIX = ".pcapng"


class Sink(Protocol):
    """Takes blocks. `failure`: what the user should know; empty: all is well."""

    failure: str

    def write(self, block: bytes) -> bool:
        """Whole blocks; False where the disk takes no more."""
        ...

    def tick(self) -> None:
        """Called after every look at the rings."""
        ...

    def cut(self) -> None:
        """Begin a new segment."""
        ...


class OneFile:
    """The file. It holds whole blocks at any time, unless the process is killed within one write.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, header: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self.failure = ""
        self.path = path
        self.size_bytes = 0
        self._descriptor = os.open(path, flags, 0o600)
        self.write(header)

    def write(self, block: bytes) -> bool:
        """After a failure the file ends with the last whole write, for good."""
        if self.failure:
            return False
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self.failure = f"packet capture ended early: {error.strerror or 'the file cannot be written'}"
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size_bytes)
                os.lseek(self._descriptor, self.size_bytes, os.SEEK_SET)
            return False
        self.size_bytes += len(block)
        return True

    def tick(self) -> None:
        """Nothing is ever deleted here."""

    def cut(self) -> None:
        """There is but one."""

    def close(self) -> None:
        os.close(self._descriptor)


class Segments:
    """The last `keep_s` seconds, and up to a segment more, in a folder.

    A full disk costs packets, not the capture: it goes on when there is room again.

    Args:
        folder: made if missing.
        header: what every segment begins with.
        keep_s: how long packets stay.
        most_bytes: of all segments together.

    Raises:
        OSError: the folder or the first segment cannot be made.
    """

    def __init__(self, folder: Path, header: bytes, *, keep_s: float, most_bytes: int = MOST_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.failure = ""
        self._folder = folder
        self._header = header
        self._keep_s = keep_s
        self._segment_s = max(keep_s / _SEGMENTS, _LEAST_S)
        self._most_bytes = most_bytes
        self._number = 0
        self._closed: deque[tuple[Path, int, float]] = deque()
        self._closed_bytes = 0
        self._current: OneFile | None = self._open()
        self._began_s = time.monotonic()

    def write(self, block: bytes) -> bool:
        if self._current is not None and self._current.write(block):
            return True
        reason = self._current.failure if self._current is not None else ""
        # Room is made of the oldest; then once more.
        if self._closed:
            self._delete_oldest()
        self.cut()
        if self._current is not None and self._current.write(block):
            return True
        self.failure = f"packets were lost for want of room: {reason.partition(': ')[2] or 'the disk is full'}"
        return False

    def tick(self) -> None:
        now_s = time.monotonic()
        current = self._current
        if current is not None and current.size_bytes <= len(self._header):
            # Nothing in it: it may as well begin now.
            self._began_s = now_s
        elif now_s - self._began_s >= self._segment_s or (
            current is not None and current.size_bytes > self._most_bytes // _SEGMENTS
        ):
            self.cut()
        while self._closed and (
            now_s - self._closed[0][2] > self._keep_s
            or self._closed_bytes + (current.size_bytes if current is not None else 0) > self._most_bytes
        ):
            self._delete_oldest()

    def cut(self) -> None:
        now_s = time.monotonic()
        if self._current is not None and self._current.size_bytes <= len(self._header) and not self._current.failure:
            return
        if self._current is not None:
            self._current.close()
            self._closed.append((self._current.path, self._current.size_bytes, now_s))
            self._closed_bytes += self._current.size_bytes
        self._began_s = now_s
        try:
            self._current = self._open()
        except OSError:
            self._current = None

    def _open(self) -> OneFile:
        self._number += 1
        return OneFile(self._folder / f"{self._number:010}{_SUFFIX}", self._header)

    def _delete_oldest(self) -> None:
        path, size_bytes, _ = self._closed.popleft()
        self._closed_bytes -= size_bytes
        path.unlink(missing_ok=True)


def open_segments(folder: Path, *, whole: bool) -> list[BinaryIO]:
    """The segments of a folder, oldest first, opened.

    Args:
        whole: nobody writes there any more; else the newest, which is being written, is left out.
    """
    paths = sorted(folder.glob(f"*{_SUFFIX}"))
    found: list[BinaryIO] = []
    for path in paths if whole else paths[:-1]:
        # Deleted between the two: too old anyway.
        with contextlib.suppress(FileNotFoundError):
            found.append(open(path, "rb"))  # noqa: SIM115
    return found


def join(segments: Sequence[BinaryIO], path: Path) -> None:
    """Make one file (mode 0600) of segments, and close them.

    Raises:
        OSError: it cannot be written; what is there of it is whole segments and a part of one.
    """
    try:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            for segment in segments:
                shutil.copyfileobj(segment, file, 1 << 20)
    finally:
        for segment in segments:
            segment.close()
