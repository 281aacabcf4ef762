"""The recorder's memory: what it holds, what it lets go, and that it does not grow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sockscope.analysis.live.live import LiveNarrator
from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, Events, Section, pack_section
from sockscope.model.seed import Seed
from sockscope.model.sockets import SOCKET_DTYPE
from sockscope.recording.keep import Kept, KeptSockets

SECOND = 1_000_000_000
PAYLOAD = pack_section(Section.PAYLOAD, b"x" * 64)


def traffic(first_ns: int, connections: int, reads: int, step_ns: int = 1000) -> Events:
    """Connections one after another: accept4, epoll_ctl, reads, setsockopt, close."""
    each = 4 + reads
    records = np.zeros(connections * each, EVENT_DTYPE)
    number = np.arange(len(records))
    place, fd = number % each, 7 + number // each % 1000
    records["enter_ns"] = first_ns + number * step_ns
    records["exit_ns"] = records["enter_ns"] + step_ns // 2
    records["tgid"] = records["tid"] = 100
    records["call"] = Call.recvfrom
    records["ret"] = 64
    records["args"][:, 0] = fd
    for at, call, first, ret in (
        (0, Call.accept4, 3, 0),
        (1, Call.epoll_ctl, 4, 0),
        (each - 2, Call.setsockopt, -1, 0),
    ):
        rows = place == at
        records["call"][rows], records["ret"][rows] = call, ret
        if first >= 0:
            records["args"][rows, 0] = first
    records["ret"][place == 0] = fd[place == 0]
    records["args"][place == 1, 1], records["args"][place == 1, 2] = 1, fd[place == 1]
    records["call"][place == each - 1], records["ret"][place == each - 1] = Call.close, 0
    has = records["call"] == Call.recvfrom
    records["blob_bytes"][has] = len(PAYLOAD)
    records["blob_offset"] = np.cumsum(records["blob_bytes"].astype(np.int64)) - records["blob_bytes"]
    return Events(records=records, blob=np.frombuffer(PAYLOAD * int(has.sum()), np.uint8))


def calls(kept: Kept) -> list[str]:
    return [Call(c).name for table in kept.window().tables for c in table.records["call"].tolist()]


def resident_mib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) >> 10


def test_within_the_window_all_is_there_as_it_came() -> None:
    kept = Kept(10 * SECOND)
    events = traffic(SECOND, 5, 3)
    for first in range(0, len(events), 10):
        part = Events(records=events.records[first : first + 10], blob=events.blob)
        kept.add(part, int(part.records["exit_ns"].max()))
    window = kept.window()
    assert window.since_ns is None
    assert window.event_count == len(events)
    whole = Events.concat(list(window.tables))
    for name in EVENT_DTYPE.names or ():
        if name != "blob_offset":
            assert np.array_equal(whole.records[name], events.records[name]), name
    assert [bytes(whole.blob_of(i)) for i in range(len(whole))] == [
        bytes(events.blob_of(i)) for i in range(len(events))
    ]


def test_what_a_batch_lies_in_may_be_overwritten() -> None:
    kept = Kept(10 * SECOND)
    events = traffic(SECOND, 1, 3)
    kept.add(events, SECOND)
    events.records["call"] = 0
    assert calls(kept) == ["accept4", "epoll_ctl", "recvfrom", "recvfrom", "recvfrom", "setsockopt", "close"]


def test_from_since_on_nothing_is_missing() -> None:
    kept = Kept(2 * SECOND)
    events = traffic(SECOND, 100, 16, step_ns=5_000_000)
    for first in range(0, len(events), 7):
        part = Events(records=events.records[first : first + 7], blob=events.blob)
        kept.add(part, int(part.records["exit_ns"].max()))
    window = kept.window()
    end = int(events.records["exit_ns"].max())
    assert window.since_ns is not None
    assert end - 2.2 * SECOND < window.since_ns <= end - 2 * SECOND
    held = np.concatenate([table.records["exit_ns"] for table in window.tables])
    due = events.records["exit_ns"][events.records["exit_ns"] >= window.since_ns]
    assert np.isin(due, held).all()


def test_an_idle_connection_keeps_how_it_was_used_last() -> None:
    kept = Kept(SECOND)
    events = traffic(SECOND, 1, 50)
    opened = Events(records=events.records[:-1], blob=events.blob)
    kept.add(opened, SECOND)
    for second in range(2, 6):
        kept.add(Events.empty(), second * SECOND)
    assert sorted(set(calls(kept))) == ["accept4", "epoll_ctl", "recvfrom", "setsockopt"]
    assert calls(kept).count("recvfrom") == 1


def test_a_window_too_large_becomes_shorter_and_says_so() -> None:
    kept = Kept(1000 * SECOND, window_bytes=4 << 20)
    at = SECOND
    for _ in range(20):
        events = traffic(at, 500, 16)
        at = int(events.records["exit_ns"].max())
        kept.add(events, at)
    window = kept.window()
    assert window.shortened
    assert window.since_ns is not None
    assert kept.held_bytes < 6 << 20
    assert window.lost_count == 0


def test_more_alive_than_there_is_room_for_is_counted_as_lost() -> None:
    kept = Kept(SECOND, control_bytes=1 << 20)
    at = SECOND
    for number in range(40):
        records = np.zeros(1000, EVENT_DTYPE)
        records["enter_ns"] = records["exit_ns"] = at + np.arange(1000)
        records["tgid"] = records["tid"] = 100
        records["call"], records["ret"] = Call.socket, 1000 * number + np.arange(1000)
        at += SECOND
        kept.add(Events(records=records, blob=np.zeros(0, np.uint8)), at)
    window = kept.window()
    assert window.lost_count > 0
    assert window.lost_count + window.event_count == 40_000
    assert kept.held_bytes < 4 << 20


def test_pruning_in_the_background_gives_the_same() -> None:
    with ThreadPoolExecutor(1) as spare:
        one, other = Kept(SECOND), Kept(SECOND, spare=spare)
        at = SECOND
        for _ in range(60):
            events = traffic(at, 300, 4, step_ns=100_000)
            at = int(events.records["exit_ns"].max())
            for kept in (one, other):
                kept.add(events, at)
    assert one.window().since_ns == other.window().since_ns
    newest = [Events.concat(list(k.window().tables)).records[-5000:] for k in (one, other)]
    assert np.array_equal(newest[0]["exit_ns"], newest[1]["exit_ns"])


def test_memory_is_flat_over_ten_million_events() -> None:
    """The recorder and the live view, fed 10 million events of 100 000 connections."""
    kept, view = Kept(SECOND), LiveNarrator(Seed.empty())
    at, total, measured = SECOND, 0, 0
    while total < 10_000_000:
        events = traffic(at, 400, 96)
        at = int(events.records["exit_ns"].max())
        kept.add(events, at)
        view.feed(events, at, max_lines=5)
        total += len(events)
        if total <= 2_000_000:
            measured = resident_mib()
    assert kept.held_bytes < 300 << 20
    assert resident_mib() - measured < 48


def test_snapshots_of_the_window_and_the_newest_however_old() -> None:
    kept = KeptSockets(10 * SECOND)
    for second in range(30):
        rows = np.zeros(2, SOCKET_DTYPE)
        rows["time_ns"], rows["snapshot"] = second * SECOND, second
        kept.add(rows)
        kept.add(rows[:0])
    assert [int(s["time_ns"][0]) // SECOND for s in kept.snapshots()] == list(range(19, 30))
    assert [int(s["snapshot"][0]) for s in kept.snapshots()] == list(range(11))
    small = KeptSockets(10 * SECOND, most_bytes=1)
    small.add(rows)
    small.add(rows)
    assert len(small.snapshots()) == 1
