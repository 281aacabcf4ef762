"""Dumps of the kernel's socket tables by NETLINK_SOCK_DIAG.

Source: sock_diag(7), net/ipv4/inet_diag.c, net/unix/diag.c.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from sockscope.model.sockaddr import Family
from sockscope.model.sockets import SOCKET_DTYPE
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.decode import Stamp, decode_inet, decode_unix
from sockscope.sources.sockets.netlink import (
    ALL_QUERIES,
    ALL_STATES,
    TCP_QUERIES,
    UDP_QUERIES,
    UNIX_QUERIES,
    Ahead,
    Chunk,
    Query,
    answers,
    request,
)
from sockscope.sources.sockets.netns import netns_of
from sockscope.sources.sockets.port_filter import port_program

__all__ = ["ALL_QUERIES", "ALL_STATES", "TCP_QUERIES", "UDP_QUERIES", "UNIX_QUERIES", "Query", "dump", "state_mask"]

_ATTEMPTS = 4


def state_mask(states: Iterable[TcpState]) -> int:
    """The mask the kernel takes. SYN_RECV means the mini sockets too (NEW_SYN_RECV inside the kernel)."""
    mask = 0
    for state in states:
        mask |= 1 << state
        if state == TcpState.SYN_RECV:
            mask |= 1 << TcpState.NEW_SYN_RECV
    return mask


def dump(
    *,
    time_ns: int | None = None,
    snapshot: int = 0,
    families: Iterable[Query] = TCP_QUERIES,
    ports: Collection[int] | None = None,
    local_ports_only: bool = False,
    states: int = ALL_STATES,
    tcp_info: bool = True,
    ahead: Ahead | None = None,
) -> npt.NDArray[np.void]:
    """The sockets of the calling thread's network namespace.

    Args:
        time_ns: CLOCK_MONOTONIC to stamp the rows with; None: now.
        snapshot: number of this snapshot in the session.
        families: which tables.
        ports: only TCP and UDP sockets with one of these ports (unix sockets have none and stay).
        local_ports_only: the peer's port does not count.
        states: `state_mask`; all of them (TIME_WAIT and SYN_RECV too) unless told.
        tcp_info: fill the tcp_info columns (about as dear as everything else together).
        ahead: asked already, from this network namespace; what it has is taken, and its time.

    Returns:
        Shape (sockets,), SOCKET_DTYPE, in the kernel's order.

    Raises:
        CannotObserveError: sock_diag is not there or refused.
    """
    if time_ns is None:
        time_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) if ahead is None else ahead.time_ns
    stamp = Stamp(
        time_ns=time_ns,
        snapshot=snapshot,
        netns=netns_of(),
    )
    if ports is not None and not ports:
        families = [f for f in families if f is Query.UNIX]
    program = port_program(ports, local_only=local_ports_only) if ports else None
    parts = []
    for query in families:
        body = request(query, states=states, tcp_info=tcp_info, program=program)
        first = ahead.take(query, body) if ahead is not None else []
        parts.append(_dump_one(query, body, stamp, tcp_info=tcp_info, first=first))
    rows = _together(parts)
    if ports and program is None:
        wanted = np.fromiter(ports, np.uint16, len(ports))
        keep = (rows["family"] == Family.UNIX) | np.isin(rows["local_port"], wanted)
        if not local_ports_only:
            keep |= np.isin(rows["peer_port"], wanted) & (rows["peer_port"] != 0)
        rows = rows[keep]
    return rows


def _dump_one(query: Query, body: bytes, stamp: Stamp, *, tcp_info: bool, first: list[Chunk]) -> npt.NDArray[np.void]:
    """One table, asked again where the kernel says it changed underneath; the last answer counts in any case.

    Args:
        first: an answer that is there already; empty: none.
    """
    for _ in range(_ATTEMPTS):
        parts, doubted = [], False
        for part, doubts in _decoded(query, first or answers(query, body), stamp, tcp_info=tcp_info):
            parts.append(part)
            doubted |= doubts
        if not doubted:
            break
        first = []
    return _together(parts)


def _decoded(
    query: Query, chunks: Iterable[Chunk], stamp: Stamp, *, tcp_info: bool
) -> Iterator[tuple[npt.NDArray[np.void], bool]]:
    for view, doubts in chunks:
        # The copy is made by the gathers; nothing of the chunk is kept.
        words = np.frombuffer(view, np.uint32, len(view) // 4)
        if query is Query.UNIX:
            yield decode_unix(words, stamp), doubts
        else:
            yield decode_inet(words, query.value[1], stamp, tcp_info=tcp_info), doubts


def _together(parts: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """One table; no copy where only one of them has rows, for rows are wide."""
    filled = [part for part in parts if len(part)]
    if len(filled) == 1:
        return filled[0]
    return np.concatenate(filled) if filled else np.zeros(0, SOCKET_DTYPE)
