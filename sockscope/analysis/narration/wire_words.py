"""What a connection's packets went through, in words and in facts; and what one segment is."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np

from sockscope.analysis.session import Session
from sockscope.model.connections import Connection
from sockscope.model.tcp import SegmentMark
from sockscope.model.wire_facts import WireFacts, WireSide

COUNTS = (
    "retransmissions",
    "fast_retransmissions",
    "spurious_retransmissions",
    "rtos",
    "out_of_order",
    "lost_before",
    "acked_unseen",
    "duplicate_acks",
    "zero_windows",
    "zero_window_probes",
    "window_fulls",
    "keep_alives",
    "delayed_ack_stalls",
)
_KINDS = (
    (SegmentMark.FAST_RETRANSMISSION, "fast"),
    (SegmentMark.SPURIOUS_RETRANSMISSION, "spurious"),
    (SegmentMark.RTO, "after a timeout"),
)
_NAMES = (
    (SegmentMark.OUT_OF_ORDER, "out of order"),
    (SegmentMark.LOST_BEFORE, "bytes before it not seen"),
    (SegmentMark.ACKED_UNSEEN, "acknowledges bytes not seen"),
    (SegmentMark.DUPLICATE_ACK, "duplicate ACK"),
    (SegmentMark.ZERO_WINDOW, "zero window"),
    (SegmentMark.ZERO_WINDOW_PROBE, "zero window probe"),
    (SegmentMark.ZERO_WINDOW_PROBE_ACK, "answers the probe"),
    (SegmentMark.WINDOW_FULL, "window full"),
    (SegmentMark.WINDOW_UPDATE, "window update"),
    (SegmentMark.KEEP_ALIVE, "keep-alive"),
    (SegmentMark.KEEP_ALIVE_ACK, "answers the keep-alive"),
    (SegmentMark.PORT_REUSED, "ports used again"),
)
_TOLD = ("retransmissions", "out_of_order", "lost_before", "acked_unseen", "zero_windows", "keep_alives")
_MS = 1_000_000


@cache
def mark_words(mark: int) -> str:
    """`retransmission (fast)`, `zero window, window full`; empty for none."""
    parts = []
    if mark & SegmentMark.RETRANSMISSION:
        kind = next((name for bit, name in _KINDS if mark & bit), "")
        parts.append("retransmission" + (f" ({kind})" if kind else ""))
    parts += [name for bit, name in _NAMES if mark & bit]
    return ", ".join(parts)


def wire_words_all(session: Session) -> list[str]:
    """Of each connection what was out of the ordinary, and then the round trip; empty where nothing was.

    `2 retransmissions (1 after a timeout, 1 fast), 3 zero windows of the peer; round trip 0.05 ms`.
    """
    words = [""] * len(session.connections)
    facts = session.flow_facts
    if not len(facts):
        return words
    odd = np.zeros(len(facts), np.bool_)
    for name in (*_TOLD, "delayed_ack_stalls"):
        odd |= facts[name].any(axis=1)
    # That a busy client uses its ports again is ordinary: told beside what is not.
    odd |= facts["simultaneous_open"] | facts["simultaneous_close"] != 0
    flows = np.fromiter((one.flow for one in session.connections), np.int64, len(words))
    told = np.flatnonzero((flows >= 0) & odd[flows])
    table = facts[flows[told]]
    columns = [table[name].tolist() for name in _READ]
    for number, *values in zip(told.tolist(), *columns, strict=True):
        words[number] = _words(dict(zip(_READ, values, strict=True)), session.connections[number].local_side)
    return words


_Row: TypeAlias = dict[str, Any]
"""Column → number, or a pair of them; all of `_READ`."""


def _words(row: _Row, local: int) -> str:
    parts = [_retransmissions(row, local)]
    parts += [_of_sides(row, name, *said, local) for name, said in _SAID.items()]
    stalls = row["delayed_ack_stalls"]
    if any(stalls):
        longest = _span(max(row["longest_stall_ns"]))
        whose = "by the peer" if stalls[1 - local] >= stalls[local] else "here"
        parts.append(f"{_counted(sum(stalls), 'ACK')} delayed {whose}, up to {longest}")
    flags = (
        ("port_reused", "ports used again"),
        ("simultaneous_open", "opened by both at once"),
        ("simultaneous_close", "closed by both at once"),
    )
    parts += [said for name, said in flags if row[name]]
    told = ", ".join(part for part in parts if part)
    trip = _round_trip(row, local)
    return f"{told}; round trip {_span(trip)}" if told and trip >= 0 else told


_SAID = {
    "out_of_order": ("segment out of order", "segments out of order"),
    "lost_before": ("gap", "gaps"),
    "acked_unseen": ("ACK of unseen bytes", "ACKs of unseen bytes"),
    "zero_windows": ("zero window", "zero windows"),
    "keep_alives": ("keep-alive", "keep-alives"),
}


_FLAGS = ("port_reused", "simultaneous_open", "simultaneous_close")
_READ = (*COUNTS, "longest_stall_ns", "handshake_rtt_ns", "rtt_min_ns", *_FLAGS)


def _retransmissions(row: _Row, local: int) -> str:
    kinds = (
        ("rtos", "after a timeout"),
        ("fast_retransmissions", "fast"),
        ("spurious_retransmissions", "spurious"),
    )
    parts = [f"{sum(row[name])} {kind}" for name, kind in kinds if any(row[name])]
    return _of_sides(row, "retransmissions", "retransmission", "retransmissions", local, ", ".join(parts))


def _of_sides(row: _Row, name: str, one: str, many: str, local: int, more: str = "") -> str:
    """`3 gaps`, `3 gaps of the peer`, `3 gaps (1 of the peer)`; `more` comes into the brackets."""
    own, other = row[name][local], row[name][1 - local]
    if not own + other:
        return ""
    said = f"{own + other} {one if own + other == 1 else many}"
    if other and not own:
        said += " of the peer"
    inside = [f"{other} of the peer"] if other and own else []
    inside += [more] if more else []
    return f"{said} ({'; '.join(inside)})" if inside else said


def _round_trip(row: _Row, local: int) -> int:
    """The handshake's; else the shortest of data; -1."""
    known: int = row["handshake_rtt_ns"]
    return known if known >= 0 else max(row["rtt_min_ns"])


def _span(duration_ns: int) -> str:
    if duration_ns >= 100 * _MS:
        return f"{duration_ns / _MS:.0f} ms"
    return f"{duration_ns / _MS:.1f} ms" if duration_ns >= _MS else f"{duration_ns / _MS:.2f} ms"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" + ("s" if count != 1 else "")


_TRIPS = ("rtt_min_ns", "rtt_median_ns", "rtt_max_ns")
_SINGLES = ("handshake_rtt_ns", "half_close_ns", "reset_side", "seen_sides", "began_before", *_FLAGS)
_BLOCK = 256


class WireTeller:
    """A `model.wire_facts.WireTold`. Flows are read some at a time: who asks for one mostly asks for the next."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._block = -1
        self._counts: list[list[list[int]]] = []
        self._stalls: list[list[int]] = []
        self._trips: list[list[list[int]]] = []
        self._singles: list[list[int]] = []

    def __call__(self, connection: int) -> WireFacts | None:
        one: Connection = self._session.connections[connection]
        if one.flow < 0 or one.flow >= len(self._session.flow_facts):
            return None
        block, place = divmod(one.flow, _BLOCK)
        if block != self._block:
            self._read(block)
        return self._facts(place, one.local_side)

    def _read(self, block: int) -> None:
        table = self._session.flow_facts[block * _BLOCK : (block + 1) * _BLOCK]
        self._block = block
        self._counts = np.stack([table[name] for name in COUNTS], axis=2).tolist()
        self._stalls = table["longest_stall_ns"].tolist()
        self._trips = np.stack([table[name] for name in _TRIPS], axis=2).tolist()
        self._singles = np.stack([table[name].astype(np.int64) for name in _SINGLES], axis=1).tolist()

    def _facts(self, place: int, local: int) -> WireFacts:
        sides = [
            WireSide(
                counts=dict(zip(COUNTS, counts, strict=True)),
                stall_ns=stall,
                rtt_ns=None if trips[0] < 0 else (trips[0], trips[1], trips[2]),
            )
            for counts, stall, trips in zip(self._counts[place], self._stalls[place], self._trips[place], strict=True)
        ]
        handshake, half, reset, seen, before, reused, opened, closed = self._singles[place]
        return WireFacts(
            local=sides[local],
            peer=sides[1 - local],
            handshake_ns=handshake if handshake >= 0 else None,
            one_sided=seen != 3,
            began_before=bool(before),
            port_reused=bool(reused),
            simultaneous_open=bool(opened),
            simultaneous_close=bool(closed),
            reset_by="" if reset < 0 else "local" if reset == local else "peer",
            half_close_ns=half if half >= 0 else None,
        )
