"""What calls still under way at the end were given: read from their processes' memory, which no program does then.

Such a call is told of when its thread does not run, so the kernel's part cannot read the thread's memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Events, Section, pack_section
from sockscope.sources.syscalls.bpf.decode import replace_blobs
from sockscope.sources.syscalls.copy_plan import How, Op, When

PATH_MAX = 4096


def add_inputs(events: Events, plans: Mapping[Call, tuple[Op, ...]], payload_bytes: int) -> Events:
    """Append the sections of what calls without an end were given, as far as a single copy tells it.

    Vectors and message headers are left out. Nothing is appended where the process has gone.
    """
    flags = events.records["flags"]
    rows = np.flatnonzero((flags & EventFlag.ENTERED_ONLY != 0) & (flags & EventFlag.URING == 0))
    fresh: dict[int, bytes] = {}
    for row in rows.tolist():
        wanted = [op for op in plans.get(events.call(row), ()) if op.when is When.END]
        if not wanted:
            continue
        args = [int(arg) for arg in events.records["args"][row]]
        try:
            memory = os.open(f"/proc/{int(events.records['tid'][row])}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            sections = [_copy(memory, op, args, payload_bytes) for op in wanted]
        finally:
            os.close(memory)
        added = b"".join(data for data, _ in sections)
        if added:
            fresh[row] = bytes(events.blob_of(row)) + added
            if any(cut for _, cut in sections):
                events.records["flags"][row] |= EventFlag.TRUNCATED
    return replace_blobs(events, fresh)


def _copy(memory: int, op: Op, args: list[int], payload_bytes: int) -> tuple[bytes, bool]:
    """(section or nothing, whether it holds less than what was given)."""
    size, cap = 0, op.cap
    match op.how:
        case How.FIXED:
            size = op.unit
        case How.LEN_ARG:
            size = args[op.len] & 0xFFFFFFFF
        case How.COUNT:
            size = (args[op.len] & 0xFFFFFFFF) * op.unit
            cap -= cap % op.unit
        case How.PAYLOAD:
            size, cap = args[op.len], payload_bytes
        case How.PATH:
            return _path(memory, args[op.ptr]), False
    if not args[op.ptr] or not min(size, cap):
        return b"", False
    try:
        data = os.pread(memory, min(size, cap), args[op.ptr])
    except (OSError, OverflowError):
        return b"", False
    return (pack_section(op.section, data) if data else b""), size > cap


def _path(memory: int, at: int) -> bytes:
    try:
        # The string may end just before a page that is not there: then less is read.
        data = os.pread(memory, PATH_MAX, at)
    except (OSError, OverflowError):
        return b""
    end = data.find(b"\0")
    return pack_section(Section.PATH, data[:end]) if at and end >= 0 else b""
