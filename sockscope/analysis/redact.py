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

from sockscope.model.events import Events, Section
from sockscope.model.packets import Packets

_Starts = npt.NDArray[np.int64]

_HEADERS: Final = (
    b"authorization:",  # Proxy-Authorization ends in it
    b"cookie:",  # Set-Cookie too
    b"x-api-key:",
    b"x-auth-token:",
)
_FORM: Final = (b"password", b"passwd", b"pwd", b"token", b"secret", b"api_key", b"apikey")
_AUTH: Final = b"\r\nauth\r\n$"
_INLINE_AUTH: Final = re.compile(rb"auth[ \t]+")
_BULK_HEADER: Final = re.compile(rb"\d{1,9}\r\n")
_JSON_VALUE: Final = re.compile(rb'"[ \t]*:[ \t]*"')
_BLANK: Final = re.compile(rb"[ \t]*")

_LINE_END: Final = re.compile(rb"[\r\n]")
_FORM_END: Final = re.compile(rb"[&;\s\"'<>#]")
_QUOTE_END: Final = re.compile(rb'(?:[^"\\\r\n]|\\.)*')
_STAR: Final = 0x2A


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


def redact_packets(packets: Packets) -> Packets:
    """Mask credentials in every captured transport payload, in place where possible."""
    captured = packets.records["captured_payload_bytes"].astype(np.int64)
    starts = packets.records["payload_offset"].astype(np.int64)
    held = (captured > 0) & (starts >= 0) & (starts + captured <= len(packets.raw))
    if not held.any():
        return packets
    starts, captured = starts[held], captured[held]
    order = np.argsort(starts, kind="stable")
    raw = packets.raw if packets.raw.flags.writeable else packets.raw.copy()
    _mask(raw, starts[order], (starts + captured)[order])
    return packets if raw is packets.raw else Packets(records=packets.records, raw=raw)


def _payload_sections(events: Events) -> tuple[_Starts, _Starts]:
    """Start and end of every payload section in the blob, in blob order: all events stepped through at once."""
    blob = events.blob
    at = events.records["blob_offset"].astype(np.int64)
    stop = np.minimum(at + events.records["blob_bytes"].astype(np.int64), len(blob))
    starts: list[_Starts] = []
    ends: list[_Starts] = []
    live = (at >= 0) & (at + 8 <= stop)
    at, stop = at[live], stop[live]
    while len(at):
        kind = blob[at]
        length = sum(blob[at + 4 + i].astype(np.int64) << (8 * i) for i in range(4))
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


def _mask(data: npt.NDArray[np.uint8], starts: _Starts, ends: _Starts) -> None:
    """Mask every credential inside the regions [start, end), which are sorted and do not overlap."""
    # Searching a lowered copy for fixed words is some ten times faster than one regex that ignores case.
    text = data.tobytes().lower()

    def region_end(at: int) -> int:
        index = int(np.searchsorted(starts, at, side="right")) - 1
        return int(ends[index]) if index >= 0 and at < ends[index] else -1

    for word in _HEADERS:
        for at in _found(text, word):
            end = region_end(at)
            if at + len(word) < end:
                _star(data, _skip(text, _BLANK, at + len(word), end), _until(text, _LINE_END, at + len(word), end))
    for word in _FORM:
        for at in _found(text, word):
            after = at + len(word)
            end = region_end(at)
            if after >= end:
                continue
            if text[after] == 0x3D:  # =
                _star(data, after + 1, _until(text, _FORM_END, after + 1, end))
            elif text[after] == 0x22 and (opening := _JSON_VALUE.match(text, after, end)):
                value = _QUOTE_END.match(text, opening.end(), end)
                _star(data, opening.end(), value.end() if value else end)
    for at in _found(text, _AUTH):
        end = region_end(at)
        if end >= 0:
            _mask_auth(data, text, at + len(_AUTH), end)
    _mask_inline_auth(data, text, starts, ends)


def _found(text: bytes, word: bytes) -> list[int]:
    places = []
    at = text.find(word)
    while at >= 0:
        places.append(at)
        at = text.find(word, at + len(word))
    return places


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


def _mask_inline_auth(data: npt.NDArray[np.uint8], text: bytes, starts: _Starts, ends: _Starts) -> None:
    """redis' inline form, `AUTH secret`: only at the beginning of a payload, where it cannot be prose."""
    for at in _found(text, b"auth "):
        index = int(np.searchsorted(starts, at))
        if index < len(starts) and starts[index] == at:
            end = int(ends[index])
            _star(data, _skip(text, _INLINE_AUTH, at, end), _until(text, _LINE_END, at, end))
