"""Event tables in bulk: some rows as a table of their own, and where blobs hold a section."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.events import Events, Section

HEADER_BYTES = 8
"""Of a section: kind u1, errno u1, reserved u2, length u4."""

SHORT_BYTES = 256
"""Blobs up to here are copied whole; an index for each byte takes fifty times as long."""

Rows = npt.NDArray[np.int64]


def subset(events: Events, rows: Rows) -> Events:
    """A table of these rows alone, in ascending row order; records and blob are copies."""
    if not len(rows):
        return Events.empty()
    rows = np.sort(rows)
    records = events.records[rows]
    lengths = records["blob_bytes"].astype(np.int64)
    blob = end_to_end(events.blob, records["blob_offset"].astype(np.int64), lengths)
    records["blob_offset"] = np.cumsum(lengths) - lengths
    return Events(records=records, blob=blob)


def end_to_end(blob: npt.NDArray[np.uint8], starts: Rows, lengths: Rows) -> npt.NDArray[np.uint8]:
    """A copy of these stretches of a blob, one behind the other.

    Args:
        blob: shape (m,).
        starts: shape (k,), first byte of each.
        lengths: shape (k,), bytes of each.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    begins = ends - lengths
    used = lengths > 0
    if not total:
        return np.zeros(0, np.uint8)
    first = int(starts[used][0])
    if np.array_equal(starts[used] - first, begins[used]):
        return blob[first : first + total].copy()
    # Each short stretch is moved as one element of the longest one's size, from any byte to any byte; rows in order, so
    # that what is too much is overwritten by those that follow.
    short = used & (lengths <= SHORT_BYTES)
    width = int(lengths[short].max(initial=1))
    short &= starts + width <= len(blob)
    out = np.empty(total + width, np.uint8)
    kind = np.dtype((np.void, width))
    if short.any():
        source = np.ndarray((len(blob) - width + 1,), kind, np.ascontiguousarray(blob), 0, (1,))
        np.ndarray((total + 1,), kind, out, 0, (1,))[begins[short]] = source[starts[short]]
    rest = used & ~short
    if rest.any():
        sizes = lengths[rest]
        steps = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        out[np.repeat(begins[rest], sizes) + steps] = blob[np.repeat(starts[rest], sizes) + steps]
    return out[:total]


def find_sections(events: Events, rows: Rows, kind: Section) -> tuple[Rows, Rows]:
    """Where in the blob these events hold a section of this kind that is not empty.

    Walks the headers of all blobs at once: as many numpy steps as the longest chain has sections.

    Args:
        rows: shape (k,), event rows.

    Returns:
        Two arrays, shape (k,): the first byte of the section's data (-1: none), and its length.
    """
    place = np.full(len(rows), -1, np.int64)
    size = np.zeros(len(rows), np.int64)
    start = events.records["blob_offset"][rows].astype(np.int64)
    end = np.minimum(start + events.records["blob_bytes"][rows].astype(np.int64), len(events.blob))
    live = np.nonzero(start + HEADER_BYTES <= end)[0]
    at = start[live]
    while len(live):
        length = words_at(events.blob, at + 4)
        after = at + HEADER_BYTES + length
        hit = (events.blob[at] == kind) & (length > 0) & (after <= end[live])
        place[live[hit]] = at[hit] + HEADER_BYTES
        size[live[hit]] = length[hit]
        going = ~hit & (after + HEADER_BYTES <= end[live])
        live, at = live[going], after[going]
    return place, size


def words_at(blob: npt.NDArray[np.uint8], at: Rows) -> Rows:
    """The little-endian u4 at each of these (unaligned) places, as int64."""
    # The same bytes, seen as a word that begins at each of them: one gather instead of four.
    words = np.ndarray((max(len(blob) - 3, 0),), np.dtype("<u4"), np.ascontiguousarray(blob), strides=(1,))
    return words[at].astype(np.int64)
