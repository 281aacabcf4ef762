"""A BPF ring buffer read as numpy tables: every record has the same size, so any stretch of the ring is one array.

    page 0        consumer position (u64), ours to write
    page 1        producer position (u64), the kernel's
    page 2 ...    the data, mapped twice in a row: a stretch that wraps around is still contiguous

Each record begins with the kernel's header; its first word is the length and two bits:

    31      30          29 ... 0
    busy    discarded   length

Busy: reserved, not yet filled in. Discarded: filled in and given up, to be skipped.

Memory order: the kernel fills a record in and then clears the busy bit (xchg), and looks at the consumer position
before it reserves. x86_64 keeps loads in order, and stores behind loads; aarch64 may swap them, but only within the few
hundred instructions that a CPU has under way at once. Between the looking at the headers, the copying and the moving
of the position there lie thousands each time, in separate calls into numpy.

Source: kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.sources.syscalls.bpf.layout import RING_BUSY, RING_DISCARDED

PAGE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What lies in a ring at one moment.

    Attributes:
        slots: shape (n,), the ring's dtype; a view of the ring itself, valid until `RingReader.advance`.
        skip: shape (n,), bool: discarded; None where none is.
        fill: share of the ring that was taken, 0 to 1.
        cut: a record that is being filled in hides those behind it.
    """

    slots: npt.NDArray[np.void]
    skip: npt.NDArray[np.bool_] | None
    fill: float
    cut: bool


class RingMemory:
    """The positions and the slots of one ring, wherever they lie.

    Args:
        consumer: shape (1,), uint64, writable.
        producer: shape (1,), uint64.
        slots: shape (2n,), the data seen twice in a row; the dtype's first field is the header's first word.
    """

    def __init__(
        self, consumer: npt.NDArray[np.uint64], producer: npt.NDArray[np.uint64], slots: npt.NDArray[np.void]
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._slots = slots
        self._stride = slots.dtype.itemsize
        self._count = len(slots) // 2
        self._read = int(consumer[0]) // self._stride
        """Slots read so far, over the whole life of the ring."""
        names = slots.dtype.names
        assert names is not None
        self._headers = slots[names[0]]

    def window(self) -> Window:
        """What can be read now."""
        written = int(self._producer[0]) // self._stride
        at = self._read % self._count
        there = written - self._read
        headers = self._headers[at : at + there]
        busy = headers >= RING_BUSY
        first = int(busy.argmax()) if there else 0
        cut = bool(there) and bool(busy[first])
        ready = first if cut else there
        # Of those that are not busy, the discarded are the large ones.
        skip = headers[:ready] >= RING_DISCARDED
        return Window(
            slots=self._slots[at : at + ready],
            skip=skip if skip.any() else None,
            fill=there / self._count,
            cut=cut,
        )

    def forget(self) -> None:
        """Look at the memory no more; from now on nothing is there."""
        self._consumer, self._producer = self._consumer.copy(), self._consumer.copy()
        self._slots = self._slots[:0].copy()
        self._headers = np.zeros(0, np.uint32)

    def advance(self, window: Window) -> None:
        """Give the window's room back to the kernel. What is wanted of it has been copied."""
        self._read += len(window.slots)
        self._consumer[0] = self._read * self._stride


class RingReader(RingMemory):
    """A ring of the kernel.

    Args:
        map_fd: a BPF_MAP_TYPE_RINGBUF map; may be closed afterwards.
        size_bytes: its max_entries.
        dtype: of a slot, the kernel's header included; its size divides the ring's.

    Raises:
        OSError: the memory cannot be mapped.
    """

    def __init__(self, map_fd: int, size_bytes: int, dtype: np.dtype[np.void]) -> None:
        assert size_bytes % dtype.itemsize == 0
        self._own = mmap.mmap(map_fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._shared = mmap.mmap(map_fd, PAGE + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        super().__init__(
            np.frombuffer(self._own, np.uint64, 1),
            np.frombuffer(self._shared, np.uint64, 1),
            np.frombuffer(self._shared, dtype, 2 * size_bytes // dtype.itemsize, PAGE),
        )

    def close(self) -> None:
        """Give the memory back, which holds the map; a window that somebody still looks at keeps it."""
        self.forget()
        for memory in (self._own, self._shared):
            with contextlib.suppress(BufferError):
                memory.close()
