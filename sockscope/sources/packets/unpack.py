"""Compressed files unpacked into an unnamed temporary file, a piece at a time, within a bound.

bzip2 and xz by the standard library; zstd and lz4 frames by Arrow.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import lzma
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from sockscope.errors import DamagedInputError, UsageError
from sockscope.sources.gunzip import GZIP_MAGIC, PackDamage, gunzip
from sockscope.storage import temporary_folder

MOST_BYTES = 64 << 30
"""No capture that people keep compressed grows beyond this."""
SPARE_BYTES = 256 << 20
"""Of the disk are left to others."""

_MAGICS = {
    GZIP_MAGIC: "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_PIECE_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_MOST_DICTIONARY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """Attributes:
    file: what was in it, unnamed: gone when closed.
    damage: why it is not all; None: it is.
    """

    file: BinaryIO
    damage: str | None


def packing(magic: bytes) -> str | None:
    """By which tool the file that begins with these bytes was compressed; None: by none known here."""
    return next((name for begin, name in _MAGICS.items() if magic.startswith(begin)), None)


def unpack(
    path: Path,
    file: BinaryIO,
    kind: str,
    *,
    expect: Callable[[bytes], None],
    advance: Callable[[int], None],
    most_bytes: int | None = None,
) -> Unpacked:
    """Unpack what can be.

    Args:
        path: its name, for errors.
        file: at its beginning.
        kind: as `packing` says.
        expect: given the first four bytes; raises where they are not what was asked for.
        advance: told how many of the file's bytes are done.
        most_bytes: None: what the disk has room for, at most `MOST_BYTES`.

    Raises:
        UsageError: it grows beyond the bound, or the disk is full.
        DamagedInputError: nothing can be unpacked.
    """
    folder = temporary_folder()
    room = shutil.disk_usage(folder).free - SPARE_BYTES
    limit = min(MOST_BYTES, room) if most_bytes is None else most_bytes
    help_text = f"unpack it yourself where there is room, or set TMPDIR (now {folder})"
    with contextlib.ExitStack() as stack:
        out: BinaryIO = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        size, damage = 0, None
        pieces = _PIECES[kind](file)
        while True:
            try:
                piece = next(pieces, None)
            except PackDamage as error:
                damage = f"{kind}: {error}; {size} bytes could be unpacked"
                break
            if piece is None:
                break
            if not size:
                expect(piece[:4])
            size += len(piece)
            if size > limit:
                raise UsageError(f"{path} unpacks to more than {limit} bytes", help_text=help_text)
            try:
                out.write(piece)
                out.flush()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise UsageError(f"no room to unpack {path} in {folder}", help_text=help_text) from error
            advance(file.tell())
        if not size:
            help_text = "copy the file again"
            raise DamagedInputError(f"{path}: {damage or kind + ': nothing is in it'}", help_text=help_text)
        stack.pop_all()
    return Unpacked(file=out, damage=damage)


class _Decompressor(Protocol):
    """bz2's and lzma's."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    return gunzip(iter(lambda: file.read(_READ_BYTES), b""), _PIECE_BYTES)


def _streams(file: BinaryIO, make: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """bzip2 and xz: streams may follow one another."""
    waiting = file.read(_READ_BYTES)
    while waiting:
        stream = make()
        while not stream.eof:
            try:
                piece = stream.decompress(waiting, _PIECE_BYTES)
            except (OSError, ValueError, lzma.LZMAError, MemoryError) as error:
                raise PackDamage(f"damaged near byte {file.tell() - len(waiting)}") from error
            waiting = b""
            if piece:
                yield piece
            if stream.needs_input and not stream.eof:
                waiting = file.read(_READ_BYTES)
                if not waiting:
                    raise PackDamage(f"cut at byte {file.tell()}")
        waiting = stream.unused_data.lstrip(b"\0") or file.read(_READ_BYTES).lstrip(b"\0")


def _bzip2(file: BinaryIO) -> Iterator[bytes]:
    return _streams(file, bz2.BZ2Decompressor)


def _xz(file: BinaryIO) -> Iterator[bytes]:
    return _streams(file, lambda: lzma.LZMADecompressor(memlimit=_MOST_DICTIONARY_BYTES))


def _by_arrow(file: BinaryIO, codec: str) -> Iterator[bytes]:
    import pyarrow as pa

    # Arrow closes what it reads from.
    with open(os.dup(file.fileno()), "rb") as again:
        stream = pa.CompressedInputStream(pa.PythonFile(again, mode="r"), codec)
        while True:
            try:
                piece = stream.read(_READ_BYTES)
            except (OSError, pa.ArrowException) as error:
                raise PackDamage(f"damaged or cut near byte {again.tell()}") from error
            if not piece:
                return
            yield piece
            file.seek(again.tell())


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    return _by_arrow(file, "zstd")


def _lz4(file: BinaryIO) -> Iterator[bytes]:
    return _by_arrow(file, "lz4")


_PIECES: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "xz": _xz,
    "zstd": _zstd,
    "lz4": _lz4,
}
