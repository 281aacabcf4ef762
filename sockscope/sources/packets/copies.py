"""Captures of `any` show what a host sends to itself twice: leaving, and arriving."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sockscope.sources.packets.frames import mixed


def without_copies(records: npt.NDArray[np.void], ip_id: npt.NDArray[np.int32]) -> npt.NDArray[np.void]:
    """Drop the outgoing one where `-i any` shows one packet both leaving and arriving within a millisecond."""
    if not len(records) or (ip_id < 0).all():
        return records
    outgoing = records["outgoing"] != 0
    if outgoing.all() or not outgoing.any():
        return records
    dtype = records.dtype
    assert dtype.fields is not None
    low, high = dtype.fields["src"][1], dtype.fields["wire_bytes"][1]
    body = records.view(np.uint8).reshape(len(records), dtype.itemsize)[:, low:high]
    words = np.ascontiguousarray(body).view("<u4").astype(np.uint64)
    key = ip_id.astype(np.uint64)
    for column in range(words.shape[1]):
        key = mixed(key, words[:, column])
    order = np.argsort(key, kind="stable")
    before, after = order[:-1], order[1:]
    near = np.abs(records["time_ns"][after] - records["time_ns"][before]) <= 1_000_000
    same = (key[before] == key[after]) & near & (outgoing[before] != outgoing[after])
    drop = np.zeros(len(records), bool)
    # One copy goes with one original: of four in a row, two pairs.
    run = np.arange(len(same)) - np.maximum.accumulate(np.where(~same, np.arange(len(same)) + 1, 0))
    pair = same & (run % 2 == 0)
    drop[np.where(outgoing[before], before, after)[pair]] = True
    return records[~drop]
