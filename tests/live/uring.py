"""A raw io_uring in plain ctypes, and servers that speak through one: for the live tests.

As a program (`python -m tests.live.uring MODE COUNT`) it serves COUNT connections on a free port of 127.0.0.1: prints
the port, waits for a line, serves each connection (receive, answer `ANSWER`, close), prints the listener's and the
connections' descriptors, and waits again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import partial

SETUP, ENTER, REGISTER = 425, 426, 427
"""Syscall numbers, the same on every architecture."""
GETEVENTS, SQ_WAKEUP = 1, 2
SQES, SQE_BYTES, CQE_BYTES = 0x10000000, 64, 16
PARAMS_BYTES = 120
REGISTER_FILES = 2
ACCEPT_MULTISHOT, RECV_MULTISHOT = 1, 2
"""In the sqe's ioprio. Source: io_uring_enter(2)."""
MORE, BUFFER = 2, 1
"""Completion flags IORING_CQE_F_*."""

QUESTION = b"GET / HTTP/1.1\r\nHost: ring\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nrings"
BUFFER_BYTES = 512


class Op(IntEnum):
    """IORING_OP_*."""

    READV = 1
    WRITEV = 2
    SENDMSG = 9
    RECVMSG = 10
    ACCEPT = 13
    CONNECT = 16
    CLOSE = 19
    READ = 22
    WRITE = 23
    SEND = 26
    RECV = 27
    SPLICE = 30
    PROVIDE_BUFFERS = 31
    SHUTDOWN = 34
    SOCKET = 45
    URING_CMD = 46
    BIND = 56
    LISTEN = 57


class Sqe(IntFlag):
    """IOSQE_*."""

    FIXED_FILE = 1
    LINK = 4
    ASYNC = 16
    BUFFER_SELECT = 32
    CQE_SKIP = 64


class Setup(IntFlag):
    """IORING_SETUP_*."""

    SQPOLL = 1 << 1
    SINGLE_ISSUER = 1 << 12
    DEFER_TASKRUN = 1 << 13


_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *args: int | ctypes.Array[ctypes.c_char] | None) -> int:
    done = int(_libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args)))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


class Ring:
    """One ring. Buffers handed to it must outlive their completion."""

    def __init__(self, entries: int = 64, flags: int = 0) -> None:
        params = ctypes.create_string_buffer(struct.pack("<5I", 0, 0, flags, 0, 2000), PARAMS_BYTES)
        self.fd = _call(SETUP, entries, params)
        self._flags = flags
        self._entries, cq_entries = struct.unpack_from("<2I", params, 0)
        sq = struct.unpack_from("<8I", params, 40)
        cq = struct.unpack_from("<8I", params, 80)
        ring_bytes = max(sq[6] + self._entries * 4, cq[5] + cq_entries * CQE_BYTES)
        # IORING_FEAT_SINGLE_MMAP: both rings lie in one mapping.
        self._ring = mmap.mmap(self.fd, ring_bytes)
        self._sqes = mmap.mmap(self.fd, self._entries * SQE_BYTES, offset=SQES)
        self._sq_tail, self._sq_flags, self._array = sq[1], sq[4], sq[6]
        self._cq_head, self._cq_tail, self._cqes, self._cq_mask = cq[0], cq[1], cq[5], cq_entries - 1
        self._unsubmitted = 0

    def _word(self, at: int) -> int:
        return int(struct.unpack_from("<I", self._ring, at)[0])

    def put(
        self,
        op: Op,
        fd: int,
        address: int = 0,
        length: int = 0,
        *,
        offset: int = 0,
        op_flags: int = 0,
        flags: int = 0,
        ioprio: int = 0,
        user_data: int = 0,
        group: int = 0,
        file_index: int = 0,
        address3: int = 0,
    ) -> None:
        """One entry into the submission queue."""
        tail = self._word(self._sq_tail)
        slot = tail % self._entries
        entry = struct.pack(
            "<BBHiQQIIQHHiQ",
            *(op, flags, ioprio, fd, offset, address, length),
            *(op_flags, user_data, group, 0, file_index, address3),
        )
        self._sqes[slot * SQE_BYTES : (slot + 1) * SQE_BYTES] = entry.ljust(SQE_BYTES, b"\0")
        struct.pack_into("<I", self._ring, self._array + slot * 4, slot)
        struct.pack_into("<I", self._ring, self._sq_tail, (tail + 1) & 0xFFFFFFFF)
        self._unsubmitted += 1

    def submit(self, wait: int = 0) -> None:
        """Hand over what was put; return once `wait` completions are there."""
        flags = GETEVENTS if wait else 0
        if self._flags & Setup.SQPOLL and self._word(self._sq_flags) & 1:
            flags |= SQ_WAKEUP
        _call(ENTER, self.fd, self._unsubmitted, wait, flags, None, 0)
        self._unsubmitted = 0

    def completions(self) -> Iterator[tuple[int, int, int]]:
        """(user_data, res, flags) of what has completed."""
        while (head := self._word(self._cq_head)) != self._word(self._cq_tail):
            at = self._cqes + (head & self._cq_mask) * CQE_BYTES
            found = struct.unpack_from("<QiI", self._ring, at)
            struct.pack_into("<I", self._ring, self._cq_head, (head + 1) & 0xFFFFFFFF)
            yield found

    def one(self) -> tuple[int, int, int]:
        """Submit, and wait for one completion."""
        self.submit(wait=1)
        return next(self.completions())

    def register_files(self, fds: list[int]) -> None:
        table = ctypes.create_string_buffer(struct.pack(f"<{len(fds)}i", *fds))
        _call(REGISTER, self.fd, REGISTER_FILES, table, len(fds))

    def close(self) -> None:
        self._ring.close()
        self._sqes.close()
        os.close(self.fd)


def is_allowed() -> bool:
    """Whether this machine lets root make a ring."""
    try:
        Ring(1).close()
    except OSError:
        return False
    return True


def result(
    ring: Ring,
    op: Op,
    fd: int,
    address: int = 0,
    length: int = 0,
    *,
    offset: int = 0,
    op_flags: int = 0,
    flags: int = 0,
) -> int:
    """One operation, alone; its result."""
    ring.put(op, fd, address, length, offset=offset, op_flags=op_flags, flags=flags)
    return ring.one()[1]


def _serve_singly(ring: Ring, listener: int, count: int, *, flags: int = 0) -> list[int]:
    """One operation at a time."""
    address = ctypes.create_string_buffer(128)
    length = ctypes.create_string_buffer(struct.pack("<I", 128))
    question = ctypes.create_string_buffer(BUFFER_BYTES)
    answer = ctypes.create_string_buffer(ANSWER, len(ANSWER))
    fds = []
    for _ in range(count):
        fd = result(ring, Op.ACCEPT, listener, ctypes.addressof(address), offset=ctypes.addressof(length), flags=flags)
        assert result(ring, Op.RECV, fd, ctypes.addressof(question), BUFFER_BYTES, flags=flags) == len(QUESTION)
        assert result(ring, Op.SEND, fd, ctypes.addressof(answer), len(ANSWER), flags=flags) == len(ANSWER)
        assert result(ring, Op.CLOSE, fd, flags=flags) == 0
        fds.append(fd)
    return fds


def _serve_linked(ring: Ring, listener: int, count: int) -> list[int]:
    """Vectors, a message, and a chain whose close says nothing."""
    question = ctypes.create_string_buffer(BUFFER_BYTES)
    answer = ctypes.create_string_buffer(ANSWER, len(ANSWER))
    vector_in = ctypes.create_string_buffer(struct.pack("<2Q", ctypes.addressof(question), BUFFER_BYTES))
    vector_out = ctypes.create_string_buffer(struct.pack("<2Q", ctypes.addressof(answer), len(ANSWER)))
    message = ctypes.create_string_buffer(
        struct.pack("<QIIQQQQII", 0, 0, 0, ctypes.addressof(vector_out), 1, 0, 0, 0, 0)
    )
    fds = []
    for _ in range(count):
        fd = result(ring, Op.ACCEPT, listener)
        assert result(ring, Op.READV, fd, ctypes.addressof(vector_in), 1) == len(QUESTION)
        ring.put(Op.SENDMSG, fd, ctypes.addressof(message), 1, flags=Sqe.LINK)
        ring.put(Op.SHUTDOWN, fd, 0, socket.SHUT_WR, flags=Sqe.LINK)
        ring.put(Op.CLOSE, fd, flags=Sqe.CQE_SKIP)
        ring.submit(wait=2)
        assert [res for _, res, _ in ring.completions()] == [len(ANSWER), 0]
        fds.append(fd)
    return fds


def _serve_multishot(ring: Ring, listener: int, count: int) -> list[int]:
    """One accept for all connections, one receive for all of a connection's data, into buffers the kernel chooses."""
    space = ctypes.create_string_buffer(BUFFER_BYTES * 2 * count)
    answer = ctypes.create_string_buffer(ANSWER, len(ANSWER))
    # Buffers: how many in `fd`, the bytes of each in `length`.
    ring.put(Op.PROVIDE_BUFFERS, 2 * count, ctypes.addressof(space), BUFFER_BYTES, group=7)
    assert ring.one()[1] >= 0
    ring.put(Op.ACCEPT, listener, ioprio=ACCEPT_MULTISHOT, user_data=Op.ACCEPT)
    fds: list[int] = []
    closed = 0
    while closed < count:
        ring.submit(wait=1)
        for user_data, res, _ in list(ring.completions()):
            op, fd = user_data & 0xFF, user_data >> 8
            if op == Op.ACCEPT:
                fds.append(res)
                ring.put(
                    *(Op.RECV, res),
                    ioprio=RECV_MULTISHOT,
                    flags=Sqe.BUFFER_SELECT,
                    group=7,
                    user_data=Op.RECV | res << 8,
                )
            elif op == Op.RECV and res > 0:
                ring.put(Op.SEND, fd, ctypes.addressof(answer), len(ANSWER), user_data=Op.SEND | fd << 8)
            elif op == Op.RECV:  # the end of the connection, which ends the multishot
                ring.put(Op.CLOSE, fd, user_data=Op.CLOSE | fd << 8)
            elif op == Op.CLOSE:
                closed += 1
    return fds


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How a server uses its ring."""

    serve: Callable[[Ring, int, int], list[int]]
    setup: int = 0


MODES = {
    "single": Mode(serve=_serve_singly),
    "workers": Mode(serve=partial(_serve_singly, flags=Sqe.ASYNC)),
    "deferred": Mode(serve=_serve_singly, setup=Setup.SINGLE_ISSUER | Setup.DEFER_TASKRUN),
    "sqpoll": Mode(serve=_serve_singly, setup=Setup.SQPOLL),
    "linked": Mode(serve=_serve_linked),
    "multishot": Mode(serve=_serve_multishot),
}


def main(name: str, count: int) -> None:
    mode = MODES[name]
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        print(listener.getsockname()[1], flush=True)
        sys.stdin.readline()
        ring = Ring(flags=mode.setup)
        fds = mode.serve(ring, listener.fileno(), count)
        print(listener.fileno(), *fds, flush=True)
        sys.stdin.readline()
        ring.close()


def ask(port: int) -> bytes:
    """One connection: asked, answered, closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(QUESTION)
        got = b""
        while len(got) < len(ANSWER) and (more := client.recv(1024)):
            got += more
        return got


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
