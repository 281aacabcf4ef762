"""Gives the target its CPU affinity back when its tracer is gone, however it went.

A process of its own, in its own session, started by the tracer before it pins anything. It reads from a
pipe which tasks were pinned; the end of the pipe is the tracer's end. Nothing else restores affinity, so the
way that SIGKILL needs is the way that is always taken.
"""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

NEW = 1
GONE = 2
MASK = 3
RECORD = struct.Struct("<iii132s")
"""op, tid (of a MASK: its number), mask number, CPU bits. Below PIPE_BUF, so writes do not mix. csrc/tasks.c."""
SCANS_MAX = 5


def encode(op: int, tid: int, mask: int, cpus: set[int] | None = None) -> bytes:
    """One message."""
    bits = sum(1 << cpu for cpu in cpus or ())
    return RECORD.pack(op, tid, mask, bits.to_bytes(132, "little"))


class Book:
    """What the guardian knows: which tasks are pinned, and their own masks."""

    def __init__(self) -> None:
        self.masks: dict[int, set[int]] = {}
        self.tasks: dict[int, int] = {}

    def read(self, record: bytes) -> None:
        """Take one message."""
        op, tid, mask, bits = RECORD.unpack(record)
        if op == MASK:
            number = int.from_bytes(bits, "little")
            self.masks[tid] = {cpu for cpu in range(number.bit_length()) if number >> cpu & 1}
        elif op == NEW:
            self.tasks[tid] = mask
        elif op == GONE:
            self.tasks.pop(tid, None)


def start(cpu: int, keep_open: int) -> int:
    """Start a guardian; returns the pipe to tell it through (non-blocking).

    Call from a process with one thread. `keep_open` stays open in it until its work is done.
    """
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        # A second fork: the tracer's wait4(-1) must see tracees only.
        if os.fork() == 0:
            try:
                os.close(writer)
                _guard(reader, cpu, keep_open)
            finally:
                os._exit(0)
        os._exit(0)
    os.waitpid(first, 0)
    os.close(reader)
    os.set_blocking(writer, False)
    return writer


def _guard(reader: int, cpu: int, keep_open: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in (reader, keep_open):
            try:
                os.close(int(name))
            except OSError:
                continue
    book = Book()
    rest = b""
    while data := os.read(reader, 1 << 16):
        rest += data
        whole = len(rest) - len(rest) % RECORD.size
        for at in range(0, whole, RECORD.size):
            book.read(rest[at : at + RECORD.size])
        rest = rest[whole:]
    restore(book, cpu)


def restore(book: Book, cpu: int) -> None:
    """Every known task, then what they started meanwhile, until nothing new is found."""
    for tid, mask in book.tasks.items():
        _restore_one(tid, book.masks.get(mask), cpu)
    for _ in range(SCANS_MAX):
        found = _newcomers(book, cpu)
        if not found:
            return
        for tid, mask in found.items():
            book.tasks[tid] = mask
            _restore_one(tid, book.masks.get(mask), cpu)


def _restore_one(tid: int, mask: set[int] | None, cpu: int) -> None:
    """Only where it is still pinned: the program may have chosen for itself."""
    try:
        if mask and os.sched_getaffinity(tid) == {cpu}:
            os.sched_setaffinity(tid, mask)
    except OSError:
        return


def _newcomers(book: Book, cpu: int) -> dict[int, int]:
    """Threads and children of known tasks that are pinned and not known: made after the tracer's last word."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        tgid = int(folder.name)
        try:
            ppid = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            mask = book.tasks.get(tgid, book.tasks.get(ppid))
            if mask is None:
                continue
            for name in os.listdir(folder / "task"):
                tid = int(name)
                if tid not in book.tasks and os.sched_getaffinity(tid) == {cpu}:
                    found[tid] = mask
        except (OSError, IndexError, ValueError):
            continue
    return found
