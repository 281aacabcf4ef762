"""Log files as pieces of whole lines, gzip'ed or not, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from sockscope.errors import DamagedInputError, UsageError
from sockscope.sources.gunzip import GZIP_MAGIC, CutShort, PackDamage, gunzip
from sockscope.sources.strangers import stranger

CHUNK_BYTES = 2 << 20
LONGEST_LINE_BYTES = 16 << 20
"""A line beyond this is no line of strace: it is cut into pieces, which are counted as not understood."""


@dataclass(slots=True)
class Progress:
    """Bytes read of all files, told to the caller. `damage`: why the last file ended early; empty: it did not."""

    total_bytes: int
    told: Callable[[int, int], None] | None
    done_bytes: int = 0
    damage: str = ""

    def add(self, count: int) -> None:
        """`count` bytes more are read."""
        self.done_bytes += count
        if self.told is not None:
            self.told(min(self.done_bytes, self.total_bytes), self.total_bytes)


def refuse_strangers(path: Path, head: bytes) -> None:
    """Say what a file is that cannot be a log.

    Raises:
        DamagedInputError: the first bytes are those of another kind of file.
    """
    known = stranger(head)
    if known is not None:
        help_text = known.mend or "give the file that strace -o wrote"
        raise DamagedInputError(f"{path} is no strace log but {known.what}", help_text=help_text)
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise DamagedInputError(
            f"{path} is no strace log but a web page", help_text="the download may have failed: fetch the log itself"
        )


def read_chunks(path: Path, progress: Progress, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Pieces of one file; each but the last ends with a newline (or is a piece of an endless line).

    Raises:
        UsageError: the file cannot be read.
        DamagedInputError: it is another kind of file; or it cannot be unpacked from its first byte.
    """
    carry = b""
    for block in _blocks(path, progress, chunk_bytes):
        cut = block.rfind(b"\n") + 1
        if not cut:
            carry += block
            if len(carry) > LONGEST_LINE_BYTES:
                yield carry
                carry = b""
            continue
        yield carry + block[:cut] if carry else block[:cut]
        carry = block[cut:]
    if carry:
        yield carry


def _blocks(path: Path, progress: Progress, chunk_bytes: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            rest = _counted(iter(lambda: file.read(chunk_bytes), b""), progress)
            head = next(rest, b"")
            blocks = chain([head], rest)
            if head.startswith(GZIP_MAGIC):
                yield from _unpacked(path, blocks, progress, chunk_bytes)
                return
            refuse_strangers(path, head)
            yield from blocks
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}", help_text="check its name and rights"
        ) from error


def _counted(blocks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for block in blocks:
        progress.add(len(block))
        yield block


def _unpacked(path: Path, blocks: Iterator[bytes], progress: Progress, chunk_bytes: int) -> Iterator[bytes]:
    any_yet = False
    try:
        for data in gunzip(blocks, chunk_bytes):
            if not any_yet:
                refuse_strangers(path, data[:64])
            any_yet = True
            yield data
    except PackDamage as error:
        if not any_yet:
            raise DamagedInputError(
                f"{path} looks like gzip but cannot be unpacked: {error}", help_text="fetch or copy it again"
            ) from error
        what = "ends early" if isinstance(error, CutShort) else "is damaged"
        progress.damage = f"the gzip data {what} ({error}): what follows is lost"
