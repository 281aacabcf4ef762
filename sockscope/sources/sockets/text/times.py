"""Moments that stand between listings: lines of date(1) in its forms, of watch(1), of a script's own.

Source: date(1), watch(1), ISO 8601.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import MappingProxyType

_LONGEST_LINE = 300
_NS = 1_000_000_000
_LATEST_S = 4_102_444_800
"""The year 2100."""

_ISO = re.compile(
    r"(?<!\d)(\d{4})-(\d\d)-(\d\d)[T _](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?"
    r"\s{0,3}(?:(Z|UTC|GMT)\b|([+-]\d\d:?\d\d)(?!\d))?"
)
_EPOCH = re.compile(r"[^\w.]{0,20}(?:[A-Za-z_]{1,20}[:= ]{1,3})?@?(\d{10})(?:[.,](\d{1,9}))?[^\w.]{0,20}")
_CLOCK = re.compile(
    r"(?<![\d:])(\d{1,2}):(\d\d):(\d\d)(?:[.,]\d{1,9})?(?![\d:])\s{0,3}([AaPp]\.?[Mm]\b\.?)?\s{0,3}"
    r"([A-Z]{3,4}\b|[+-]\d\d:?\d\d(?!\d))?"
)
_YEAR = re.compile(r"(?<![\d:+-])((?:19|20)\d\d)(?![\d:])")
_ZONE = re.compile(r"\b(UTC|GMT|[A-Z]{3,4}T)\b")
_DAY = re.compile(r"(?<![\d:.])(\d{1,2})(?![\d:])")
_WORD = re.compile(r"[^\W\d_]{3,12}")

_MONTHS: Mapping[str, int] = MappingProxyType(
    {
        name: number
        for number, names in enumerate(
            (
                "jan janv ene gen",
                "feb fév févr fev",
                "mar mär märz mars",
                "apr avr abr",
                "may mai mag",
                "jun juin giu",
                "jul juil lug",
                "aug aoû août ago",
                "sep sept set",
                "oct okt ott out",
                "nov",
                "dec dez déc dic",
            ),
            1,
        )
        for name in names.split()
    }
)
_ZONES: Mapping[str, int] = MappingProxyType(
    {
        "UTC": 0, "GMT": 0, "WET": 0, "WEST": 60, "CET": 60, "CEST": 120, "EET": 120, "EEST": 180, "MSK": 180,
        "EST": -300, "EDT": -240, "CDT": -300, "MST": -420, "MDT": -360, "PST": -480, "PDT": -420, "JST": 540,
    }
)  # fmt: skip
"""Minutes east of Greenwich; only names with one meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A time of day with its date.

    Attributes:
        time_ns: CLOCK_REALTIME.
        zoned: the text says its time zone; else it was taken to be this machine's.
    """

    time_ns: int
    zoned: bool


def read_moment(line: str) -> Moment | None:
    """The moment a line tells; None where it tells none."""
    if len(line) > _LONGEST_LINE:
        return None
    epoch = _EPOCH.fullmatch(line.strip())
    if epoch is not None:
        if int(epoch[1]) > _LATEST_S:
            return None
        return Moment(time_ns=int(epoch[1]) * _NS + _fraction(epoch[2]), zoned=True)
    found = _ISO.search(line)
    if found is not None:
        zone = 0 if found[8] else _offset(found[9])
        parts = [int(part) for part in found.groups()[:6]]
        return _moment(parts, _fraction(found[7]), zone)
    return _of_date(line)


def _of_date(line: str) -> Moment | None:
    """`Thu Nov 20 10:00:01 UTC 2026`, `Do 20. Nov 10:00:01 CET 2026`, `… host: Thu Nov 20 10:00:01 2026`."""
    clock = _CLOCK.search(line)
    if clock is None:
        return None
    before, after = line[: clock.start()], line[clock.end() :]
    years = _YEAR.findall(before + " " + after)
    month, rest = _month(before + " " + after)
    days = _DAY.findall(rest)
    if not years or not month or not days:
        return None
    hour = int(clock[1])
    if clock[4]:
        hour = hour % 12 + 12 * clock[4].lower().startswith("p")
    named = clock[5] or (zone[1] if (zone := _ZONE.search(after)) else "")
    offset = _ZONES.get(named) if named.isalpha() else _offset(named)
    return _moment([int(years[-1]), month, int(days[0]), hour, int(clock[2]), int(clock[3])], 0, offset)


def _month(text: str) -> tuple[int, str]:
    """The last word that is a month (a host or a weekday may look like one before it), and what stands around it."""
    for match in reversed(list(_WORD.finditer(text))):
        word = match[0].lower()
        number = _MONTHS.get(word) or (_MONTHS.get(word[:3]) if len(word) > 4 else None)
        if number:
            begin = max(0, match.start() - 5)
            return number, text[begin : match.start()] + " " + text[match.end() : match.end() + 5]
    return 0, ""


def _offset(text: str | None) -> int | None:
    """`+01:00` as minutes."""
    if not text:
        return None
    digits = text[1:].replace(":", "")
    minutes = int(digits[:2]) * 60 + int(digits[2:])
    return -minutes if text[0] == "-" else minutes


def _moment(parts: list[int], fraction_ns: int, offset: int | None) -> Moment | None:
    year, month, day, hour, minute, second = parts
    try:
        if offset is None:
            made = datetime(year, month, day, hour, minute, min(second, 59)).astimezone()
        else:
            made = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=timezone(timedelta(minutes=offset)))
        seconds = int(made.timestamp())
    except (ValueError, OverflowError, OSError):
        return None
    return Moment(time_ns=seconds * _NS + fraction_ns, zoned=offset is not None) if 0 <= seconds <= _LATEST_S else None


def _fraction(digits: str | None) -> int:
    return int(digits.ljust(9, "0")) if digits else 0
