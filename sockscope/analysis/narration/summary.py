"""One line a connection: `GET /index.html → 200, 615 bytes; GET /x → 404, 232 bytes ×12; and 3 more requests`.

Made for ten thousand connections: the payloads' beginnings of all are looked at together, and text is
made only of the few messages that are shown.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from sockscope.analysis.narration.http1 import Piece, PieceKind, start_line
from sockscope.analysis.narration.summary_starts import LINE_BYTES, Starts, of_events, of_packets, same_line
from sockscope.analysis.session import Ids, Session
from sockscope.analysis.wire.ends import FlowEnd, flow_ends
from sockscope.model.columns import group_pieces
from sockscope.model.connections import Connection

_SHOWN: Final = 3
_UNREADABLE: Final = "?"
NO_ANSWER: Final = " → no answer"


def summarise_all(session: Session) -> list[str]:
    """Of each connection the first few requests and their answers, equal neighbours told once.

    What is not HTTP tells its bytes, and what moved nothing is empty. Where a connection has syscalls
    they tell; else its packets do.
    """
    _, bounds = session.events_of_all()
    traced = np.diff(bounds) > 0
    told = [line for first, end in group_pieces(bounds) for line in _told(of_events(session, first, end), end - first)]
    on_wire: list[str] = []
    if not traced.all():
        for first, end in group_pieces(session.packets_of_flows()[1]):
            on_wire += _told(of_packets(session, first, end), end - first)
    wire = _OnWire(session, on_wire)
    return [
        (told[one.id] or _sizes(one.read_bytes, one.written_bytes)) if has_events else wire.words(one)
        for one, has_events in zip(session.connections, traced.tolist(), strict=True)
    ]


def summarise(session: Session, connection: int) -> str:
    """The line of one connection; for many use `summarise_all`."""
    return summarise_all(session)[connection]


class _OnWire:
    """No syscalls: what the packets tell, and how it ended.

    Args:
        told: shape (flows,), the exchanges of each in words; empty where no connection is without syscalls.
    """

    def __init__(self, session: Session, told: list[str]) -> None:
        columns = session.flows.columns
        self._told = told
        self._moved = columns.payload_bytes.tolist() if told else []
        self._seen = columns.packet_count.tolist() if told else []
        self._ends = flow_ends(columns) if told else []

    def words(self, connection: Connection) -> str:
        if connection.flow < 0:
            return ""
        flow, local = connection.flow, connection.local_side
        told, seen = self._told[flow], self._seen[flow]
        came, went = self._moved[flow][1 - local], self._moved[flow][local]
        if seen[0] and seen[1]:
            said, end = told or _sizes(came, went), _end_words(self._ends[flow], local)
            return f"{said}; {end}" if said and end else said or end
        # The other side's packets went another way, or were filtered out: nothing can be said of answers or the end.
        said = told.replace(NO_ANSWER, "") if told else _sizes_of_one(came, went, seen[local] > 0)
        return f"{said}; only the {'server' if seen[local] else 'client'}'s packets were captured"


@cache
def _end_words(end: FlowEnd, local: int) -> str:
    """How the connection ended on the wire; empty where both closed it, as they should."""
    whose = ("the client", "the server") if local else ("the server", "the client")
    return {
        FlowEnd.UNANSWERED: "the SYN was never answered",
        FlowEnd.REFUSED: "refused",
        FlowEnd.OPEN: "still open",
        FlowEnd.SIDE_0_LACKS_FIN: f"{whose[1]} closed, {whose[0]} did not",
        FlowEnd.SIDE_1_LACKS_FIN: f"{whose[0]} closed, {whose[1]} did not",
        FlowEnd.BOTH_CLOSED: "",
        FlowEnd.RESET_BY_SIDE_0: f"reset by {whose[0]}",
        FlowEnd.RESET_BY_SIDE_1: f"reset by {whose[1]}",
    }[end]


def _sizes_of_one(came: int, went: int, local: bool) -> str:
    count = went if local else came
    return f"{'out' if local else 'in'} {_count(count)}" if count else "no bytes"


def _told(starts: Starts, groups: int) -> list[str]:
    """Each group's exchanges in words; empty where its first message is no request."""
    asked = np.flatnonzero(starts.request)
    told = [""] * groups
    if not len(asked):
        return told
    group = starts.group[asked]
    answer = _answers(starts, asked, group)
    new = _begins_run(starts, asked, group, answer)
    runs = np.flatnonzero(new)
    sizes = np.diff(np.append(runs, len(asked)))
    owners = group[runs]
    firsts = np.flatnonzero(np.append(True, owners[1:] != owners[:-1]))
    totals = np.bincount(group, minlength=groups)
    shown = _Titles(starts)
    request_of, answer_of, times_of = asked[runs].tolist(), answer[runs].tolist(), sizes.tolist()
    total_of = totals[owners[firsts]].tolist()
    for owner, low, high, total in zip(
        owners[firsts].tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(runs)], total_of, strict=True
    ):
        # redis' inline commands begin alike.
        said = shown.begins(request_of[low], answer_of[low])
        if not said:
            continue
        if high == low + 1 and total == 1:
            told[owner] = said
            continue
        parts, count = [], 0
        for run in range(low, min(high, low + _SHOWN)):
            times = times_of[run]
            count += times
            said = said if run == low else shown.exchange(request_of[run], answer_of[run])
            parts.append(said + (f" ×{times}" if times > 1 else ""))
        more = total - count
        if more:
            parts.append(f"and {_grouped(more)} more " + ("request" if more == 1 else "requests"))
        told[owner] = "; ".join(parts)
    return told


def _answers(starts: Starts, asked: Ids, group: Ids) -> Ids:
    """Of each request the row of the first response before the next request of its group; -1: none."""
    following = np.append(asked[1:], len(starts))
    # Messages lie in order of time within a group: the next row is the answer, or there is none.
    candidate = np.minimum(asked + 1, len(starts) - 1)
    answered = (asked + 1 < following) & (starts.group[candidate] == group)
    found: Ids = np.where(answered, candidate, -1)
    return found


def _begins_run(starts: Starts, asked: Ids, group: Ids, answer: Ids) -> npt.NDArray[np.bool_]:
    """Which requests differ from the one before: in line, in the answer's status line, in its size."""
    new = np.ones(len(asked), np.bool_)
    before, after = answer[:-1], answer[1:]
    same = (group[1:] == group[:-1]) & ((before < 0) == (after < 0))
    same &= (before < 0) | (starts.moved[before] == starts.moved[after])
    maybe = np.flatnonzero(same)
    equal = same_line(starts, asked[maybe], asked[maybe + 1])
    maybe = maybe[equal]
    with_answer = answer[maybe] >= 0
    equal = ~with_answer
    equal[with_answer] = same_line(starts, answer[maybe[with_answer]], answer[maybe[with_answer] + 1])
    new[maybe[equal] + 1] = False
    return new


class _Titles:
    """Start lines read once each: most connections say the same."""

    def __init__(self, starts: Starts) -> None:
        self._known: dict[tuple[bytes, bool], Piece | None] = {}
        self._said: dict[tuple[int, int, int], str] = {}
        # A number of a Python list costs a tenth of one of an array.
        self._at = starts.at.tolist()
        self._size = np.minimum(starts.length, LINE_BYTES).tolist()
        self._total = starts.total.tolist()
        self._moved = starts.moved.tolist()
        self._source = np.ascontiguousarray(starts.source).data

    def _piece(self, row: int) -> Piece | None:
        at = self._at[row]
        payload = self._source[at : at + self._size[row]].tobytes()
        total = max(self._total[row], len(payload))
        line = payload[: payload.find(b"\n") + 1] or payload
        key = (line, total > len(line))
        if key not in self._known:
            found = start_line(line, total)
            self._known[key] = found[0] if found else None
        return self._known[key]

    def begins(self, request: int, response: int) -> str:
        """The first exchange; empty where it begins with no request after all."""
        piece = self._piece(request)
        return self._exchange(piece, response) if piece and piece.kind is PieceKind.REQUEST else ""

    def exchange(self, request: int, response: int) -> str:
        """`GET / → 200, 615 bytes`: headers included; without the bytes where they are not known."""
        return self._exchange(self._piece(request), response)

    def _exchange(self, piece: Piece | None, response: int) -> str:
        answer = self._piece(response) if response >= 0 else None
        # Pieces are told apart by their identity: all are kept.
        key = (id(piece), id(answer), self._moved[response] if response >= 0 else -2)
        found = self._said.get(key)
        if found is None:
            found = self._said[key] = self._words(piece, answer, response)
        return found

    def _words(self, piece: Piece | None, answer: Piece | None, response: int) -> str:
        title = f"{piece.method} {piece.target}" if piece and piece.kind is PieceKind.REQUEST else _UNREADABLE
        if response < 0:
            return f"{title}{NO_ANSWER}"
        status = answer.status if answer and answer.kind is PieceKind.RESPONSE else _UNREADABLE
        moved = self._moved[response]
        return f"{title} → {status}" + (f", {_count(moved)}" if moved >= 0 else "")


def _sizes(came: int, went: int) -> str:
    if not came and not went:
        return ""
    return f"in {_count(came)}, out {_count(went)}"


def _count(count: int) -> str:
    return _grouped(count) + (" byte" if count == 1 else " bytes")


def _grouped(count: int) -> str:
    return f"{count:,}".replace(",", " ")
