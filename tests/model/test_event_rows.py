"""Stretches of a blob are put end to end, whichever way is the fastest for them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.event_rows import end_to_end, subset
from sockscope.model.events import EVENT_DTYPE, Events


@given(
    st.binary(max_size=3000),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 600)), max_size=30),
    st.booleans(),
)
def test_end_to_end(data: bytes, wanted: list[tuple[int, int]], ordered: bool) -> None:
    pieces = [(start, min(length, len(data) - start)) for start, length in wanted if start <= len(data)]
    if ordered:
        pieces.sort()
    starts = np.array([start for start, _ in pieces], np.int64)
    lengths = np.array([length for _, length in pieces], np.int64)
    got = end_to_end(np.frombuffer(data, np.uint8), starts, lengths)
    assert got.tobytes() == b"".join(data[start : start + length] for start, length in pieces)


@given(st.lists(st.binary(max_size=400), max_size=20), st.sets(st.integers(0, 19)))
def test_a_subset_is_a_table_of_its_own(blobs: list[bytes], wanted: set[int]) -> None:
    records = np.zeros(len(blobs), EVENT_DTYPE)
    records["ret"] = np.arange(len(blobs))
    lengths = np.array([len(blob) for blob in blobs], np.int64)
    records["blob_bytes"] = lengths
    records["blob_offset"] = np.cumsum(lengths) - lengths
    events = Events(records=records, blob=np.frombuffer(b"".join(blobs), np.uint8))
    rows = sorted(row for row in wanted if row < len(blobs))
    part = subset(events, np.array(rows, np.int64))
    assert part.records["ret"].tolist() == rows
    assert [bytes(part.blob_of(row)) for row in range(len(part))] == [blobs[row] for row in rows]
