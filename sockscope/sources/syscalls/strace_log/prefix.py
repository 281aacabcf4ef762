"""What strace puts around each call: whose it is, when it was, and how long it took. In bulk, and line by line.

Nearly all lines of a log have the same layout, so that digits stand in columns: those are read for all lines of a
chunk at once. Lines that do not fit (another layout, text of the program in between) go through `PREFIX`; both
ways read the same out of a line.

Source: strace(1); strace 4.0 to 6.13, `printleader` in strace.c.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sockscope.sources.syscalls.strace_log.log import LogClock

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

NO_TID = 0
"""The line names nobody."""
NO_TIME = -1

PREFIX = re.compile(
    rb"""
    (?: \[pid\s+(?P<bracket>\d{1,7})(?:<(?P<bracket_comm>[^\n]{0,16}?)>)?\]\s |
        (?P<plain>\d{1,7})(?:<(?P<plain_comm>[^\n]{0,16}?)>)?\s+ (?=\S) )?
    (?: (?P<seconds>[1-8]\d{9}|\d{9})(?:\.(?P<seconds_part>\d{3}|\d{6}|\d{9}))?\s |
        (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<second_part>\d{3}|\d{6}|\d{9}))?\s )?
    (?: \(\+\s*\d+(?:\.\d+)?\)\s | \s*(?P<step>\d{1,7})\.(?P<step_part>\d{3}|\d{6}|\d{9})\s )?
    (?P<number> \[\s*(?:\d+|\?+)\]\s )?
    (?P<pointer> \[[0-9a-f?]{8}(?:[0-9a-f?]{8})?\]\s )?
    """,
    re.VERBOSE,
)
DURATION = re.compile(rb" <(\d{1,8})(?:\.(\d{3}|\d{6}|\d{9}))?>$")

_LOOKS_LIKE_STRACE = re.compile(rb"[a-z_][a-z0-9_]{0,40}\(|<\.\.\. \w|\+\+\+ |--- ")


class PidForm(IntEnum):
    NONE = 0
    PLAIN = 1
    """`123 `, in files written by -o."""
    BRACKET = 2
    """`[pid 123] `, on stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What stands before and behind a call.

    Attributes:
        clock, clock_digits: the time of the line; 0, 3, 6 or 9 digits behind the point.
        step_digits: of `(+     0.000012) ` behind a time; -1: not there. For `LogClock.RELATIVE` of the time itself.
        bracketed_bytes: of `[  45] ` and `[00007f…] ` together, in front of the call.
        duration_digits: of -T; -1: not there.
    """

    pid: PidForm = PidForm.NONE
    clock: LogClock = LogClock.NONE
    clock_digits: int = 0
    step_digits: int = -1
    bracketed_bytes: int = 0
    duration_digits: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The lines of one chunk, cut up.

    Attributes:
        at, end: where the text (without prefix, duration and line end) begins and ends. Shape (n,), like all.
        tid: NO_TID where the line names none.
        time_ns: as the line has it; NO_TIME: it has none. For `LogClock.RELATIVE` the step since the line before.
        duration_ns: of -T; -1: none.
        clock: what the times of this chunk are.
        clock_digits: how many digits behind the point; of lines that have a time.
        comms: tid → name, from -Y.
    """

    at: Ids
    end: Ids
    tid: Ids
    time_ns: Ids
    duration_ns: Ids
    clock: LogClock
    clock_digits: int
    comms: dict[int, bytes]


def guess_layout(lines: list[bytes]) -> Layout:
    """The layout that most of these lines have."""
    found: Counter[Layout] = Counter()
    durations: Counter[int] = Counter()
    for line in lines:
        match = PREFIX.match(line)
        if match is None or not _LOOKS_LIKE_STRACE.match(line, match.end()):
            continue
        found[_layout_of(match)] += 1
        duration = DURATION.search(line)
        if duration is not None:
            durations[len(duration[2] or b"")] += 1
    layout = found.most_common(1)[0][0] if found else Layout()
    return replace(layout, duration_digits=durations.most_common(1)[0][0]) if durations else layout


def _layout_of(match: re.Match[bytes]) -> Layout:
    text = match.group()
    pid = PidForm.BRACKET if match["bracket"] else PidForm.PLAIN if match["plain"] else PidForm.NONE
    clock, digits, step = clock_of(match)
    if b"(+" in text:
        step = len(text[text.index(b"(+") :].partition(b")")[0].partition(b".")[2])
    width = len(match["number"] or b"") + len(match["pointer"] or b"")
    return Layout(
        pid=pid,
        clock=clock,
        clock_digits=digits,
        step_digits=step,
        bracketed_bytes=width,
    )


def clock_of(match: re.Match[bytes]) -> tuple[LogClock, int, int]:
    """Clock, its digits behind the point, and the digits of a step (-1: none)."""
    if match["seconds"]:
        return LogClock.DATED, len(match["seconds_part"] or b""), -1
    if match["hour"]:
        return LogClock.TIME_OF_DAY, len(match["second_part"] or b""), -1
    if match["step"]:
        return LogClock.RELATIVE, len(match["step_part"]), len(match["step_part"])
    return LogClock.NONE, 0, -1


def time_of(match: re.Match[bytes]) -> int:
    """The time of a line, ns; NO_TIME where it has none."""
    if match["seconds"]:
        return _ns(match["seconds"], match["seconds_part"])
    if match["hour"]:
        whole = (int(match["hour"]) * 60 + int(match["minute"])) * 60 + int(match["second"])
        return whole * 1_000_000_000 + _ns(b"0", match["second_part"])
    if match["step"]:
        return _ns(match["step"], match["step_part"])
    return NO_TIME


def _ns(whole: bytes, part: bytes | None) -> int:
    return int(whole) * 1_000_000_000 + (int(part.ljust(9, b"0")) if part else 0)


def split_lines(data: bytes, chunk: Bytes, starts: Ids, ends: Ids, layout: Layout) -> Lines:
    """Cut up the lines of a chunk.

    Args:
        data, chunk: the same bytes twice; `chunk` goes on for 64 bytes of zeros.
        starts, ends: where each line begins and ends (without its line end), shape (n,).
    """
    cursor = _Cursor(chunk, starts, ends)
    tid = cursor.pid(layout.pid)
    time_ns = cursor.time(layout)
    cursor.skip(layout.bracketed_bytes)
    text_end, duration_ns = _durations(data, chunk, np.minimum(cursor.at, ends), ends, layout.duration_digits)
    first = chunk[np.minimum(cursor.at, len(chunk) - 1)]
    # A text begins with a letter or a sign; digits, brackets and blanks may be more of a prefix.
    plain = ((first >= 0x61) & (first <= 0x7A)) | (first == 0x2B) | (first == 0x2D) | (first == 0x3C) | (first == 0x5F)
    good = cursor.good & plain & (cursor.at < ends)
    at = cursor.at
    comms: dict[int, bytes] = {}
    clock, digits = layout.clock, layout.clock_digits
    for row in np.flatnonzero(~good).tolist():
        line = data[starts[row] : ends[row]]
        match = PREFIX.match(line)
        assert match is not None  # all of it is optional
        named = match["bracket"] or match["plain"]
        tid[row] = int(named) if named else NO_TID
        comm = match["bracket_comm"] or match["plain_comm"]
        if comm is not None and named and tid[row] not in comms:
            comms[int(named)] = comm
        time_ns[row] = time_of(match)
        at[row] = starts[row] + match.end()
        found = DURATION.search(line, match.end())
        text_end[row] = starts[row] + found.start() if found else ends[row]
        duration_ns[row] = _ns(found[1], found[2]) if found else -1
        if match["seconds"] or match["hour"] or match["step"]:
            if layout.clock is LogClock.NONE:
                clock, digits, _ = clock_of(match)
            elif clock_of(match)[0] is not layout.clock:
                time_ns[row] = NO_TIME
    return Lines(
        at=at,
        end=text_end,
        tid=tid,
        time_ns=time_ns,
        duration_ns=duration_ns,
        clock=clock,
        clock_digits=digits,
        comms=comms,
    )


class _Cursor:
    """A place in each line that moves on, field by field; `good` stays true where every field was as expected."""

    def __init__(self, chunk: Bytes, starts: Ids, ends: Ids) -> None:
        self._chunk = chunk
        self.at = starts.copy()
        self.ends = ends
        self.good: Flags = np.ones(len(starts), np.bool_)

    def pid(self, form: PidForm) -> Ids:
        if form is PidForm.NONE:
            return np.full(len(self.at), NO_TID, np.int64)
        if form is PidForm.BRACKET:
            for place, wanted in enumerate(b"[pid "):
                self.good &= self._chunk[np.minimum(self.at + place, len(self._chunk) - 1)] == wanted
            self.at += 5
            self._spaces(5)
        value = np.zeros(len(self.at), np.int64)
        count = np.zeros(len(self.at), np.int64)
        live = np.ones(len(self.at), np.bool_)
        for _ in range(7):
            digit = self._now() - np.uint8(48)
            live &= digit < 10
            value = np.where(live, value * 10 + digit, value)
            self.at += live
            count += live
        self.good &= count > 0
        if form is PidForm.BRACKET:
            self._sign(0x5D)
            self._sign(0x20)
        else:
            self._sign(0x20)
            self._spaces(5)
        return value

    def time(self, layout: Layout) -> Ids:
        digits = layout.clock_digits
        if layout.clock is LogClock.DATED:
            # The tenth digit came in 2001; a first one of 9 would be beyond what 64 bits hold in ns.
            self.good &= (self._now() >= 0x31) & (self._now() <= 0x38)
            time_ns = self._number(10, digits)
        elif layout.clock is LogClock.TIME_OF_DAY:
            time_ns = self._clock_time(digits)
        elif layout.clock is LogClock.RELATIVE:
            return self._step(digits)
        else:
            return np.full(len(self.at), NO_TIME, np.int64)
        self._sign(0x20)
        if layout.step_digits >= 0:
            width = 6 + (layout.step_digits + 1 if layout.step_digits else 0)
            self._sign(0x28)
            self._sign(0x2B)
            self.at += width
            self._sign(0x29)
            self._sign(0x20)
        return time_ns

    def skip(self, width: int) -> None:
        """Pass over `[…] ` and `[…] […] ` of this width."""
        if not width:
            return
        self._sign(0x5B)
        self.at += width - 3
        self._sign(0x5D)
        self._sign(0x20)

    def _now(self) -> Bytes:
        # Beyond the last line lie zeros; further still nobody looks who is still good.
        now: Bytes = self._chunk[np.minimum(self.at, len(self._chunk) - 1)]
        return now

    def _sign(self, wanted: int) -> None:
        self.good &= self._now() == wanted
        self.at += 1

    def _spaces(self, most: int) -> None:
        live = np.ones(len(self.at), np.bool_)
        for _ in range(most):
            live &= self._now() == 0x20
            if not live.any():
                return
            self.at += live

    def _columns(self, width: int) -> Bytes:
        places = np.minimum(self.at[:, None] + np.arange(width), len(self._chunk) - 1)
        self.at += width
        columns: Bytes = self._chunk[places]
        return columns

    def _value(self, columns: Bytes, *, blanks: bool = False) -> Ids:
        digits = columns - np.uint8(48)
        if blanks:
            digits = np.where(columns == 0x20, np.uint8(0), digits)
        self.good &= (digits < 10).all(axis=1)
        powers = 10.0 ** np.arange(columns.shape[1] - 1, -1, -1)
        # At most ten digits: exact in a double, and so a matter of BLAS.
        return np.asarray(digits.astype(np.float64) @ powers, np.float64).astype(np.int64)

    def _part(self, digits: int) -> Ids | int:
        if not digits:
            return 0
        self._sign(0x2E)
        part: Ids = self._value(self._columns(digits)) * 10 ** (9 - digits)
        return part

    def _number(self, width: int, digits: int) -> Ids:
        whole = self._value(self._columns(width))
        number: Ids = whole * 1_000_000_000 + self._part(digits)
        return number

    def _clock_time(self, digits: int) -> Ids:
        seconds = np.zeros(len(self.at), np.int64)
        for place in range(3):
            if place:
                self._sign(0x3A)
            seconds = seconds * 60 + self._value(self._columns(2))
        return seconds * 1_000_000_000 + self._part(digits)

    def _step(self, digits: int) -> Ids:
        columns = self._columns(6)
        # Blanks stand before the digits, never among them.
        blank = columns == 0x20
        self.good &= (blank[:, :-1] >= blank[:, 1:]).all(axis=1) & ~blank[:, -1]
        step = self._value(columns, blanks=True) * 1_000_000_000 + self._part(digits)
        self._sign(0x20)
        return step


def _durations(data: bytes, chunk: Bytes, at: Ids, ends: Ids, digits: int) -> tuple[Ids, Ids]:
    """Where the text ends before ` <0.000012>`, and the time in it, ns (-1: there is none)."""
    duration = np.full(len(ends), -1, np.int64)
    text_end = ends.copy()
    last = np.maximum(ends - 1, 0)
    ending = (ends - at > 4) & (chunk[last] == 0x3E) & (chunk[np.maximum(ends - 2, 0)] - np.uint8(48) < 10)
    rows = np.flatnonzero(ending)
    if not len(rows):
        return text_end, duration
    usual = np.zeros(len(rows), np.bool_)
    if digits > 0:
        # From the right: `>`, the digits behind the point, the point, one digit of seconds, `<`, a blank.
        place = ends[rows] - digits - 5
        usual = place >= at[rows]
        columns = chunk[np.maximum(place, 0)[:, None] + np.arange(digits + 4)]
        values = np.delete(columns[:, 2:], 1, axis=1) - np.uint8(48)
        usual &= (columns[:, 0] == 0x20) & (columns[:, 1] == 0x3C) & (columns[:, 3] == 0x2E)
        usual &= (values < 10).all(axis=1)
        powers = 10.0 ** np.arange(digits, -1, -1)
        told = np.asarray(values.astype(np.float64) @ powers, np.float64)[usual].astype(np.int64)
        duration[rows[usual]] = told * 10 ** (9 - digits)
        text_end[rows[usual]] = place[usual]
    for row in rows[~usual].tolist():
        found = DURATION.search(data[at[row] : ends[row]][-24:])
        if found is not None:
            duration[row] = _ns(found[1], found[2])
            text_end[row] = ends[row] - len(found.group())
    return text_end, duration
