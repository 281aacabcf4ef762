"""Event tables in bulk: some rows as a table of their own, and where blobs hold a section."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.model.events import Events, Section

HEADER_BYTES = 8
"""Of a section: kind u1, errno u1, reserved u2, length u4."""

Rows = npt.NDArray[np.int64]


def subset(events: Events, rows: Rows) -> Events:
    """A table of these rows alone, in ascending row order; records and blob are copies."""
    if not len(rows):
        return Events.empty()
    rows = np.sort(rows)
    records = events.records[rows]
    lengths = records["blob_bytes"].astype(np.int64)
    begins = np.cumsum(lengths) - lengths
    starts = records["blob_offset"].astype(np.int64)
    places = np.arange(int(lengths.sum())) + np.repeat(starts - begins, lengths)
    records["blob_offset"] = begins.astype(np.uint64)
    return Events(records=records, blob=events.blob[places])


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
    return (
        blob[at].astype(np.int64)
        | blob[at + 1].astype(np.int64) << 8
        | blob[at + 2].astype(np.int64) << 16
        | blob[at + 3].astype(np.int64) << 24
    )
