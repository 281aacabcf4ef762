"""Capture files opened, unpacked where they are compressed, and laid into one address space."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sockscope.errors import DamagedInputError, UsageError
from sockscope.sources.packets.offsets import Bytes
from sockscope.sources.packets.pcap import PCAP_MAGICS
from sockscope.sources.packets.pcapng import PCAPNG_MAGIC
from sockscope.sources.packets.raw_space import load
from sockscope.sources.packets.unpack import packing, unpack

_HELP = "name a readable capture file"

Progress = Callable[[int, int], None]
"""Called with bytes done, and bytes of all files as they lie on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Files one after another.

    Attributes:
        paths: of the files.
        data: shape (m,), uint8, their bytes, unpacked.
        spans: where each begins and ends in `data`.
        damage: of each, why it could not be unpacked to its end; None: it is whole, or was not compressed.
        sizes: of each, bytes on disk.
    """

    paths: tuple[Path, ...]
    data: Bytes
    spans: tuple[tuple[int, int], ...]
    damage: tuple[str | None, ...]
    sizes: tuple[int, ...]

    @property
    def disk_bytes(self) -> int:
        return sum(self.sizes)

    def done_bytes(self, number: int, at: int) -> int:
        """Bytes on disk that are done when one file is read up to an offset; unpacking was done before."""
        before = sum(self.sizes[:number])
        begin, end = self.spans[number]
        size = self.sizes[number]
        return before + (size if end == begin else size * at // (end - begin))


def open_all(paths: Sequence[Path], progress: Progress | None = None) -> Opened:
    """Open, unpack and load.

    Args:
        paths: regular files.
        progress: told how far unpacking is: bytes of compressed files done, bytes of all files on disk.

    Raises:
        UsageError: one cannot be opened, or there is no room to unpack it.
        DamagedInputError: what a compressed one holds is no capture, or nothing of it can be unpacked.
    """
    paths = tuple(paths)
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = []
        for path in paths:
            try:
                files.append(stack.enter_context(open(path, "rb")))
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}", help_text=_HELP) from error
        sizes = tuple(os.fstat(file.fileno()).st_size for file in files)
        damage: list[str | None] = [None] * len(paths)
        done = 0
        for number, (path, file) in enumerate(zip(paths, files, strict=True)):
            try:
                kind = packing(os.pread(file.fileno(), 8, 0))
                if kind is None:
                    continue
                content = unpack(
                    path,
                    file,
                    kind,
                    expect=partial(expect_capture, path),
                    advance=_advance(progress, done, sum(sizes)),
                )
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}", help_text=_HELP) from error
            done += sizes[number]
            files[number] = stack.enter_context(content.file)
            damage[number] = content.damage
        try:
            space = load([file.fileno() for file in files])
        except OSError as error:
            names = ", ".join(map(str, paths))
            raise UsageError(f"cannot read {names}: {error.strerror}", help_text=_HELP) from error
    return Opened(paths=paths, data=space.data, spans=space.spans, damage=tuple(damage), sizes=sizes)


def expect_capture(path: Path, magic: bytes) -> None:
    """Look at a file's first four bytes, unpacked.

    Raises:
        DamagedInputError: no capture begins with them.
    """
    if not magic:
        raise DamagedInputError(f"{path}: the capture is empty", help_text="capture again; nothing was written to it")
    if magic not in PCAP_MAGICS and magic != PCAPNG_MAGIC:
        raise DamagedInputError(f"{path}: not a packet capture (pcap or pcapng)", help_text=_guess(magic))


def _guess(magic: bytes) -> str:
    if magic[:1] in (b"{", b"["):
        return "it looks like JSON; name the capture itself"
    if magic == b"PK\x03\x04":
        return "it is a zip archive: unzip it first"
    if magic[:1] == b"<":
        return "it looks like HTML: the download may have failed, fetch the capture itself"
    if magic.strip().isalnum() and magic.isascii():
        return "it is text: strace's goes to --strace, that of ss and netstat to --ss"
    return "write one with tcpdump -w or dumpcap"


def _advance(progress: Progress | None, before: int, whole: int) -> Callable[[int], None]:
    """Tells of one file among others."""

    def advance(at: int) -> None:
        if progress is not None:
            progress(before + at, whole)

    return advance
