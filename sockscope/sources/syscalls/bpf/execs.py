"""What a program that was exec'ed is really called: the kernel's part knows the name that was asked for only."""

from __future__ import annotations

import os

import numpy as np

from sockscope.model.calls import Call
from sockscope.model.events import Events, Section, pack_section, unpack_sections
from sockscope.sources.syscalls.bpf.decode import replace_blobs


def name_programs(events: Events) -> Events:
    """Replace the PATH of task_exec events by /proc/TID/exe, where the process still runs that program."""
    rows = np.flatnonzero(events.records["call"] == Call.task_exec)
    # Of several by one task the last alone can be what runs now.
    last = {int(events.records["tid"][row]): int(row) for row in rows}
    fresh: dict[int, bytes] = {}
    for tid, row in last.items():
        try:
            path = os.fsencode(os.readlink(f"/proc/{tid}/exe"))
        except OSError:
            continue
        fresh[row] = _with_path(bytes(events.blob_of(row)), path)
    return replace_blobs(events, fresh)


def _with_path(blob: bytes, path: bytes) -> bytes:
    others = [
        pack_section(Section(kind), data, errno) for kind, errno, data in unpack_sections(blob) if kind != Section.PATH
    ]
    return pack_section(Section.PATH, path) + b"".join(others)
