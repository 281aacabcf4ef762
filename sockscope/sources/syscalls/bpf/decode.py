"""Slots of a ring into event tables. Pure, and no Python object per record.

`layout.slot_dtype` is what a slot looks like.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sockscope.model.events import EVENT_DTYPE, Events
from sockscope.sources.syscalls.bpf.layout import RING_HEADER_BYTES
from sockscope.sources.syscalls.bpf.ring import Window

_BLOB_AT = RING_HEADER_BYTES + EVENT_DTYPE.itemsize


def decode(window: Window) -> Events:
    """The window's records and blobs, copied out of the ring; blobs in row order, without gaps."""
    slots, skip = window.slots, window.skip
    count = len(slots)
    if not count:
        return Events.empty()
    # As opaque bytes a record is one memcpy; as a structure numpy copies it field by field (four times slower).
    records = _column(slots, RING_HEADER_BYTES, EVENT_DTYPE.itemsize)
    records = (records.copy() if skip is None else records[~skip]).view(EVENT_DTYPE)
    lengths = np.minimum(records["blob_bytes"], slots.dtype.itemsize - _BLOB_AT).astype(np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    records["blob_offset"] = starts
    records["blob_bytes"] = lengths
    widest = int(lengths.max(initial=0))
    if not widest:
        return Events(records=records, blob=np.zeros(0, np.uint8))
    source = _column(slots, _BLOB_AT, widest)
    if skip is not None:
        source = source[~skip]
    return Events(records=records, blob=_packed(source, starts, int(ends[-1]), widest))


def replace_blobs(events: Events, fresh: Mapping[int, bytes]) -> Events:
    """Give some rows another blob. Expects blobs in row order without gaps, and keeps them so."""
    if not fresh:
        return events
    records = events.records.copy()
    parts: list[npt.NDArray[np.uint8]] = []
    at = 0
    for row, blob in sorted(fresh.items()):
        start = int(records["blob_offset"][row])
        parts += [events.blob[at:start], np.frombuffer(blob, np.uint8)]
        at = start + int(records["blob_bytes"][row])
        records["blob_bytes"][row] = len(blob)
    parts.append(events.blob[at:])
    lengths = records["blob_bytes"].astype(np.int64)
    records["blob_offset"] = np.cumsum(lengths) - lengths
    return Events(records=records, blob=np.concatenate(parts))


def _column(slots: npt.NDArray[np.void], at: int, size: int) -> npt.NDArray[np.void]:
    """Bytes `at` to `at + size` of every slot, as a view of opaque elements."""
    whole = slots.view(np.dtype((np.void, slots.dtype.itemsize)))
    return np.ndarray((len(slots),), np.dtype((np.void, size)), whole, at, whole.strides)


def _packed(
    source: npt.NDArray[np.void], starts: npt.NDArray[np.int64], total: int, widest: int
) -> npt.NDArray[np.uint8]:
    """Blobs of different lengths end to end.

    Every row is written `widest` bytes wide to its place, rows in order: what is too much is overwritten by the rows
    that follow. That is one memcpy a row (16 ns); a mask over all bytes or an index a byte takes ten times as long.
    """
    out = np.empty(total + widest, np.uint8)
    # An element may begin at any byte: element i is out[i : i + widest].
    places = np.ndarray((total + 1,), source.dtype, out, 0, (1,))
    places[starts] = source
    return out[:total]
