"""Dumps of the kernel's socket tables by NETLINK_SOCK_DIAG.

Source: sock_diag(7), net/ipv4/inet_diag.c, net/unix/diag.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable
from enum import Enum

import numpy as np
import numpy.typing as npt

from sockscope.errors import CannotObserveError
from sockscope.model.sockaddr import Family
from sockscope.model.sockets import SOCKET_DTYPE
from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.decode import NLM_F_DUMP_INTR, Stamp, Words, decode_inet, decode_unix
from sockscope.sources.sockets.netns import netns_of
from sockscope.sources.sockets.port_filter import port_program

TCP, UDP, UNIX = 6, 17, 0


class Query(Enum):
    """One kernel table: (family, protocol)."""

    TCP4 = (Family.INET, TCP)
    TCP6 = (Family.INET6, TCP)
    UDP4 = (Family.INET, UDP)
    UDP6 = (Family.INET6, UDP)
    UNIX = (Family.UNIX, UNIX)


TCP_QUERIES = (Query.TCP4, Query.TCP6)
UDP_QUERIES = (Query.UDP4, Query.UDP6)
UNIX_QUERIES = (Query.UNIX,)
ALL_QUERIES = TCP_QUERIES + UDP_QUERIES + UNIX_QUERIES

ALL_STATES = 0xFFFFFFFF

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DONE_BYTES = 20
_INET_DIAG_REQ_BYTECODE = 1
_EXT_INFO = 1 << (2 - 1)
_UDIAG_SHOW = 0x1 | 0x4 | 0x10  # NAME, PEER, RQLEN
_HEADER = struct.Struct("<IHHII")
_CHUNK_BYTES = 32 << 20  # only what is filled is ever touched
_DATAGRAM_BYTES = 64 << 10  # the kernel fills at most 32 KiB at a time (af_netlink.c netlink_dump)
_ATTEMPTS = 4
_TIMEOUT_S = 10.0


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

    Returns:
        Shape (sockets,), SOCKET_DTYPE, in the kernel's order.

    Raises:
        CannotObserveError: sock_diag is not there or refused.
    """
    stamp = Stamp(
        time_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC) if time_ns is None else time_ns,
        snapshot=snapshot,
        netns=netns_of(),
    )
    if ports is not None and not ports:
        families = [f for f in families if f is Query.UNIX]
    program = port_program(ports, local_only=local_ports_only) if ports else None
    parts = [_dump_one(query, _request(query, states, tcp_info, program), stamp, tcp_info) for query in families]
    rows = _together(parts)
    if ports and program is None:
        wanted = np.fromiter(ports, np.uint16, len(ports))
        keep = (rows["family"] == Family.UNIX) | np.isin(rows["local_port"], wanted)
        if not local_ports_only:
            keep |= np.isin(rows["peer_port"], wanted) & (rows["peer_port"] != 0)
        rows = rows[keep]
    return rows


def _request(query: Query, states: int, tcp_info: bool, program: bytes | None) -> bytes:
    """The request's body: struct unix_diag_req, or inet_diag_req_v2 with its byte code."""
    family, protocol = query.value
    if query is Query.UNIX:
        return struct.pack("<BBHIII8x", family, 0, 0, states & 0xFFFFFFFF, 0, _UDIAG_SHOW)
    ext = _EXT_INFO if tcp_info and protocol == TCP else 0
    # The cookie of a dump is INET_DIAG_NOCOOKIE, all ones.
    body = struct.pack("<BBBxI40x8s", family, protocol, ext, states & 0xFFFFFFFF, b"\xff" * 8)
    if program is not None:
        body += struct.pack("<HH", 4 + len(program), _INET_DIAG_REQ_BYTECODE) + program
    return body


def _dump_one(query: Query, body: bytes, stamp: Stamp, tcp_info: bool) -> npt.NDArray[np.void]:
    """One table, asked again where the kernel says it changed underneath; the last answer counts in any case."""

    def decode(words: Words) -> npt.NDArray[np.void]:
        if query is Query.UNIX:
            return decode_unix(words, stamp)
        return decode_inet(words, query.value[1], stamp, tcp_info=tcp_info)

    for _ in range(_ATTEMPTS):
        parts, interrupted = _exchange(query, body, decode)
        if not interrupted:
            break
    return _together(parts)


def _together(parts: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    """One table; no copy where only one of them has rows, for rows are wide."""
    filled = [part for part in parts if len(part)]
    if len(filled) == 1:
        return filled[0]
    return np.concatenate(filled) if filled else np.zeros(0, SOCKET_DTYPE)


def _exchange(
    query: Query, body: bytes, decode: Callable[[Words], npt.NDArray[np.void]]
) -> tuple[list[npt.NDArray[np.void]], bool]:
    """Ask once. The decoded chunks, and whether the kernel doubts the dump (NLM_F_DUMP_INTR).

    Datagrams are received one behind the other into one buffer, so that many are decoded at a time.
    """
    parts: list[npt.NDArray[np.void]] = []
    # Not cleared: a small answer touches only its own pages.
    view = np.empty(_CHUNK_BYTES + _DATAGRAM_BYTES, np.uint8).data
    sequence = int.from_bytes(os.urandom(4), "little")
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError as error:
        raise _refused(query, error.errno) from error
    with netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        netlink.bind((0, 0))
        port_id = netlink.getsockname()[0]
        header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, sequence, 0)
        try:
            netlink.sendto(header + body, (0, 0))
        except OSError as error:
            raise _refused(query, error.errno) from error
        filled, done = 0, False
        while not done:
            try:
                got = netlink.recv_into(view[filled:])
            except TimeoutError as error:
                raise CannotObserveError(f"the kernel never finished its list of {query.name} sockets") from error
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return parts, True
                raise
            kind = _HEADER.unpack_from(view, filled)[1] if got >= _HEADER.size else 0
            if kind == _NLMSG_ERROR:
                raise _refused(query, -struct.unpack_from("<i", view, filled + _HEADER.size)[0])
            # DONE comes alone or behind the last sockets; the random sequence number excludes a chance likeness.
            tail = filled + got - _DONE_BYTES
            interrupted = False
            if got >= _DONE_BYTES:
                length, kind, flags, echoed, to = _HEADER.unpack_from(view, tail)
                done = (length, kind, echoed, to) == (_DONE_BYTES, _NLMSG_DONE, sequence, port_id)
                if done:
                    interrupted = bool(flags & NLM_F_DUMP_INTR)
                    (result,) = struct.unpack_from("<i", view, tail + _HEADER.size)
                    if result < 0:
                        raise _refused(query, -result)
            filled += got
            if done or filled > _CHUNK_BYTES:
                # The copy is made by the gathers of `decode`; nothing of the buffer is kept.
                parts.append(decode(np.frombuffer(view, np.uint32, filled // 4)))
                filled = 0
    return parts, interrupted


def _refused(query: Query, number: int | None) -> CannotObserveError:
    reason = os.strerror(number) if number else "refused"
    module = {TCP: "tcp_diag", UDP: "udp_diag", UNIX: "unix_diag"}[query.value[1]]
    mend = f"modprobe {module}" if number == errno.ENOENT else "allow AF_NETLINK sockets (seccomp, SELinux, AppArmor)"
    return CannotObserveError(f"sock_diag gives no list of {query.name} sockets: {reason}", help_text=mend)
