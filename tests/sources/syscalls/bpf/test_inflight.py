"""Inputs of calls under way are read from the process's memory; whatever cannot be read is left out."""

from __future__ import annotations

import ctypes
import os
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, EventFlag, Events, Section
from sockscope.sources.syscalls.abi import Machine, abi_of
from sockscope.sources.syscalls.bpf.inflight import add_inputs
from sockscope.sources.syscalls.copy_plan import plans_of

PLANS = plans_of(abi_of(Machine.X86_64))


def events_of(*calls: tuple[Call, list[int]], flags: EventFlag = EventFlag.ENTERED_ONLY) -> Events:
    records = np.zeros(len(calls), EVENT_DTYPE)
    records["tid"] = os.getpid()
    records["flags"] = flags
    for row, (call, args) in enumerate(calls):
        records["call"][row] = call
        records["args"][row][: len(args)] = args
    return Events(records=records, blob=np.zeros(0, np.uint8))


def test_poll_connect_write_and_paths_of_this_process() -> None:
    polled = struct.pack("<ihhihh", 3, 1, 0, 4, 4, 0)
    texts = [polled, b"\2\0\0\x50\x7f\0\0\1" + bytes(8), b"x" * 100, b"/some/where\0"]
    memory = [ctypes.create_string_buffer(text, len(text)) for text in texts]
    poll, address, payload, path = map(ctypes.addressof, memory)
    events = add_inputs(
        events_of(
            (Call.poll, [poll, 2, 1000]),
            (Call.accept4, [3]),
            (Call.connect, [3, address, 16]),
            (Call.write, [1, payload, 100]),
            (Call.openat, [0, path, 0]),
        ),
        PLANS,
        64,
    )
    assert events.section(0, Section.POLLFDS) == polled
    assert events.records["blob_bytes"][1] == 0
    assert events.section(2, Section.SOCKADDR) == texts[1]
    assert events.section(3, Section.PAYLOAD) == b"x" * 64
    assert events.section(4, Section.PATH) == b"/some/where"
    assert events.records["flags"].tolist() == [1, 1, 1, 1 | EventFlag.TRUNCATED, 1]


def test_calls_that_ended_and_rings_are_left_as_they_are() -> None:
    buffer = ctypes.create_string_buffer(b"12345678")
    for flags in (EventFlag(0), EventFlag.NO_ENTRY, EventFlag.ENTERED_ONLY | EventFlag.URING):
        events = add_inputs(events_of((Call.write, [1, ctypes.addressof(buffer), 8]), flags=flags), PLANS, 64)
        assert len(events.blob) == 0


@given(
    st.sampled_from(sorted(PLANS)), st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 9), min_size=6, max_size=6)
)
def test_noise_for_arguments_does_no_harm(call: Call, args: list[int]) -> None:
    events = add_inputs(events_of((call, args)), PLANS, 64)
    assert len(events) == 1
