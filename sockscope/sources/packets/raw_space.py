"""The bytes of several files as one array, so that one 64-bit offset says where a packet lies."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sockscope import truncation
from sockscope.errors import UsageError
from sockscope.sources.packets.offsets import Bytes

MAP_FROM_BYTES = 1 << 26
"""From here on files are mapped instead of read: nothing is copied, and the pages can be given back."""

ALIGNMENT = 1 << 16
"""Every file begins at a multiple: of any machine's page size, and so mapped where it would be read to."""

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSpace:
    """Files one after another.

    Attributes:
        data: shape (m,), uint8, not writable; bytes between two files are zero.
        spans: of each file, where its bytes begin and end in `data`.
    """

    data: Bytes
    spans: tuple[tuple[int, int], ...]


def load(descriptors: Sequence[int]) -> RawSpace:
    """Read or map whole files.

    Args:
        descriptors: of regular files, open for reading; they may be closed afterwards.

    Raises:
        UsageError: they are larger than what memory can be addressed with.
        OSError: reading fails.
    """
    spans: list[tuple[int, int]] = []
    end = 0
    for descriptor in descriptors:
        begin = (end + ALIGNMENT - 1) & -ALIGNMENT
        end = begin + os.fstat(descriptor).st_size
        spans.append((begin, end))
    data = _mapped(descriptors, spans, end) if end >= MAP_FROM_BYTES else _read(descriptors, spans, end)
    data.flags.writeable = False
    return RawSpace(data=data, spans=tuple(spans))


def _read(descriptors: Sequence[int], spans: Sequence[tuple[int, int]], size: int) -> Bytes:
    data = np.empty(size, np.uint8)
    written = 0
    for descriptor, (begin, end) in zip(descriptors, spans, strict=True):
        data[written:begin] = 0
        at = begin
        while at < end:
            count = os.preadv(descriptor, [data[at:end].data], at - begin)
            if not count:
                # Shrunk meanwhile: as if it had been cut there.
                data[at:end] = 0
                break
            at += count
        written = end
    return data


def _mapped(descriptors: Sequence[int], spans: Sequence[tuple[int, int]], size: int) -> Bytes:
    """Files mapped side by side into one reserved range: Python's mmap alone cannot say where."""
    try:
        reserved = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except OSError as error:
        raise UsageError(
            f"cannot map {size >> 20} MiB of captures: {error.strerror}", help_text="give fewer files at once"
        ) from error
    # The array keeps the range, and the range, when it goes, takes with it all that was mapped into it.
    data = np.frombuffer(reserved, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    base = int(data.ctypes.data)
    for descriptor, (begin, end) in zip(descriptors, spans, strict=True):
        if begin == end:
            continue
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        found = libc.mmap(base + begin, end - begin, mmap.PROT_READ, flags, descriptor, 0)
        if found != base + begin:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        truncation.watch(descriptor)
    return data
