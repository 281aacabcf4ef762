"""A ring as the kernel would fill it, in made-up memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.events import EVENT_DTYPE
from sockscope.sources.syscalls.bpf.layout import Ring, slot_dtype
from sockscope.sources.syscalls.bpf.ring import RingMemory


class FakeRing:
    """Writes slots where the kernel would; `reader` reads them.

    Args:
        count: slots in the ring.
        ring: which ring's slots.
        passed: how many slots went through the ring before (where in it the reader begins).
    """

    def __init__(self, count: int, ring: Ring = Ring.SMALL, passed: int = 0) -> None:
        self.dtype = slot_dtype(ring)
        stride = self.dtype.itemsize
        self.count = count
        self.consumer = np.array([passed * stride], np.uint64)
        self.producer = np.array([passed * stride], np.uint64)
        # What a slot does not use is undefined.
        self.slots = np.full(2 * count * stride, 0xA5, np.uint8).view(self.dtype)
        self.reader = RingMemory(self.consumer, self.producer, self.slots)

    @property
    def free(self) -> int:
        return self.count - int(self.producer[0] - self.consumer[0]) // self.dtype.itemsize

    def put(self, record: npt.NDArray[np.void], blob: bytes, *, state: int = 0) -> int:
        """Reserve a slot and fill it in; where it lies. `state`: RING_BUSY, RING_DISCARDED or 0."""
        number = int(self.producer[0]) // self.dtype.itemsize
        slot = np.full(self.dtype.itemsize, 0xA5, np.uint8).view(self.dtype)
        slot["length"] = (self.dtype.itemsize - 8) | state
        slot["event"] = record
        slot["event"]["blob_bytes"] = len(blob)
        slot["blob"][0, : len(blob)] = np.frombuffer(blob, np.uint8)
        at = number % self.count
        # The kernel maps one page twice; here both places are written.
        self.slots[at] = self.slots[at + self.count] = slot[0]
        self.producer[0] += self.dtype.itemsize
        return at

    def mark(self, at: int, state: int) -> None:
        for place in (at, at + self.count):
            self.slots["length"][place] = (self.dtype.itemsize - 8) | state


def record(number: int) -> npt.NDArray[np.void]:
    """An event told apart by its numbers."""
    made = np.zeros((), EVENT_DTYPE)
    made["enter_ns"] = number
    made["exit_ns"] = number + 1
    made["args"] = number * np.arange(6, dtype=np.uint64)
    made["tid"] = number % 30000
    return made
