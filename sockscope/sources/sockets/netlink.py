"""Questions to NETLINK_SOCK_DIAG and their raw answers. No numpy: a command asks while it still imports.

Source: netlink(7), sock_diag(7), net/ipv4/inet_diag.c, net/unix/diag.c.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from enum import Enum
from types import TracebackType

from sockscope.errors import CannotObserveError
from sockscope.model.sockaddr import Family
from sockscope.sources.sockets.fd_scan import library

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

Chunk = tuple[memoryview, bool]
"""Netlink messages one behind the other; and whether the kernel doubts the whole dump (NLM_F_DUMP_INTR)."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLM_F_DUMP_INTR = 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DONE_BYTES = 20
_INET_DIAG_REQ_BYTECODE = 1
_EXT_INFO = 1 << (2 - 1)
_UDIAG_SHOW = 0x1 | 0x4 | 0x10  # NAME, PEER, RQLEN
_HEADER = struct.Struct("<IHHII")
_CHUNK_BYTES = 32 << 20  # only what is filled is ever touched
_TIMEOUT_S = 10


def request(query: Query, *, states: int = ALL_STATES, tcp_info: bool = True, program: bytes | None = None) -> bytes:
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


def answers(query: Query, body: bytes) -> Iterator[Chunk]:
    """Ask once, in the calling thread's network namespace.

    Yields:
        The answer in large chunks, each in memory of its own; doubts come with the last one.

    Raises:
        CannotObserveError: sock_diag is not there, refused, or does not come to an end.
    """
    sequence = int.from_bytes(os.urandom(4), "little")
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError as error:
        raise _refused(query, error.errno) from error
    with netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _TIMEOUT_S, 0))
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        netlink.bind((0, 0))
        port_id = netlink.getsockname()[0]
        header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, sequence, 0)
        try:
            netlink.sendto(header + body, (0, 0))
        except OSError as error:
            raise _refused(query, error.errno) from error
        done = False
        while not done:
            view, last, reason = _receive(netlink, sequence, port_id)
            done, doubted = _end(query, view, last, (sequence, port_id))
            if reason in (0, errno.EINTR):
                # Interrupted: the signal's handler has run by now.
                if len(view):
                    yield view, doubted
            elif reason == errno.ENOBUFS:
                yield view, True
                return
            elif reason in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise CannotObserveError(f"the kernel never finished its list of {query.name} sockets")
            else:
                raise OSError(reason, os.strerror(reason))


def _receive(netlink: socket.socket, sequence: int, port_id: int) -> tuple[memoryview, int, int]:
    """What was received, where its last datagram begins, and errno."""
    # Its pages come as they are filled, and go with the last view.
    memory = mmap.mmap(-1, _CHUNK_BYTES)
    last, reason = ctypes.c_int64(), ctypes.c_int32()
    filled = library().ss_receive(
        netlink.fileno(),
        (ctypes.c_char * len(memory)).from_buffer(memory),
        ctypes.c_int64(len(memory)),
        ctypes.c_uint32(sequence),
        ctypes.c_uint32(port_id),
        ctypes.byref(last),
        ctypes.byref(reason),
    )
    return memoryview(memory)[:filled], last.value, reason.value


def _end(query: Query, view: memoryview, last: int, expected: tuple[int, int]) -> tuple[bool, bool]:
    """Whether these datagrams end the dump, and whether the kernel doubts it."""
    size = len(view) - last
    if size >= _HEADER.size and _HEADER.unpack_from(view, last)[1] == _NLMSG_ERROR:
        raise _refused(query, -struct.unpack_from("<i", view, last + _HEADER.size)[0])
    if size < _DONE_BYTES:
        return False, False
    tail = len(view) - _DONE_BYTES
    length, kind, flags, *echoed = _HEADER.unpack_from(view, tail)
    if (length, kind, *echoed) != (_DONE_BYTES, _NLMSG_DONE, *expected):
        return False, False
    (result,) = struct.unpack_from("<i", view, tail + _HEADER.size)
    if result < 0:
        raise _refused(query, -result)
    return True, bool(flags & _NLM_F_DUMP_INTR)


class Ahead:
    """Tables asked for in a thread of its own, to be taken by `sock_diag.dump`; a context manager that waits for it.

    Args:
        queries: which tables, of the caller's network namespace, all states.
        tcp_info: as `dump` takes it.
    """

    def __init__(self, queries: Iterable[Query], *, tcp_info: bool) -> None:
        self.time_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        """CLOCK_MONOTONIC of the look."""
        self._bodies = {query: request(query, tcp_info=tcp_info) for query in queries}
        self._found: dict[tuple[Query, bytes], list[Chunk]] = {}
        self._thread = threading.Thread(target=self._run, name="sockets-ahead", daemon=True)
        self._thread.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join()

    def take(self, query: Query, body: bytes) -> list[Chunk]:
        """The answer to this very request, once; empty: it was not asked, or is to be asked again."""
        self._thread.join()
        return self._found.pop((query, body), [])

    def _run(self) -> None:
        for query, body in self._bodies.items():
            try:
                self._found[query, body] = list(answers(query, body))
            except (CannotObserveError, OSError):
                return  # whoever wants it asks again, and hears why


def _refused(query: Query, number: int | None) -> CannotObserveError:
    reason = os.strerror(number) if number else "refused"
    module = {TCP: "tcp_diag", UDP: "udp_diag", UNIX: "unix_diag"}[query.value[1]]
    mend = f"modprobe {module}" if number == errno.ENOENT else "allow AF_NETLINK sockets (seccomp, SELinux, AppArmor)"
    return CannotObserveError(f"sock_diag gives no list of {query.name} sockets: {reason}", help_text=mend)
