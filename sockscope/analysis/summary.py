"""One line a connection: `GET /index.html → 200, 615 bytes; GET /x → 404, 232 bytes; +3 more`.

Made for ten thousand connections: of each one the payloads' beginnings are looked at in bulk, and only
the first few messages are read.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.control import by_call
from sockscope.analysis.http1 import Piece, PieceKind, start_line
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import READS, WRITES
from sockscope.model.connections import Connection
from sockscope.model.events import Events, Section

_IS_DATA: Final = by_call(READS | WRITES)
_IS_READ: Final = by_call(READS)
_IS_WRITE: Final = by_call(WRITES)
_SHOWN: Final = 3
_SCANNED: Final = 4096
"""Events of one connection looked at: enough for three requests of any size worth a line."""
_REQUESTS: Final = np.sort(np.frombuffer(b"GET POSTHEADPUT DELEOPTIPATC", "<u4"))
_RESPONSE: Final = int.from_bytes(b"HTTP", "little")
_FOUR: Final = np.arange(4)
_UNREADABLE: Final = "?"


def summarise(session: Session, connection: int) -> str:
    """The first few requests and their answers; for what is not HTTP the bytes; empty where nothing moved."""
    one = session.connections[connection]
    ids = session.events_of(connection)
    if len(ids):
        return _requests(session.events, ids) or _sizes(one.read_bytes, one.written_bytes)
    return _from_wire(session, one)


def _requests(events: Events, ids: Ids) -> str:
    records = events.records[ids]
    rows, places, first = _beginnings(events, records)
    asked = np.flatnonzero(_among(first, _REQUESTS))
    if not len(asked) or _start(events, records, rows, places, asked[0], PieceKind.REQUEST) is None:
        # redis' inline commands begin alike.
        return ""
    answered = np.flatnonzero(first == _RESPONSE)
    parts = []
    for at, end in pairwise([*asked[: _SHOWN + 1].tolist(), *([] if len(asked) > _SHOWN else [len(rows)])]):
        request = _start(events, records, rows, places, at, PieceKind.REQUEST)
        title = f"{request.method} {request.target}" if request else _UNREADABLE
        answer = int(np.searchsorted(answered, at))
        if answer >= len(answered) or answered[answer] >= end:
            parts.append(f"{title} → no answer")
            continue
        begin = int(answered[answer])
        response = _start(events, records, rows, places, begin, PieceKind.RESPONSE)
        over = int(rows[end]) if end < len(rows) else len(records)
        moved = _moved(records[int(rows[begin]) : min(over, int(rows[begin]) + _SCANNED)])
        parts.append(f"{title} → {response.status if response else _UNREADABLE}, {moved} bytes")
    more = len(asked) - len(parts)
    return "; ".join(parts) + (f"; +{more} more" if more > 0 else "")


def _moved(answer: npt.NDArray[np.void]) -> int:
    """Bytes of an answer, headers included: all that goes the way of its first piece."""
    wanted = (_IS_WRITE if _IS_WRITE[answer["call"][0]] else _IS_READ)[answer["call"]] & (answer["ret"] > 0)
    return int(answer["ret"][wanted].sum())


def _beginnings(events: Events, records: npt.NDArray[np.void]) -> tuple[Ids, Ids, npt.NDArray[np.uint32]]:
    """Rows that read or wrote four bytes or more, where their payload sections are, and those four bytes."""
    rows = np.flatnonzero(_IS_DATA[records["call"]] & (records["ret"] > 0) & (records["blob_bytes"] >= 12))
    at = records["blob_offset"][rows].astype(np.int64)
    stop = np.minimum(at + records["blob_bytes"][rows], len(events.blob))
    # The payload need not be the first section: step over what comes before it.
    for _ in range(len(Section)):
        inside = at + 12 <= stop
        if not inside.all():
            rows, at, stop = rows[inside], at[inside], stop[inside]
        elsewhere = events.blob[at] != Section.PAYLOAD
        if not elsewhere.any():
            break
        at = np.where(elsewhere, at + 8 + _u4(events.blob, at + 4), at)
    else:
        rows, at = rows[:0], at[:0]
    return rows, at, _u4(events.blob, at + 8)


def _start(
    events: Events, records: npt.NDArray[np.void], rows: Ids, places: Ids, index: int, kind: PieceKind
) -> Piece | None:
    """The start line of one of the rows `_beginnings` found."""
    at = int(places[index])
    length = int.from_bytes(events.blob.data[at + 4 : at + 8], "little")
    payload = bytes(events.blob.data[at + 8 : at + 8 + length])
    found = start_line(payload, max(int(records["ret"][rows[index]]), len(payload)))
    return found[0] if found and found[0].kind is kind else None


def _among(first: npt.NDArray[np.uint32], words: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    nearest = np.minimum(np.searchsorted(words, first), len(words) - 1)
    return np.asarray(words[nearest] == first)


def _from_wire(session: Session, connection: Connection) -> str:
    """No syscalls: what the packets tell."""
    if connection.flow < 0:
        return ""
    flow = session.flows[connection.flow]
    came, went = flow.payload_bytes[1 - connection.local_side], flow.payload_bytes[connection.local_side]
    rows = session.packets_of(connection.id)[:_SCANNED]
    rows = rows[session.packets.records["captured_payload_bytes"][rows] >= 4]
    said: list[str] = []
    for row in rows[: 4 * _SHOWN].tolist():
        payload = session.packets.payload_of(row)
        total = int(session.packets.records["payload_bytes"][row])
        found = start_line(payload, total)
        if found is None:
            continue
        piece = found[0]
        if piece.kind is PieceKind.REQUEST:
            said.append(f"{piece.method} {piece.target}")
        elif piece.kind is PieceKind.RESPONSE and said and "→" not in said[-1]:
            said[-1] += f" → {piece.status}"
    if not said:
        return _sizes(came, went)
    shown = "; ".join(text if "→" in text else f"{text} → no answer" for text in said[:_SHOWN])
    return shown + ("; …" if len(said) > _SHOWN else "")


def _u4(blob: npt.NDArray[np.uint8], at: Ids) -> npt.NDArray[np.uint32]:
    """Four bytes at each place, little endian."""
    picked = blob[at[:, None] + _FOUR]
    found: npt.NDArray[np.uint32] = picked.view("<u4")[:, 0]
    return found


def _sizes(came: int, went: int) -> str:
    if not came and not went:
        return ""
    return f"in {_count(came)}, out {_count(went)}"


def _count(count: int) -> str:
    return f"{count:,}".replace(",", " ") + (" byte" if count == 1 else " bytes")
