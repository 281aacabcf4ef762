"""Credentials in payloads masked with `*`, byte for byte, so that lengths and offsets stay right.

What is masked: the values of Authorization, Proxy-Authorization, Cookie, Set-Cookie, X-Api-Key and
X-Auth-Token headers; `password=`, `passwd=`, `pwd=`, `token=`, `secret=`, `api_key=`, `apikey=` (any name
that ends so) in queries and forms, and the same names in JSON; the arguments of redis AUTH. A value cut
off by the end of the copied prefix is masked as far as it goes.

What cannot be: a credential whose name went by in an earlier read than its value.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.model.event_rows import words_at
from sockscope.model.events import Events, Section

_Places = npt.NDArray[np.int64]

_HEADERS: Final = (
    b"authorization",  # Proxy-Authorization ends in it
    b"cookie",  # Set-Cookie too
    b"x-api-key",
    b"x-auth-token",
)
_FORM: Final = (b"password", b"passwd", b"pwd", b"token", b"secret", b"api_key", b"apikey")
_AUTH: Final = b"\r\nauth\r\n"
_INLINE: Final = b"auth "
_INLINE_AUTH: Final = re.compile(rb"auth[ \t]+")
_BULK_HEADER: Final = re.compile(rb"\d{1,9}\r\n")
_JSON_VALUE: Final = re.compile(rb'"[ \t]*:[ \t]*"')

_LINE_END: Final = re.compile(rb"[\r\n]")
_QUOTE_END: Final = re.compile(rb'(?:[^"\\\r\n]|\\.)*')
_STAR: Final = 0x2A
_BLANKS: Final = 8
"""Blanks after a header's colon that are kept as they are."""


def _among(wanted: bytes) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(256), np.frombuffer(wanted, np.uint8))


_IS_LINE_END: Final = _among(b"\r\n")
_IS_FORM_END: Final = _among(b"&; \t\r\n\v\f\"'<>#")


def redact(payload: bytes) -> bytes:
    """The payload with its credentials masked; the same length."""
    masked = np.frombuffer(payload, np.uint8).copy()
    _mask(masked, np.zeros(1, np.int64), np.full(1, len(masked), np.int64))
    return masked.tobytes()


def redact_events(events: Events) -> Events:
    """Mask credentials in every payload section, in place where the blob can be written to.

    The blob is searched as a whole, so the time is that of a memory scan, not of a walk over events.
    """
    starts, ends = _payload_sections(events)
    if not len(starts):
        return events
    blob = events.blob if events.blob.flags.writeable else events.blob.copy()
    _mask(blob, starts, ends)
    return events if blob is events.blob else Events(records=events.records, blob=blob)


def redact_regions(data: npt.NDArray[np.uint8], starts: _Places, ends: _Places) -> None:
    """Mask credentials in place inside the regions [start, end) of flat bytes; sorted, not overlapping."""
    _mask(data, starts, ends)


def _payload_sections(events: Events) -> tuple[_Places, _Places]:
    """Start and end of every payload section in the blob, in blob order: all events stepped through at once."""
    blob = events.blob
    at = events.records["blob_offset"].astype(np.int64)
    stop = np.minimum(at + events.records["blob_bytes"].astype(np.int64), len(blob))
    starts: list[_Places] = []
    ends: list[_Places] = []
    live = (at >= 0) & (at + 8 <= stop)
    at, stop = at[live], stop[live]
    while len(at):
        kind = blob[at]
        length = words_at(blob, at + 4)
        begin = at + 8
        end = np.minimum(begin + length, stop)
        payload = (kind == Section.PAYLOAD) & (end > begin)
        starts.append(begin[payload])
        ends.append(end[payload])
        at = begin + length
        live = at + 8 <= stop
        at, stop = at[live], stop[live]
    if not starts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    all_starts = np.concatenate(starts)
    order = np.argsort(all_starts, kind="stable")
    return all_starts[order], np.concatenate(ends)[order]


def _mask(data: npt.NDArray[np.uint8], starts: _Places, ends: _Places) -> None:
    """Mask every credential inside the regions [start, end), which are sorted and do not overlap."""
    text = data.tobytes().lower()
    low = np.frombuffer(text, np.uint8)

    # Names are looked for before the marks that end them: those are few, and found in one pass.
    headers = _after(low, _marks(data, b":"), _HEADERS) + 1
    if len(headers):
        stop = _region_ends(starts, ends, headers)
        _star_all(data, headers, _next_of(data, _IS_LINE_END, headers, stop))
    values = _after(low, _marks(data, b"="), _FORM) + 1
    if len(values):
        stop = _region_ends(starts, ends, values)
        _star_all(data, values, _next_of(data, _IS_FORM_END, values, stop))
    for at in _after(low, _marks(data, b'"'), _FORM).tolist():
        end = _region_end(starts, ends, at)
        if opening := _JSON_VALUE.match(text, at, max(at, end)):
            value = _QUOTE_END.match(text, opening.end(), end)
            _star(data, opening.end(), value.end() if value else end)
    for at in _after(low, _marks(data, b"$"), (_AUTH,)).tolist():
        _mask_auth(data, text, at + 1, _region_end(starts, ends, at))
    _mask_inline_auth(data, text, low, starts, ends)


def _marks(data: npt.NDArray[np.uint8], mark: bytes) -> _Places:
    return np.flatnonzero(data == mark[0])


def _after(low: npt.NDArray[np.uint8], marks: _Places, words: tuple[bytes, ...]) -> _Places:
    """Those of the marks that come right after one of the words, in order."""
    marks = marks[marks >= 2]
    endings = np.zeros(1 << 16, np.bool_)
    endings[[word[-2] << 8 | word[-1] for word in words]] = True
    marks = marks[endings[low[marks - 2].astype(np.uint16) << 8 | low[marks - 1]]]
    if not len(marks):
        return marks
    found = []
    for word in words:
        at = marks[marks >= len(word)]
        for back, byte in enumerate(reversed(word), 1):
            at = at[low[at - back] == byte]
        found.append(at)
    return np.unique(np.concatenate(found))


def _region_ends(starts: _Places, ends: _Places, places: _Places) -> _Places:
    """The end of the region that each place is in; the place itself where it is in none."""
    index = np.searchsorted(starts, places - 1, side="right") - 1
    return np.where(index >= 0, np.maximum(ends[index], places), places)


def _region_end(starts: _Places, ends: _Places, place: int) -> int:
    return int(_region_ends(starts, ends, np.array([place], np.int64))[0])


def _next_of(data: npt.NDArray[np.uint8], wanted: npt.NDArray[np.bool_], places: _Places, limits: _Places) -> _Places:
    """For each place the next byte that is wanted, or its limit."""
    terminators = np.append(np.flatnonzero(wanted[data]), len(data))
    found: _Places = np.minimum(terminators[np.searchsorted(terminators, places)], limits)
    return found


def _star_all(data: npt.NDArray[np.uint8], begins: _Places, stops: _Places) -> None:
    """Mask [begin, stop) of each, but for blanks at its beginning."""
    for _ in range(_BLANKS):
        blank = (begins < stops) & np.isin(data[np.minimum(begins, len(data) - 1)], (0x20, 0x09))
        if not blank.any():
            break
        begins = begins + blank
    lengths = np.maximum(stops - begins, 0)
    # Every byte of every range as one index: ranges may be many, but they are short.
    offsets = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    data[np.repeat(begins, lengths) + offsets] = _STAR


def _until(text: bytes, terminator: re.Pattern[bytes], at: int, end: int) -> int:
    found = terminator.search(text, at, end)
    return found.start() if found else end


def _skip(text: bytes, pattern: re.Pattern[bytes], at: int, end: int) -> int:
    found = pattern.match(text, at, end)
    return found.end() if found else at


def _star(data: npt.NDArray[np.uint8], start: int, end: int) -> None:
    if end > start:
        data[start:end] = _STAR


def _mask_auth(data: npt.NDArray[np.uint8], text: bytes, at: int, end: int) -> None:
    """The bulk strings that follow AUTH, at most two (user and password). Source: redis protocol specification."""
    for _ in range(2):
        size = _BULK_HEADER.match(text, at, end)
        if size is None:
            return
        stop = _until(text, _LINE_END, size.end(), end)
        _star(data, size.end(), stop)
        at = stop + 3
        if text[stop : stop + 3] != b"\r\n$":
            return


def _mask_inline_auth(
    data: npt.NDArray[np.uint8], text: bytes, low: npt.NDArray[np.uint8], starts: _Places, ends: _Places
) -> None:
    """redis' inline form, `AUTH secret`: only at the beginning of a payload, where it cannot be prose."""
    index = np.flatnonzero(ends - starts >= len(_INLINE))
    for ahead, byte in enumerate(_INLINE):
        index = index[low[starts[index] + ahead] == byte]
    for at, end in zip(starts[index].tolist(), ends[index].tolist(), strict=True):
        _star(data, _skip(text, _INLINE_AUTH, at, end), _until(text, _LINE_END, at, end))
