"""The records of a whole capture file, window by window, past what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sockscope.sources.packets.offsets import HOPS, Bytes, Format, Offsets, walk

WINDOW_BYTES = 1 << 27
"""Walked and decoded before the next is read; each costs some 30 ms of guesses."""
_AFTER_LOSS_BYTES = 1 << 20
MOST_LOSSES = 1000
"""A file damaged in more places is no capture any more."""
_SEARCH_BYTES = 1 << 18
_LOOK_BACK_RECORDS = 64
_SURE_HOPS = 2


class Resumable(Format, Protocol):
    """A format in which records can be found again after damage."""

    def refer_to(self, data: Bytes, at: int) -> None:
        """Guesses from here on look like the record at `at`."""
        ...

    def sane(self, data: Bytes, at: Offsets) -> npt.NDArray[np.bool_]:
        """Whether what these records say of themselves can be, wherever and whenever they are."""
        ...

    def final(self, data: Bytes, at: Offsets) -> npt.NDArray[np.bool_]:
        """Whether these (plausible) records end a walk in good order."""
        ...

    def void(self, data: Bytes, at: Offsets) -> npt.NDArray[np.bool_]:
        """Whether these records are nothing but zeros, as in a file that was not written to its end."""
        ...


class Losses:
    """What of a file could not be read; `has_hole`: something after it could."""

    def __init__(self) -> None:
        self.places = 0
        self.lost_bytes = 0
        self.has_hole = False
        self._first = ""

    def add(self, at: int, upto: int, why: str = "") -> None:
        """Bytes from `at` up to `upto` are lost."""
        self.places += 1
        self.lost_bytes += upto - at
        # Why reading ends is said where it ends.
        self.has_hole |= not why
        if not self._first:
            self._first = why or f"damaged at byte {at}: {upto - at} bytes are lost, reading goes on at byte {upto}"

    def words(self) -> str | None:
        """One line; None: nothing is lost."""
        if self.places < 2:
            return self._first or None
        more = "one more place" if self.places == 2 else f"{self.places - 1} more places"
        return f"{self._first}; {more} ({self.lost_bytes} bytes in all)"


class Walker:
    """Walks a file, and goes on after damage.

    Attributes:
        stop: where it ended: the end, a cut record, a `final` record, or damage that nothing follows.
    """

    def __init__(self, data: Bytes, form: Resumable, losses: Losses) -> None:
        self._data = data
        self._form = form
        self._losses = losses
        self.stop = 0

    def windows(self, at: int) -> Iterator[Offsets]:
        """Record starts from `at` on, a window at a time."""
        data, form, size, first = self._data, self._form, WINDOW_BYTES, at
        while at < len(data):
            if at + form.header_bytes <= len(data) and (at == first or form.sane(data, np.array([at]))[0]):
                form.refer_to(data, at)
            until = min(at + size, len(data))
            found = walk(data[:until], at, form)
            starts, stop = found.starts, found.stop
            following = form.next_serial(data.data, stop) if stop + form.header_bytes <= len(data) else len(data) + 1
            void = bool(len(starts)) and bool(form.void(data, starts[-1:])[0])
            if stop < len(data) and 0 <= following <= len(data) and not void:
                # The window cut it, nothing else.
                size = max(min(size * 2, WINDOW_BYTES), following - stop)
                if len(starts):
                    yield starts
                at = stop
                continue
            here = np.array([stop])
            if following < 0 and form.final(data, here)[0]:
                if len(starts):
                    yield starts
                break
            kept, lost_from, at = self._go_on(starts, stop)
            if kept:
                yield starts[:kept]
            if at < 0:
                self.stop = lost_from
                return
            if lost_from < at:
                self._losses.add(lost_from, at)
            size = _AFTER_LOSS_BYTES
            stop = at
        else:
            stop = at
        self.stop = stop

    def _go_on(self, starts: Offsets, stop: int) -> tuple[int, int, int]:
        """How many of the records are trusted, where what is lost begins, where it goes on (-1: nowhere)."""
        data, form = self._data, self._form
        count = len(starts)
        if count and form.void(data, starts[-1:])[0]:
            filled = np.flatnonzero(~form.void(data, starts))
            count = int(filled[-1]) + 1 if len(filled) else 0
            starts, stop = starts[:count], int(starts[count])
        elif stop == len(data):
            return count, stop, stop
        if self._losses.places >= MOST_LOSSES:
            return count, stop, -1
        sane = np.flatnonzero(form.sane(data, starts[-_LOOK_BACK_RECORDS:]))
        search = stop + 1
        trusted = count
        if len(sane):
            # The record whose end was wrong is the last that looks right, or the one after it.
            trusted = count - min(count, _LOOK_BACK_RECORDS) + int(sane[-1]) + 1
            search = int(starts[trusted - 1]) + form.header_bytes
            form.refer_to(data, int(starts[trusted - 1]))
        elif 0 < count <= HOPS:
            search = int(starts[0]) + form.header_bytes
        onward = resume(data, search, form)
        if onward < 0:
            return count, stop, -1
        if not len(sane) and count:
            # Of so few nothing is known but that what follows is wrong.
            return (0, int(starts[0]), onward) if count <= HOPS else (count, stop, onward)
        end = int(starts[trusted]) if trusted < count else stop
        if end > onward:
            return trusted - 1, int(starts[trusted - 1]), onward
        return trusted, end, onward


def resume(data: Bytes, at: int, form: Resumable) -> int:
    """Where the next run of records begins at or after `at`; -1: nowhere."""
    last = len(data) - form.header_bytes
    size = _SEARCH_BYTES >> 4
    while at <= last:
        high = min(at + size, last + 1)
        likely = np.flatnonzero(form.likely(form.words(data)[at:high])) + at
        if len(likely):
            found = _first_run(data, likely, form)
            if found >= 0:
                return found
        at, size = high, _SEARCH_BYTES
    return -1


def _first_run(data: Bytes, at: Offsets, form: Resumable) -> int:
    """The first from which `HOPS` records follow that look right, or fewer up to the file's end."""
    at = at[form.plausible(data, at)]
    onward = at
    sure: list[int] = []
    last = len(data) - form.header_bytes
    for hop in range(HOPS):
        if not len(at):
            break
        ends = form.final(data, onward)
        sure += at[ends].tolist()
        at, onward = at[~ends], onward[~ends]
        onward = form.next_many(data, onward)
        # Records up to the very end; or two, and a third that is cut.
        ends = (onward == len(data)) | ((onward > last) & (hop + 1 >= _SURE_HOPS))
        sure += at[ends].tolist()
        inside = (onward >= 0) & (onward <= last)
        at, onward = at[inside], onward[inside]
        right = form.plausible(data, onward)
        at, onward = at[right], onward[right]
    sure += at[:1].tolist()
    return min(sure, default=-1)
