"""What is read is what was written, whatever the kernel is in the middle of."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.sources.syscalls.bpf.layout import RING_BUSY, RING_DISCARDED, Ring, slot_dtype
from sockscope.sources.syscalls.bpf.ring import PAGE, RingReader
from tests.sources.syscalls.bpf.ring_support import FakeRing, record


def test_an_empty_ring() -> None:
    ring = FakeRing(8)
    window = ring.reader.window()
    assert (len(window.slots), window.skip, window.fill, window.cut) == (0, None, 0.0, False)
    ring.reader.advance(window)
    assert ring.consumer[0] == 0


def test_a_window_is_a_view_and_the_room_is_given_back_by_advance() -> None:
    ring = FakeRing(8)
    ring.put(record(1), b"abc")
    window = ring.reader.window()
    assert np.shares_memory(window.slots, ring.slots)
    assert ring.consumer[0] == 0
    ring.reader.advance(window)
    assert ring.consumer[0] == ring.producer[0] == 256


def test_a_busy_record_hides_those_behind_it_until_it_is_done() -> None:
    ring = FakeRing(8)
    ring.put(record(1), b"")
    busy = ring.put(record(2), b"", state=RING_BUSY)
    ring.put(record(3), b"")
    window = ring.reader.window()
    assert window.slots["event"]["enter_ns"].tolist() == [1]
    assert window.cut
    assert window.fill == 3 / 8
    ring.reader.advance(window)
    again = ring.reader.window()
    assert len(again.slots) == 0
    assert again.cut
    ring.mark(busy, 0)
    window = ring.reader.window()
    assert window.slots["event"]["enter_ns"].tolist() == [2, 3]
    assert not window.cut


def test_discarded_records_are_marked_to_be_skipped() -> None:
    ring = FakeRing(8)
    for number in range(4):
        ring.put(record(number), b"", state=RING_DISCARDED if number % 2 else 0)
    window = ring.reader.window()
    assert window.skip is not None
    assert window.skip.tolist() == [False, True, False, True]
    # A reservation that will be given up is busy first, with both bits.
    ring.put(record(9), b"", state=RING_BUSY | RING_DISCARDED)
    assert ring.reader.window().cut


def test_a_full_ring_is_read_whole_wherever_it_begins() -> None:
    for passed in range(9):
        ring = FakeRing(8, passed=passed)
        for number in range(8):
            ring.put(record(number), b"")
        assert ring.free == 0
        window = ring.reader.window()
        assert window.slots["event"]["enter_ns"].tolist() == list(range(8))
        assert window.fill == 1.0
        ring.reader.advance(window)
        assert ring.free == 8


@given(
    count=st.integers(1, 9),
    passed=st.integers(0, 1 << 40),
    steps=st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0, 0, 0, RING_BUSY, RING_DISCARDED])), max_size=30),
)
def test_nothing_is_lost_doubled_or_out_of_order(count: int, passed: int, steps: list[tuple[int, int]]) -> None:
    ring = FakeRing(count, passed=passed)
    written: list[int] = []
    read: list[int] = []
    unfinished: list[int] = []
    for burst, state in steps:
        for _ in range(min(burst, ring.free)):
            number = len(written) + 1
            at = ring.put(record(number), b"", state=state)
            written.append(0 if state == RING_DISCARDED else number)
            if state == RING_BUSY:
                unfinished.append(at)
        window = ring.reader.window()
        kept = window.slots if window.skip is None else window.slots[~window.skip]
        read += kept["event"]["enter_ns"].tolist()
        ring.reader.advance(window)
        for at in unfinished:
            ring.mark(at, 0)
        unfinished.clear()
    window = ring.reader.window()
    kept = window.slots if window.skip is None else window.slots[~window.skip]
    read += kept["event"]["enter_ns"].tolist()
    assert not window.cut
    assert read == [number for number in written if number]


def test_mapped_memory_is_found_where_the_kernel_puts_it() -> None:
    """A file laid out like the map (its data once more behind itself) read through the mappings."""
    dtype = slot_dtype(Ring.SMALL)
    fd = os.memfd_create("ring")
    try:
        size = 2 * PAGE
        os.ftruncate(fd, 2 * PAGE + 2 * size)
        with mmap.mmap(fd, 2 * PAGE + 2 * size) as memory:
            slots = np.zeros(2 * size // 256, dtype)
            slots["length"] = 248
            slots["event"]["enter_ns"] = np.arange(len(slots))
            memory[2 * PAGE :] = slots.tobytes()
            memory[PAGE : PAGE + 8] = (5 * 256).to_bytes(8, "little")
            reader = RingReader(fd, size, dtype)
            window = reader.window()
            assert window.slots["event"]["enter_ns"].tolist() == [0, 1, 2, 3, 4]
            reader.advance(window)
            assert memory[:8] == (5 * 256).to_bytes(8, "little")
            del window
            reader.close()
            assert len(reader.window().slots) == 0
        assert "memfd:ring" not in Path("/proc/self/maps").read_text()
    finally:
        os.close(fd)
