"""Perfetto's TrackEvent packets as bytes: one by one for what is rare, in columns for what comes by the million.

In columns every number of a column takes the same room: protobuf lets a varint be padded, as Perfetto's own writer
does with lengths. So a chunk of packets is one matrix of bytes, from which the fields that a row lacks are left out.

Source: protos/perfetto/trace/trace_packet.proto, track_event/track_event.proto, track_event/debug_annotation.proto of
Perfetto v55; protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Block = npt.NDArray[np.uint8]

BEGIN, END, INSTANT, COUNTER = 1, 2, 3, 4
"""TrackEvent.Type."""

UNFINISHED = -1
"""An end that did not come."""

_LENGTH_BYTES = 2
_MOST_VARINT_BYTES = 10
_SEQUENCE = b"\x50\x01"  # trusted_packet_sequence_id: 1
_NEEDS_STATE = b"\x68\x02"  # sequence_flags: SEQ_NEEDS_INCREMENTAL_STATE
_FLOW_IDS = b"\xf9\x02"  # field 47, fixed64


_SMALL = tuple(bytes([value]) for value in range(0x80))


def varint(value: int) -> bytes:
    """A number as a varint; a negative one as its 64 bits."""
    if 0 <= value <= 0x7F:
        return _SMALL[value]
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A varint field."""
    return varint(field << 3) + varint(value)


def nested(field: int, data: bytes | str) -> bytes:
    """A message, string or bytes field. The string is free of lone surrogates."""
    raw = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def packet(body: bytes, *, time_ns: int | None = None) -> bytes:
    """One TracePacket of the only sequence; `body`: its other fields."""
    when = b"" if time_ns is None else number(8, max(time_ns, 0))
    return nested(1, when + _SEQUENCE + _NEEDS_STATE + body)


def note(name: str, value: str | int) -> bytes:
    """A debug_annotations field of a TrackEvent, its name not interned; names are few."""
    said = nested(6, value) if isinstance(value, str) else number(4, value)
    return nested(4, _note_name(name) + said)


@cache
def _note_name(name: str) -> bytes:
    return nested(10, name)


def track_event(kind: int, track: int, time_ns: int, *, name: str = "", flow: int = 0, notes: bytes = b"") -> bytes:
    """One packet with a TrackEvent."""
    body = number(9, kind) + number(11, track)
    if name:
        body += nested(23, name)
    if flow:
        body += _FLOW_IDS + flow.to_bytes(8, "little")
    return packet(nested(11, body + notes), time_ns=time_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A debug annotation, as a column.

    Attributes:
        name: its interned name, shape (n,), or one for all.
        value: shape (n,).
        interned: the values are ids of interned strings.
        present: shape (n,), rows that have it.
    """

    name: Int64s | int
    value: Int64s
    present: Mask
    interned: bool = False

    def part(self, begin: int, end: int) -> Note:
        """Some of its rows."""
        name = self.name if isinstance(self.name, int) else self.name[begin:end]
        return replace(self, name=name, value=self.value[begin:end], present=self.present[begin:end])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Slices and instants.

    Attributes:
        track, begin_ns, name: shape (n,); names are interned.
        end_ns: shape (n,); UNFINISHED: it has no end. Instants: whatever.
        instant: shape (n,).
        category: shape (n,), interned.
        flow: shape (n,), 0: none.
        texts: bytes put behind each row's annotations, or nothing at all.
    """

    track: Int64s
    begin_ns: Int64s
    end_ns: Int64s
    instant: Mask
    name: Int64s
    category: Int64s
    flow: Int64s
    notes: Sequence[Note] = ()
    texts: Sequence[bytes] = ()

    def part(self, begin: int, end: int) -> Rows:
        """Some of them; without their texts."""
        names = ("track", "begin_ns", "end_ns", "instant", "name", "category", "flow")
        columns = {name: getattr(self, name)[begin:end] for name in names}
        return replace(self, **columns, notes=[each.part(begin, end) for each in self.notes], texts=())


def encode(rows: Rows) -> bytes:
    """All rows, each slice's end behind its beginning."""
    count = len(rows.track)
    if not count:
        return b""
    every = np.ones(count, np.bool_)
    event = _Fields(count)
    event.constant(b"\x48")
    event.block(np.where(rows.instant, INSTANT, BEGIN).astype(np.uint8)[:, None], every)
    event.varint(b"\x58", rows.track, every)
    event.varint(b"\x50", rows.name, every)
    event.varint(b"\x18", rows.category, every)
    event.block(_fixed(_FLOW_IDS, rows.flow), rows.flow > 0)
    for each in rows.notes:
        inner = _Fields(count)
        inner.varint(b"\x08", np.broadcast_to(np.int64(each.name), count), each.present)
        inner.varint(b"\x88\x01" if each.interned else b"\x20", each.value, each.present)
        event.message(b"\x22", inner, each.present)
    extra = np.array([len(text) for text in rows.texts], np.int64) if rows.texts else np.zeros(count, np.int64)
    begin = _Fields(count)
    begin.varint(b"\x40", np.maximum(rows.begin_ns, 0), every)
    begin.constant(_SEQUENCE + _NEEDS_STATE)
    begin.message(b"\x5a", event, every, extra)
    ended = ~rows.instant & (rows.end_ns != UNFINISHED)
    inner = _Fields(count)
    inner.constant(b"\x48\x02")
    inner.varint(b"\x58", rows.track, ended)
    end = _Fields(count)
    end.varint(b"\x40", np.maximum(rows.end_ns, 0), ended)
    end.block(_repeated(_SEQUENCE + _NEEDS_STATE, count), ended)
    end.message(b"\x5a", inner, ended)
    whole = _Fields(count)
    whole.message(b"\x0a", begin, every, extra)
    opening = whole.lengths()
    whole.message(b"\x0a", end, ended)
    return whole.bytes_with(opening, rows.texts)


def counters(track: int, time_ns: Int64s, value: Int64s) -> bytes:
    """TYPE_COUNTER packets; values are not negative."""
    count = len(time_ns)
    every = np.ones(count, np.bool_)
    inner = _Fields(count)
    inner.constant(b"\x48\x04" + number(11, track))
    inner.varint(b"\xf0\x01", value, every)
    body = _Fields(count)
    body.varint(b"\x40", np.maximum(time_ns, 0), every)
    body.constant(_SEQUENCE + _NEEDS_STATE)
    body.message(b"\x5a", inner, every)
    whole = _Fields(count)
    whole.message(b"\x0a", body, every)
    return whole.bytes_with(whole.lengths(), ())


class _Fields:
    """Fields side by side: blocks of bytes, shape (n, width), each with the rows that have it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._blocks: list[tuple[Block, Mask]] = []

    def block(self, data: Block, present: Mask) -> None:
        self._blocks.append((data, present))

    def constant(self, data: bytes) -> None:
        self.block(_repeated(data, self._count), np.ones(self._count, np.bool_))

    def varint(self, tag: bytes, value: Int64s, present: Mask) -> None:
        self.block(np.hstack([_repeated(tag, self._count), _varints(value)]), present)

    def message(self, tag: bytes, inner: _Fields, present: Mask, extra: Int64s | None = None) -> None:
        """`inner` as a nested message, `extra` bytes longer than what is here."""
        lengths = inner.lengths() if extra is None else inner.lengths() + extra
        room = _LENGTH_BYTES if int(lengths.max()) < 1 << 14 else _LENGTH_BYTES + 2
        self.block(np.hstack([_repeated(tag, self._count), _varints(lengths, room)]), present)
        for data, there in inner._blocks:
            self.block(data, there & present)

    def lengths(self) -> Int64s:
        """Bytes of each row."""
        total = np.zeros(self._count, np.int64)
        for data, present in self._blocks:
            total += np.where(present, data.shape[1], 0)
        return total

    def bytes_with(self, opening: Int64s, texts: Sequence[bytes]) -> bytes:
        """The rows one behind the other, `texts` put in after the first `opening` bytes of each."""
        matrix = np.hstack([data for data, _ in self._blocks])
        kept = np.empty(matrix.shape, np.bool_)
        at = 0
        for data, present in self._blocks:
            kept[:, at : at + data.shape[1]] = present[:, None]
            at += data.shape[1]
        flat = matrix[kept].tobytes()
        if not texts:
            return flat
        ends = np.cumsum(self.lengths())
        starts = ends - self.lengths()
        parts: list[bytes] = []
        for low, middle, high, text in zip(
            starts.tolist(), (starts + opening).tolist(), ends.tolist(), texts, strict=True
        ):
            parts += (flat[low:middle], text, flat[middle:high])
        return b"".join(parts)


def _repeated(data: bytes, count: int) -> Block:
    return np.broadcast_to(np.frombuffer(data, np.uint8), (count, len(data)))


def _fixed(tag: bytes, value: Int64s) -> Block:
    return np.hstack([_repeated(tag, len(value)), value.astype("<u8").view(np.uint8).reshape(-1, 8)])


def _varints(value: Int64s, room: int = 0) -> Block:
    """Varints of one width, that of the greatest."""
    most = int(value.max(initial=0))
    width = max(room, -(-max(most.bit_length(), 1) // 7))
    if int(value.min(initial=0)) < 0:
        width = _MOST_VARINT_BYTES
    left = value.astype(np.uint64)
    out = np.empty((len(value), width), np.uint8)
    for place in range(width):
        out[:, place] = (left & np.uint64(0x7F)).astype(np.uint8) | 0x80
        left = left >> np.uint64(7)
    out[:, -1] &= 0x7F
    return out
