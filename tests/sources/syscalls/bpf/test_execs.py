"""A program's path is the one that runs, as long as it runs."""

from __future__ import annotations

import os

import numpy as np

from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, Events, Section, pack_section
from sockscope.sources.syscalls.bpf.execs import name_programs


def events_of(*rows: tuple[Call, int, bytes]) -> Events:
    records = np.zeros(len(rows), EVENT_DTYPE)
    lengths = np.array([len(blob) for _, _, blob in rows])
    records["call"] = [call for call, _, _ in rows]
    records["tid"] = [tid for _, tid, _ in rows]
    records["blob_bytes"] = lengths
    records["blob_offset"] = np.cumsum(lengths) - lengths
    return Events(records=records, blob=np.frombuffer(b"".join(blob for _, _, blob in rows), np.uint8))


def test_the_last_exec_of_a_living_task_is_named() -> None:
    asked = pack_section(Section.PATH, b"./p") + pack_section(Section.COMM, b"p")
    before = events_of(
        (Call.execve, os.getpid(), pack_section(Section.PATH, b"./first")),
        (Call.task_exec, os.getpid(), asked),
        (Call.task_exec, 1 << 30, asked),
        (Call.task_exec, os.getpid(), asked),
        (Call.write, os.getpid(), pack_section(Section.PAYLOAD, b"x")),
    )
    events = name_programs(before)
    paths = [events.section(row, Section.PATH) for row in range(4)]
    assert paths == [b"./first", b"./p", b"./p", os.fsencode(os.readlink("/proc/self/exe"))]
    assert [events.section(row, Section.COMM) for row in (1, 2, 3)] == [b"p"] * 3
    assert events.section(4, Section.PAYLOAD) == b"x"


def test_without_an_exec_nothing_is_copied() -> None:
    events = events_of((Call.write, 1, b""))
    assert name_programs(events) is events
