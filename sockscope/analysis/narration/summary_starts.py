"""Where HTTP/1 messages seem to begin, for all connections at once: the first four bytes tell.

From syscalls and from packets alike comes a `Starts`: columns, one row a beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.replay.control import by_call
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import READS, WRITES
from sockscope.model.events import Events, Section

_IS_DATA: Final = by_call(READS | WRITES)
_IS_WRITE: Final = by_call(WRITES)
_REQUESTS: Final = np.sort(np.frombuffer(b"GET POSTHEADPUT DELEOPTIPATC", "<u4"))
_RESPONSE: Final = int.from_bytes(b"HTTP", "little")
LINE_BYTES: Final = 160
"""Of a start line, compared and shown; targets are cut at 120 letters."""
_CHUNK: Final = 1 << 15
_FOUR: Final = np.arange(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Beginnings of messages, group after group (a connection, or a flow), in time within each.

    Attributes:
        group: shape (n,), int64.
        request: shape (n,), bool; the others are responses.
        source: shape (m,), uint8; what `at` indexes.
        at, length: shape (n,), int64; where the payload is, and how much of it was copied.
        total: shape (n,), int64; bytes of the whole read, write or packet.
        moved: shape (n,), int64; bytes that went this way until the next request of the group began; -1: not known.
    """

    group: Ids
    request: npt.NDArray[np.bool_]
    source: npt.NDArray[np.uint8]
    at: Ids
    length: Ids
    total: Ids
    moved: Ids

    def __len__(self) -> int:
        return len(self.group)


def of_events(session: Session, first: int, stop: int) -> Starts:
    """What the syscalls on the connections `first` to `stop` - 1 tell; groups are counted from the first."""
    events = session.events
    rows, bounds = session.events_of_all()
    rows, bounds = rows[bounds[first] : bounds[stop]], bounds[first : stop + 1] - bounds[first]
    call = events.records["call"][rows]
    ret = events.records["ret"][rows]
    is_data = _IS_DATA[call] & (ret > 0)
    is_write = _IS_WRITE[call]
    wanted = np.flatnonzero(is_data & (events.records["blob_bytes"][rows] >= 12))
    kept, at = _payloads(events, rows[wanted])
    wanted = wanted[kept]
    word = _u4(events.blob, at + 8)
    asks = _among(word, _REQUESTS)
    found = np.flatnonzero(asks | (word == _RESPONSE))
    place, at, asks = wanted[found], at[found], asks[found]
    group = np.searchsorted(bounds, place, side="right") - 1
    end = _next_request(place, asks, group, bounds)
    written, read = (np.concatenate([[0], np.cumsum(np.where(mask, ret, 0))]) for mask in _ways(is_data, is_write))
    sent = is_write[place]
    return Starts(
        group=group,
        request=asks,
        source=events.blob,
        at=at + 8,
        length=_u4(events.blob, at + 4).astype(np.int64),
        total=ret[place],
        moved=np.where(sent, written[end] - written[place], read[end] - read[place]),
    )


def of_packets(session: Session, first: int, stop: int) -> Starts:
    """What the packets of the flows `first` to `stop` - 1 tell; a segment sent again at once counts once."""
    records, raw = session.packets.records, session.packets.raw
    rows, bounds = session.packets_of_flows()
    rows, bounds = rows[bounds[first] : bounds[stop]], bounds[first : stop + 1] - bounds[first]
    place = np.flatnonzero(records["captured_payload_bytes"][rows] >= 4)
    at = records["payload_offset"][rows[place]].astype(np.int64)
    word = _u4(raw, at)
    asks = _among(word, _REQUESTS)
    found = np.flatnonzero(asks | (word == _RESPONSE))
    place, at, asks = place[found], at[found], asks[found]
    picked = rows[place]
    group = np.searchsorted(bounds, place, side="right") - 1
    again = np.zeros(len(place), np.bool_)
    seq = records["seq"][picked]
    # Datagrams have no numbers; HTTP/1 does not come in them.
    again[1:] = (group[1:] == group[:-1]) & (seq[1:] == seq[:-1]) & (asks[1:] == asks[:-1]) & (seq[1:] > 0)
    new = ~again
    return Starts(
        group=group[new],
        request=asks[new],
        source=raw,
        at=at[new],
        length=records["captured_payload_bytes"][picked[new]].astype(np.int64),
        total=records["payload_bytes"][picked[new]].astype(np.int64),
        moved=np.full(int(new.sum()), -1, np.int64),
    )


def same_line(starts: Starts, one: Ids, other: Ids) -> npt.NDArray[np.bool_]:
    """Pair by pair, whether two messages begin with the same line, as far as it was copied.

    Args:
        one, other: shape (n,), rows of `starts`.
    """
    same = np.zeros(len(one), np.bool_)
    if not len(one):
        return same
    source = starts.source
    within = np.arange(LINE_BYTES)
    for low in range(0, len(one), _CHUNK):
        a, b = one[low : low + _CHUNK], other[low : low + _CHUNK]
        lines, others = _lines_at(source, starts.at[a]), _lines_at(source, starts.at[b])
        whole = np.minimum(starts.length[a], LINE_BYTES)
        feeds = (lines == 0x0A) & (within < whole[:, None])
        stop = np.where(feeds.any(axis=1), feeds.argmax(axis=1) + 1, whole)
        short = np.minimum(starts.length[b], LINE_BYTES) < stop
        differs = ((lines != others) & (within < stop[:, None])).any(axis=1)
        same[low : low + _CHUNK] = ~differs & ~short
    return same


def _lines_at(source: npt.NDArray[np.uint8], at: Ids) -> npt.NDArray[np.uint8]:
    """The bytes from each place on: shape (k, LINE_BYTES); what is behind the end of all repeats the last byte."""
    if len(source) >= LINE_BYTES and int(at.max()) + LINE_BYTES <= len(source):
        windows: npt.NDArray[np.uint8] = np.lib.stride_tricks.sliding_window_view(source, LINE_BYTES)[at]
        return windows
    last: npt.NDArray[np.uint8] = source[np.minimum(at[:, None] + np.arange(LINE_BYTES), len(source) - 1)]
    return last


def _ways(
    is_data: npt.NDArray[np.bool_], is_write: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    return is_data & is_write, is_data & ~is_write


def _next_request(place: Ids, asks: npt.NDArray[np.bool_], group: Ids, bounds: Ids) -> Ids:
    """Of each start the place where the group's next request begins, or where the group ends."""
    ends = bounds[group + 1]
    requests = place[asks]
    following = np.searchsorted(requests, place, side="right")
    nearest = np.append(requests, np.iinfo(np.int64).max)[following]
    found: Ids = np.minimum(nearest, ends)
    return found


def _payloads(events: Events, ids: Ids) -> tuple[Ids, Ids]:
    """Which of the events have a payload section of four bytes or more, and where it is."""
    kept = np.arange(len(ids))
    at = events.records["blob_offset"][ids].astype(np.int64)
    stop = np.minimum(at + events.records["blob_bytes"][ids], len(events.blob))
    # The payload need not be the first section: step over what comes before it.
    for _ in range(len(Section)):
        inside = at + 12 <= stop
        if not inside.all():
            kept, at, stop = kept[inside], at[inside], stop[inside]
        elsewhere = events.blob[at] != Section.PAYLOAD
        if not elsewhere.any():
            return kept, at
        at[elsewhere] += 8 + _u4(events.blob, at[elsewhere] + 4).astype(np.int64)
    return kept[:0], at[:0]


def _among(first: npt.NDArray[np.uint32], words: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    nearest = np.minimum(np.searchsorted(words, first), len(words) - 1)
    return np.asarray(words[nearest] == first)


def _u4(blob: npt.NDArray[np.uint8], at: Ids) -> npt.NDArray[np.uint32]:
    """Four bytes at each place, little endian."""
    picked = blob[at[:, None] + _FOUR]
    found: npt.NDArray[np.uint32] = picked.view("<u4")[:, 0]
    return found
