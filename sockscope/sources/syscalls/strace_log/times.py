"""The times of a log's lines, made to run on: days, steps, lines without a time, and lines of the same moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.sources.syscalls.strace_log.log import LogClock
from sockscope.sources.syscalls.strace_log.prefix import NO_TIME, Lines

Ids = npt.NDArray[np.int64]

DAY_NS = 86_400_000_000_000
ORDER_STEP_NS = 1_000


@dataclass(slots=True)
class Clock:
    """Where the clock of one file stands; chunks are given to `run` one after the other.

    Attributes:
        kind: of the first times seen.
        digits: behind the point, the coarsest that were seen; -1: no times yet.
    """

    kind: LogClock = LogClock.NONE
    digits: int = -1
    _last_ns: int = 0
    _days_ns: int = 0
    _told_ns: int = -1
    _ties: int = 0

    def run(self, lines: Lines, lines_before: int) -> Ids:
        """The time of each line, ns, never the same twice in a row: shape (n,).

        Lines of the same moment get a nanosecond each on top, so that the order of the log is kept by the times.

        Args:
            lines_before: lines of all files before this chunk; what `LogClock.NONE` counts by.
        """
        count = len(lines.time_ns)
        if self.kind is LogClock.NONE and lines.clock is not LogClock.NONE:
            self.kind = lines.clock
        if lines.clock is self.kind and lines.clock is not LogClock.NONE:
            self.digits = lines.clock_digits if self.digits < 0 else min(self.digits, lines.clock_digits)
        if self.kind is LogClock.NONE:
            return (np.arange(count, dtype=np.int64) + lines_before) * ORDER_STEP_NS
        if not count:
            return np.zeros(0, np.int64)
        raw = lines.time_ns if lines.clock is self.kind else np.full(count, NO_TIME, np.int64)
        return self._apart(self._going_on(raw))

    def _going_on(self, raw: Ids) -> Ids:
        if self.kind is LogClock.RELATIVE:
            times: Ids = np.cumsum(np.maximum(raw, 0)) + self._last_ns
            self._last_ns = int(times[-1])
            return times
        # Lines without a time have that of the line before.
        place = np.where(raw >= 0, np.arange(len(raw)), -1)
        place = np.maximum.accumulate(place)
        filled = np.where(place >= 0, raw[place], self._last_ns)
        if self.kind is LogClock.TIME_OF_DAY:
            steps = np.diff(filled, prepend=self._last_ns)
            days = np.cumsum(np.where(steps < -DAY_NS // 2, DAY_NS, 0)) + self._days_ns
            self._days_ns = int(days[-1])
            self._last_ns = int(filled[-1])
            return np.asarray(filled + days, np.int64)
        self._last_ns = int(filled[-1])
        return filled

    def _apart(self, times: Ids) -> Ids:
        fresh = np.diff(times, prepend=self._told_ns) != 0
        place = np.maximum.accumulate(np.where(fresh, np.arange(len(times)), -1))
        ties = np.arange(len(times)) - place
        ties[place < 0] += self._ties
        self._told_ns = int(times[-1])
        self._ties = int(ties[-1])
        return np.asarray(times + ties, np.int64)
