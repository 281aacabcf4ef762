"""Where the records of a capture file begin.

Each record says only how long it is, so the chain is serial by nature. It is walked in parallel all the
same: the file is cut into stretches, in each a likely record start is guessed, all stretches are walked in
lockstep (one numpy gather a step for all of them), and a guess counts only if the walk of the stretch before
it lands on it exactly. What does not fit is walked serially, so the result is always that of the plain walk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

SERIAL_RECORDS = 1024
"""So many are walked plainly first: small files, and files of many small sections, need no more."""
STRETCHES = 4096
"""At most: the more, the fewer steps of the walk; and the more guesses."""
MIN_STRETCH_BYTES = 16 * 1024
STRETCH_RECORDS = 64
"""A stretch holds about so many at least; in jumbo frames or segments of 64 KiB it is longer."""
GUESS_RECORDS = (3, 16)
"""Over the bytes of so many records a start is looked for; where none is found, over more."""
MIN_LANES = 8
"""Fewer walk faster one after another."""
HOPS = 4
"""A guess must lead over so many more records that look right."""
_LOOK_BYTES = 1 << 18


class Format(Protocol):
    """How long records are and what they look like."""

    header_bytes: int

    def next_serial(self, data: memoryview, at: int) -> int:
        """Where the record after `at` begins; -1 where `at` holds no record of this kind."""
        ...

    def next_many(self, data: Bytes, at: Offsets) -> Offsets:
        """The same for many (each at least `header_bytes` before the end)."""
        ...

    def words(self, data: Bytes) -> Words:
        """The number that may begin at every byte: `unaligned`, in the file's byte order."""
        ...

    def likely(self, words: Words) -> npt.NDArray[np.bool_]:
        """Whether a record may begin with such a number, by a first cheap look (for guesses only); any shape."""
        ...

    def plausible(self, data: Bytes, at: Offsets) -> npt.NDArray[np.bool_]:
        """Whether a record may well begin there (for guesses only)."""
        ...


def unaligned(data: Bytes, dtype: str) -> npt.NDArray[Any]:
    """A view with one element starting at every byte (overlapping); shape (len - itemsize + 1,)."""
    item = np.dtype(dtype)
    count = max(len(data) - item.itemsize + 1, 0)
    return np.ndarray((count,), item, buffer=data.data if count else b"", strides=(1,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """The records found.

    Attributes:
        starts: shape (n,), each whole record's first byte.
        stop: where the walk ended: the file's end, a cut record, or one of another kind.
    """

    starts: Offsets
    stop: int


def walk(data: Bytes, start: int, form: Format) -> Walk:
    """All whole records from `start` on."""
    head, at = _serial(data.data, start, len(data), form, SERIAL_RECORDS)
    if len(head) < SERIAL_RECORDS:
        return Walk(starts=np.array(head, np.int64), stop=at)
    parts = [np.array(head, np.int64)]
    guesses = _guesses(data, at, (at - start) // len(head), form)
    chains = _lockstep(data, guesses, form)
    end = len(data)
    for i, guess in enumerate(guesses.tolist()):
        if at > guess:
            continue  # A record reached over it: the guess was wrong.
        if at < guess:
            serial, at = _serial(data.data, at, guess, form, None)
            parts.append(np.array(serial, np.int64))
            if at != guess:
                if at < guess:
                    return Walk(starts=np.concatenate(parts), stop=at)
                continue
        parts.append(chains.of(i))
        at = int(chains.ends[i])
        if chains.stopped[i]:
            return Walk(starts=np.concatenate(parts), stop=at)
    serial, at = _serial(data.data, at, end, form, None)
    parts.append(np.array(serial, np.int64))
    return Walk(starts=np.concatenate(parts), stop=at)


def _serial(data: memoryview, at: int, until: int, form: Format, limit: int | None) -> tuple[list[int], int]:
    """Walk plainly until `until` is reached or passed, the limit, or a record that is cut or of another kind."""
    found: list[int] = []
    total = len(data)
    header = form.header_bytes
    step: Callable[[memoryview, int], int] = form.next_serial
    while at < until and (limit is None or len(found) < limit):
        if at + header > total:
            break
        after = step(data, at)
        if after < 0 or after > total:
            break
        found.append(at)
        at = after
    return found, at


def _guesses(data: Bytes, start: int, record_bytes: int, form: Format) -> Offsets:
    """Likely record starts, one a stretch at most (`start` itself the first), ascending.

    Args:
        record_bytes: how long records are on an average.
    """
    size = max((len(data) - start) // STRETCHES, MIN_STRETCH_BYTES, STRETCH_RECORDS * record_bytes)
    lows = np.arange(start + size, len(data) - form.header_bytes, size)
    found = [np.array([start], np.int64)]
    for records in GUESS_RECORDS:
        guess = _guess_each(data, lows, min(records * record_bytes + form.header_bytes, size), form)
        found.append(guess[guess >= 0])
        lows = lows[guess < 0]
    return np.sort(np.concatenate(found))


def _guess_each(data: Bytes, lows: Offsets, window: int, form: Format) -> Offsets:
    """From each of these offsets on, within the window, the first likely start; shape (n,), -1 where there is none."""
    found = np.full(len(lows), -1, np.int64)
    words = form.words(data)
    # So that each part of the question takes some MiB.
    step = max(_LOOK_BYTES // window, 1)
    for first in range(0, len(lows), step):
        part = lows[first : first + step]
        at = np.minimum(part[:, None] + np.arange(window), len(data) - form.header_bytes)
        stretch, place = np.nonzero(form.likely(words[at]))
        at = at[stretch, place]
        right = form.plausible(data, at)
        at, stretch = at[right], stretch[right]
        leads = _leads_on(data, at, form)
        # The last that is written is the first in the window.
        found[first + stretch[leads][::-1]] = at[leads][::-1]
    return found


def _leads_on(data: Bytes, at: Offsets, form: Format) -> npt.NDArray[np.intp]:
    """Which of these positions lead over `HOPS` further records that look right."""
    which = np.arange(len(at))
    for _ in range(HOPS):
        if not len(at):
            break
        at = form.next_many(data, at)
        inside = (at >= 0) & (at <= len(data) - form.header_bytes)
        at, which = at[inside], which[inside]
        looks_right = form.plausible(data, at)
        at, which = at[looks_right], which[looks_right]
    return which


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chains:
    """What each stretch's walk found; `stopped` where it met a cut record or one of another kind."""

    counts: Offsets
    ends: Offsets
    stopped: npt.NDArray[np.bool_]
    flat: Offsets
    first: Offsets

    def of(self, lane: int) -> Offsets:
        return self.flat[self.first[lane] : self.first[lane] + self.counts[lane]]


def _lockstep(data: Bytes, guesses: Offsets, form: Format) -> _Chains:
    """Walk every stretch from its guess until it reaches the next guess, a cut record, or another kind."""
    lanes = len(guesses)
    until = np.append(guesses[1:], len(data))
    ends = guesses.copy()
    stopped = np.zeros(lanes, bool)
    at, lane = guesses.copy(), np.arange(lanes, dtype=np.int64)
    limit = until.copy()
    steps: list[Offsets] = []
    step_lanes: list[Offsets] = []
    last = len(data) - form.header_bytes
    while len(at) >= MIN_LANES:
        fits = at <= last
        after = form.next_many(data, np.where(fits, at, 0))
        whole = fits & (after >= 0) & (after <= len(data))
        if not whole.all():
            broken = lane[~whole]
            stopped[broken] = True
            ends[broken] = at[~whole]
            at, after, lane, limit = at[whole], after[whole], lane[whole], limit[whole]
        steps.append(at)
        step_lanes.append(lane)
        going = after < limit
        if going.all():
            at = after
        else:
            ends[lane[~going]] = after[~going]
            at, lane, limit = after[going], lane[going], limit[going]
    # The few that are left go on plainly.
    ends[lane] = at
    all_starts = np.concatenate(steps) if steps else np.zeros(0, np.int64)
    all_lanes = np.concatenate(step_lanes) if steps else np.zeros(0, np.int64)
    counts = np.bincount(all_lanes, minlength=lanes).astype(np.int64)
    # Lane numbers are below 2**16, for which numpy's stable sort is a radix sort.
    flat = all_starts[np.argsort(all_lanes.astype(np.uint16), kind="stable")]
    return _Chains(counts=counts, ends=ends, stopped=stopped, flat=flat, first=np.cumsum(counts) - counts)
