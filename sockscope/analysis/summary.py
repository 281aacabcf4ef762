"""One line a connection: `GET /index.html → 200, 615 bytes; GET /x → 404, 232 bytes; +3 more`.

Made for ten thousand connections: of each one the payloads' beginnings are looked at in bulk, and only
the first few messages are read.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.control import by_call
from sockscope.analysis.http1 import Direction, Http1State, PieceKind, narrate
from sockscope.analysis.session import Ids, Session
from sockscope.model.calls import READS, WRITES
from sockscope.model.connections import Connection
from sockscope.model.events import EventFlag, Events, Section

_IS_DATA: Final = by_call(READS | WRITES)
_IS_WRITE: Final = by_call(WRITES)
_SHOWN: Final = 3
_SCANNED: Final = 4096
"""Events of one connection looked at: enough for three requests of any size worth a line."""
_REQUESTS: Final = np.frombuffer(b"GET POSTHEADPUT DELEOPTIPATC", "<u4")
_RESPONSES: Final = np.frombuffer(b"HTTP", "<u4")
_UNREADABLE: Final = "?"
_OTHER, _REQUEST, _RESPONSE = 0, 1, 2


def summarise(session: Session, connection: int) -> str:
    """The first few requests and their answers; for what is not HTTP the bytes; empty where nothing moved."""
    one = session.connections[connection]
    ids = session.events_of(connection)
    if len(ids):
        return _requests(session.events, ids) or _sizes(one.read_bytes, one.written_bytes)
    return _from_wire(session, one)


def _requests(events: Events, ids: Ids) -> str:
    kinds = _kinds(events, ids)
    asked = np.flatnonzero(kinds == _REQUEST)
    if not len(asked):
        return ""
    if _piece(events, int(ids[asked[0]]), PieceKind.REQUEST) == _UNREADABLE:
        # redis' inline commands begin alike.
        return ""
    parts = []
    for number, at in enumerate(asked[:_SHOWN].tolist()):
        end = int(asked[number + 1]) if number + 1 < len(asked) else len(ids)
        exchange = ids[at : min(end, at + _SCANNED)]
        parts.append(_exchange(events, exchange, kinds[at : at + len(exchange)]))
    more = len(asked) - len(parts)
    return "; ".join(parts) + (f"; +{more} more" if more > 0 else "")


def _exchange(events: Events, ids: Ids, kinds: npt.NDArray[np.uint8]) -> str:
    """One request and what came back: status and bytes of the whole answer, headers included."""
    request = _piece(events, int(ids[0]), PieceKind.REQUEST)
    answered = np.flatnonzero(kinds == _RESPONSE)
    if not len(answered):
        return f"{request} → no answer"
    first = int(answered[0])
    answer = events.records[ids[first:]]
    # What goes the way of the answer's first piece belongs to it.
    same_way = _IS_WRITE[answer["call"]] == _IS_WRITE[answer["call"][0]]
    moved = answer["ret"][same_way & _IS_DATA[answer["call"]] & (answer["ret"] > 0)]
    return f"{request} → {_piece(events, int(ids[first]), PieceKind.RESPONSE)}, {int(moved.sum())} bytes"


def _piece(events: Events, event: int, kind: PieceKind) -> str:
    payload = events.section(event, Section.PAYLOAD) or b""
    return _message_words(payload, int(events.records["ret"][event]), kind)


def _kinds(events: Events, ids: Ids) -> npt.NDArray[np.uint8]:
    """shape of `ids`: what each event's payload begins with, by its first four bytes."""
    records = events.records[ids]
    kinds = np.zeros(len(records), np.uint8)
    rows = np.flatnonzero(
        _IS_DATA[records["call"]]
        & (records["ret"] > 0)
        & (records["blob_bytes"] >= 12)
        & (records["flags"] & EventFlag.ENTERED_ONLY == 0)
    )
    at = records["blob_offset"][rows].astype(np.int64)
    held = at + 12 <= len(events.blob)
    rows, at = rows[held], at[held]
    if not len(rows):
        return kinds
    # The payload need not be the first section: step over what comes before it.
    stop = np.minimum(at + records["blob_bytes"][rows].astype(np.int64), len(events.blob))
    for _ in range(len(Section)):
        elsewhere = events.blob[at] != Section.PAYLOAD
        if not elsewhere.any():
            break
        beyond = at + 8 + _u4(events.blob, at + 4).astype(np.int64)
        at = np.where(elsewhere, beyond, at)
        inside = at + 12 <= stop
        rows, at, stop = rows[inside], at[inside], stop[inside]
        if not len(rows):
            return kinds
    first = _u4(events.blob, at + 8)
    kinds[rows[np.isin(first, _REQUESTS)]] = _REQUEST
    kinds[rows[np.isin(first, _RESPONSES)]] = _RESPONSE
    return kinds


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
        piece = narrate(Direction.RECEIVED, payload, total, Http1State())
        if piece is None:
            continue
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
    picked = np.ascontiguousarray(blob[at[:, None] + np.arange(4)])
    found: npt.NDArray[np.uint32] = picked.view("<u4")[:, 0]
    return found


def _message_words(payload: bytes, total: int, kind: PieceKind) -> str:
    piece = narrate(Direction.RECEIVED, payload, max(total, len(payload)), Http1State())
    if piece is None or piece.kind is not kind:
        return _UNREADABLE
    return f"{piece.method} {piece.target}" if kind is PieceKind.REQUEST else str(piece.status)


def _sizes(came: int, went: int) -> str:
    if not came and not went:
        return ""
    return f"in {_count(came)}, out {_count(went)}"


def _count(count: int) -> str:
    return f"{count:,}".replace(",", " ") + (" byte" if count == 1 else " bytes")
