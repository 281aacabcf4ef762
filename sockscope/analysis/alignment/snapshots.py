"""Snapshots of socket states laid beside packets and calls: when was each row true?

A row in ESTAB was taken between handshake and FIN, one in CLOSE-WAIT between the peer's FIN and ours, one that counts
4 096 bytes received after those had come and before the next did. Each row so gives an interval; the offset is where
most of them hold.

Source: RFC 9293 section 3.3.2 (states); include/uapi/linux/tcp.h tcpi_bytes_received (RFC 4898; a FIN counts as one).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.analysis.alignment.candidates import expanded
from sockscope.analysis.alignment.sides import Sides
from sockscope.analysis.alignment.talks import Talks
from sockscope.analysis.wire.columns import NEVER
from sockscope.model.sockaddr import V4_MAPPED_PREFIX
from sockscope.model.tcp import TcpState

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_TCP = 6
_SLACK_NS = 1_000_000
"""A dump takes its time; the kernel handles a packet a little after the capture has stamped it."""
_AGREEING = 0.8
_ALWAYS = np.iinfo(np.int64).min
_TIME_WAIT_NS = 60_000_000_000
"""TCP_TIMEWAIT_LEN."""
_BEFORE_FIN = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)
_AFTER_FIN = (TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.CLOSING, TcpState.LAST_ACK, TcpState.TIME_WAIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Between which offsets the rows are true.

    Attributes:
        least_ns, most_ns: what may be added to their times; None: no bound on that side.
        rows: how many tell something. agreeing: how many of them hold there.
    """

    least_ns: int | None
    most_ns: int | None
    rows: int
    agreeing: int


@dataclass(frozen=True, slots=True)
class _Spans:
    """When connections were in which state: columns by state, shape (n,) each."""

    keys: npt.NDArray[np.void]
    begins: dict[TcpState, Ints]
    ends: dict[TcpState, Ints]


def align_snapshots(rows: npt.NDArray[np.void], talks: Talks, sides: Sides | None) -> Room | None:
    """Find when the rows were taken.

    Args:
        rows: SOCKET_DTYPE, of one clock (or one snapshot).
        talks: the log's connections; none where there is no log.
        sides: the capture's flows with times of the session's clock; None: no capture.

    Returns:
        None where they show no connection that the rest knows, or contradict it whatever the offset.
    """
    mine = rows[(rows["protocol"] == _TCP) & (rows["peer_port"] != 0)]
    if not len(mine):
        return None
    least: list[Ints] = []
    most: list[Ints] = []
    whose: list[Ints] = []
    for spans, sure in ((_of_sides(sides), sides), (_of_talks(talks), None)):
        if spans is None or not len(spans.keys):
            continue
        row, which = _same(_row_keys(mine), spans.keys)
        begin, end = _states(mine[row], which, spans)
        if sure is not None:
            _by_bytes(mine[row], which, sure, begin, end)
        when = mine["time_ns"][row]
        known = ((begin != _ALWAYS) | (end != NEVER)) & (begin <= end)
        row, begin, end, when = row[known], begin[known], end[known], when[known]
        least.append(np.where(begin == _ALWAYS, _ALWAYS, begin - when - _SLACK_NS))
        most.append(np.where(end == NEVER, NEVER, end - when + _SLACK_NS))
        whose.append(row)
    if not least:
        return None
    return _densest(np.concatenate(least), np.concatenate(most), np.concatenate(whose))


def _densest(least: Ints, most: Ints, whose: Ints) -> Room | None:
    """Where most intervals hold: those of one connection do not overlap, as its flows do not."""
    if not len(least):
        return None
    low, high = np.sort(least), np.sort(most)
    # The most hold just where one begins, until the next one ends.
    edges = np.unique(least)
    holding = np.searchsorted(low, edges, "right") - np.searchsorted(high, edges)
    best = int(holding.max())
    rows = len(np.unique(whose))
    at = int(edges[np.flatnonzero(holding == best)[0]])
    held = (least <= at) & (most >= at)
    agreeing = len(np.unique(whose[held]))
    if agreeing < _AGREEING * rows:
        return None
    end = int(most[held].min())
    return Room(
        least_ns=None if at == _ALWAYS else at,
        most_ns=None if end == NEVER else end,
        rows=rows,
        agreeing=agreeing,
    )


def _row_keys(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    return _keys(rows["peer"], rows["peer_port"], rows["local_port"])


def _keys(peer: npt.NDArray[np.uint8], peer_port: Ints, local_port: Ints) -> npt.NDArray[np.void]:
    raw = np.zeros((len(peer), 20), np.uint8)
    raw[:, :16] = peer
    for at, port in ((16, peer_port), (18, local_port)):
        raw[:, at : at + 2] = np.ascontiguousarray(port, "<u2").view(np.uint8).reshape(-1, 2)
    return raw.view("V20").reshape(-1)


def _same(rows: npt.NDArray[np.void], spans: npt.NDArray[np.void]) -> tuple[Ints, Ints]:
    """Pairs of equal key."""
    _, number = np.unique(np.concatenate([rows, spans]), return_inverse=True)
    number = number.reshape(-1).astype(np.int64)
    ours, theirs = number[: len(rows)], number[len(rows) :]
    order = np.argsort(theirs, kind="stable")
    low = np.searchsorted(theirs[order], ours)
    count = np.searchsorted(theirs[order], ours, "right") - low
    row, place = expanded(np.arange(len(ours)), low, count)
    return row, order[place]


def _states(rows: npt.NDArray[np.void], which: Ints, spans: _Spans) -> tuple[Ints, Ints]:
    begin = np.full(len(rows), _ALWAYS, np.int64)
    end = np.full(len(rows), NEVER, np.int64)
    for state in TcpState:
        here = np.flatnonzero(rows["state"] == state)
        if len(here) and state in spans.begins:
            begin[here] = spans.begins[state][which[here]]
        if len(here) and state in spans.ends:
            end[here] = spans.ends[state][which[here]]
    return begin, end


def _of_sides(sides: Sides | None) -> _Spans | None:
    if sides is None:
        return None
    columns = sides.flows.columns
    local, peer = columns.port.reshape(-1), columns.port[:, ::-1].reshape(-1)
    keys = _keys(columns.key[:, ::-1].reshape(-1, 16), peer.astype(np.int64), local.astype(np.int64))
    opened, ours, theirs = sides.opened_ns, sides.our_fin_ns, sides.their_fin_ns
    reset = np.repeat(columns.rst_ns.min(axis=1), 2)
    acked = columns.fin_acked_ns.reshape(-1)
    both = np.where((ours == NEVER) | (theirs == NEVER), _ALWAYS, np.maximum(ours, theirs))
    since = {
        TcpState.ESTABLISHED: opened,
        TcpState.SYN_RECV: sides.syn_ns,
        TcpState.CLOSE_WAIT: theirs,
        TcpState.FIN_WAIT1: ours,
        TcpState.FIN_WAIT2: acked,
        TcpState.LAST_ACK: ours,
        TcpState.CLOSING: both,
        TcpState.TIME_WAIT: both,
    }
    until = {
        TcpState.ESTABLISHED: np.minimum(np.minimum(ours, theirs), reset),
        TcpState.CLOSE_WAIT: np.minimum(ours, reset),
        TcpState.FIN_WAIT1: np.minimum(acked, reset),
        TcpState.FIN_WAIT2: np.minimum(theirs, reset),
        TcpState.LAST_ACK: np.minimum(acked, reset),
        TcpState.TIME_WAIT: np.where(both == _ALWAYS, NEVER, both + _TIME_WAIT_NS),
    }
    return _Spans(keys, {state: np.where(at == NEVER, _ALWAYS, at) for state, at in since.items()}, until)


def _of_talks(talks: Talks) -> _Spans | None:
    """What calls tell: nothing is closed before the call that closes it, and TIME-WAIT comes after."""
    told = np.array([bool(host) and bool(port) for host, _, port in talks.keys], np.bool_)
    if not told.any():
        return None
    hosts = [V4_MAPPED_PREFIX + one[0] if len(one[0]) == 4 else one[0].ljust(16, b"\0")[:16] for one in talks.keys]
    peers = np.frombuffer(b"".join(hosts), np.uint8).reshape(-1, 16)
    ports = np.array([one[1:] for one in talks.keys], np.int64).reshape(-1, 2)
    keys = _keys(peers, ports[:, 0], ports[:, 1])
    began = np.where(talks.connecting_ns == NEVER, _ALWAYS, talks.connecting_ns)
    closing = talks.closing_ns
    after = np.where(closing == NEVER, _ALWAYS, closing)
    since = {**dict.fromkeys(_BEFORE_FIN, began), **dict.fromkeys(_AFTER_FIN, after)}
    # Of the other end of a loopback connection, told by a key that is no talk's, nothing is said.
    return _Spans(
        keys[told],
        {state: at[told] for state, at in since.items()},
        dict.fromkeys(_BEFORE_FIN, closing[told]),
    )


def _by_bytes(rows: npt.NDArray[np.void], side: Ints, sides: Sides, begin: Ints, end: Ints) -> None:
    """Counters give the tightest bounds: after so many bytes came, before the next did."""
    live = np.isin(rows["state"], [int(one) for one in _BEFORE_FIN]) & (rows["has_info"] != 0)
    counted = np.flatnonzero(live & sides.carried.from_start[side ^ 1] & (rows["bytes_received"] < 1 << 40))
    received = rows["bytes_received"][counted].astype(np.int64)
    came = sides.carried.reach.reached(side[counted] ^ 1, received)
    following = sides.carried.reach.reached(side[counted] ^ 1, received + 1)
    some = (received > 0) & (came != -1)
    begin[counted[some]] = np.maximum(begin[counted[some]], came[some])
    more = following != -1
    end[counted[more]] = np.minimum(end[counted[more]], following[more])
    acked = np.flatnonzero(live & sides.carried.from_start[side] & (rows["bytes_acked"] < 1 << 40))
    # A client's SYN counts as a byte.
    number = rows["bytes_acked"][acked].astype(np.int64) - 1
    went = sides.carried.reach.reached(side[acked], number)
    some = (number > 0) & (went != -1)
    begin[acked[some]] = np.maximum(begin[acked[some]], went[some])
