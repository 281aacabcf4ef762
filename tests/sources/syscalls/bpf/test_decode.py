"""Slots become events: records as they are, blobs packed in row order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.events import EVENT_DTYPE, Events
from sockscope.recording.writer import blobs
from sockscope.sources.syscalls.bpf.decode import decode, replace_blobs
from sockscope.sources.syscalls.bpf.layout import RING_DISCARDED, Ring, blob_capacity
from tests.sources.syscalls.bpf.ring_support import FakeRing, record

some_blobs = st.lists(st.binary(max_size=152), max_size=40)


def events_of(wanted: list[bytes], ring: Ring = Ring.SMALL, discard: frozenset[int] = frozenset()) -> Events:
    memory = FakeRing(max(len(wanted), 1), ring, passed=3)
    for number, blob in enumerate(wanted):
        memory.put(record(number), blob, state=RING_DISCARDED if number in discard else 0)
    window = memory.reader.window()
    events = decode(window)
    memory.reader.advance(window)
    # What was read is a copy: the kernel may write there now.
    memory.slots.view(np.uint8)[:] = 0
    return events


@given(some_blobs)
def test_every_record_and_blob_arrives(wanted: list[bytes]) -> None:
    events = events_of(wanted)
    assert events.records.dtype == EVENT_DTYPE
    assert [bytes(events.blob_of(row)) for row in range(len(events))] == wanted
    assert events.blob.tobytes() == b"".join(wanted)
    for number in range(len(wanted)):
        expected = record(number)
        for name in ("enter_ns", "exit_ns", "ret", "tgid", "tid", "call", "flags"):
            assert events.records[name][number] == expected[name]
        assert events.records["args"][number].tolist() == expected["args"].tolist()


@given(some_blobs, st.frozensets(st.integers(0, 39)))
def test_discarded_records_leave_nothing(wanted: list[bytes], discard: frozenset[int]) -> None:
    events = events_of(wanted, discard=discard)
    kept = [blob for number, blob in enumerate(wanted) if number not in discard]
    assert [bytes(events.blob_of(row)) for row in range(len(events))] == kept


@pytest.mark.parametrize("ring", list(Ring))
def test_blobs_up_to_the_room_of_each_class(ring: Ring) -> None:
    room = blob_capacity(ring)
    wanted = [bytes([n % 251 + 1]) * length for n, length in enumerate([room, 0, 1, room - 1, room, 7])]
    events = events_of(wanted, ring)
    assert [bytes(events.blob_of(row)) for row in range(len(events))] == wanted


def test_a_length_beyond_the_slot_reads_no_further() -> None:
    ring = FakeRing(4)
    at = ring.put(record(1), b"x" * 152)
    for place in (at, at + 4):
        ring.slots["event"]["blob_bytes"][place] = 1 << 31
    assert len(decode(ring.reader.window()).blob) == 152


def test_the_recording_writes_them_without_another_copy() -> None:
    events = events_of([b"abc", b"", b"de"])
    column = blobs(events)
    assert column.to_pylist() == [b"abc", b"", b"de"]
    assert column.buffers()[2].address == events.blob.ctypes.data


def test_a_large_window_in_one_go() -> None:
    """Blobs of many lengths over tens of thousands of rows: later rows overwrite what earlier ones wrote too far."""
    generator = np.random.default_rng(7)
    lengths = generator.integers(0, 153, 30_000)
    data = generator.integers(0, 256, int(lengths.sum()), dtype=np.uint8)
    ring = FakeRing(1 << 15)
    slots = ring.slots[: len(lengths)]
    slots["length"] = 248
    slots["event"]["blob_bytes"] = lengths
    slots["blob"][np.arange(152) < lengths[:, None]] = data
    ring.producer[0] = len(lengths) * 256
    events = decode(ring.reader.window())
    assert np.array_equal(events.blob, data)
    assert np.array_equal(events.records["blob_bytes"], lengths)


@given(some_blobs, st.dictionaries(st.integers(0, 39), st.binary(max_size=300), max_size=5))
def test_rows_get_another_blob(wanted: list[bytes], fresh: dict[int, bytes]) -> None:
    fresh = {row: blob for row, blob in fresh.items() if row < len(wanted)}
    events = replace_blobs(events_of(wanted), fresh)
    expected = [fresh.get(row, blob) for row, blob in enumerate(wanted)]
    assert [bytes(events.blob_of(row)) for row in range(len(events))] == expected
    assert events.blob.tobytes() == b"".join(expected)
