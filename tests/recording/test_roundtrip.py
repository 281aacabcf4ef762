"""A recording written is a recording read; cut anywhere, what is whole is still there."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockscope.errors import DamagedInputError, UsageError
from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE, EventFlag, Events, Section, pack_section
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage, SyscallCoverage, Target
from sockscope.model.seed import SEED_EPOLL_DTYPE, SEED_FD_DTYPE, Seed, SeedProcess
from sockscope.model.sockets import OWNER_DTYPE, SOCKET_DTYPE, Sockets
from sockscope.recording import layout
from sockscope.recording.reader import read_recording
from sockscope.recording.writer import Writer

INFO = SessionInfo(
    target=Target(command=("srv", "-p"), pids=(7,), ports=(80,)),
    started_realtime_ns=5,
    started_ns=1,
    ended_ns=2,
    clock_samples=((1, 5), (2, 6)),
    notes=("a note",),
)
PROCESS = SeedProcess(tgid=7, ppid=1, tids=(7, 8), comm="srv", exe="/bin/srv", cmdline=("srv", "-p"), netns=1)


def some_events(count: int, first_ns: int = 0) -> Events:
    records = np.zeros(count, EVENT_DTYPE)
    parts = []
    at = 0
    for i in range(count):
        blob = pack_section(Section.PAYLOAD, bytes([i % 251]) * (i % 5)) if i % 3 else b""
        records[i]["blob_offset"], records[i]["blob_bytes"] = at, len(blob)
        at += len(blob)
        parts.append(blob)
    records["enter_ns"] = first_ns + np.arange(count)
    records["call"] = Call.recvfrom
    records["args"] = np.arange(count * 6).reshape(-1, 6)
    records["ret"] = -np.arange(count)
    return Events(records=records, blob=np.frombuffer(b"".join(parts), np.uint8))


def write(folder: Path, batches: list[Events], *, finish: bool = True) -> None:
    writer = Writer(folder)
    fds = np.zeros(2, SEED_FD_DTYPE)
    fds["fd"] = [3, 4]
    writer.begin(INFO, Seed(processes=(PROCESS,), fds=fds, epolls=np.zeros(1, SEED_EPOLL_DTYPE)))
    for batch in batches:
        writer.write_events(batch)
    rows = np.zeros(3, SOCKET_DTYPE)
    rows["local"][1] = np.arange(16)
    rows["path"][2] = b"/run/x.sock"
    writer.write_sockets(rows)
    owners = np.zeros(1, OWNER_DTYPE)
    owners["inode"] = 99
    if finish:
        writer.finish(INFO, Sockets(records=rows, owners=owners))


def assert_same(ours: Events, theirs: Events) -> None:
    assert len(ours) == len(theirs)
    for name in EVENT_DTYPE.names or ():
        if name != "blob_offset":
            assert np.array_equal(ours.records[name], theirs.records[name]), name
    for i in range(len(ours)):
        assert bytes(ours.blob_of(i)) == bytes(theirs.blob_of(i))


def test_roundtrip(tmp_path: Path) -> None:
    first, second = some_events(10), some_events(7, 100)
    write(tmp_path / "r", [first, second])
    recording = read_recording(tmp_path / "r")
    assert recording.damage == ()
    assert recording.info == INFO
    assert recording.seed.processes == (PROCESS,)
    assert recording.seed.fds["fd"].tolist() == [3, 4]
    assert_same(recording.events, Events.concat([first, second]))
    assert recording.sockets.records["local"][1].tolist() == list(range(16))
    assert recording.sockets.records["path"][2] == b"/run/x.sock"
    assert recording.sockets.owners["inode"].tolist() == [99]


def test_blobs_out_of_row_order_are_gathered(tmp_path: Path) -> None:
    events = some_events(12)
    shuffled = Events(records=events.records[::-1].copy(), blob=events.blob)
    write(tmp_path / "r", [shuffled])
    assert_same(read_recording(tmp_path / "r").events, shuffled)


def test_files_are_private(tmp_path: Path) -> None:
    write(tmp_path / "r", [some_events(3)])
    assert {oct(p.stat().st_mode & 0o777) for p in (tmp_path / "r").iterdir()} == {"0o600"}


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1))
def test_cut_anywhere_keeps_the_whole_batches(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    folder = tmp_path_factory.mktemp("cut") / "r"
    batches = [some_events(5, i * 10) for i in range(4)]
    write(folder, batches, finish=False)
    path = folder / layout.SYSCALLS
    os.truncate(path, int(path.stat().st_size * cut))
    got = read_recording(folder)
    assert len(got.events) % 5 == 0
    assert_same(got.events, Events.concat(batches[: len(got.events) // 5]))


@settings(max_examples=60, deadline=None)
@given(
    at=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=40),
    name=st.sampled_from([layout.SYSCALLS, layout.SOCKETS]),
)
def test_noise_is_told_never_raised(
    tmp_path_factory: pytest.TempPathFactory, at: float, noise: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("noise") / "r"
    write(folder, [some_events(5)])
    path = folder / name
    data = bytearray(path.read_bytes())
    start = int(at * len(data))
    data[start : start + len(noise)] = noise
    path.write_bytes(data)
    with contextlib.suppress(DamagedInputError):
        read_recording(folder)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": "other", "version": 1}', "not a sockscope recording"),
        ('{"format": "sockscope-recording", "version": 99}', "reads up to 1"),
        ('{"format": "sockscope-recording", "version": 1}', "damaged"),
    ],
)
def test_bad_manifests(tmp_path: Path, manifest: str, says: str) -> None:
    (tmp_path / layout.MANIFEST).write_text(manifest)
    with pytest.raises(DamagedInputError, match=says):
        read_recording(tmp_path)


def test_not_a_recording(tmp_path: Path) -> None:
    with pytest.raises(DamagedInputError, match="not a recording"):
        read_recording(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_recording(tmp_path / "none")


def test_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        Writer(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        Writer(tmp_path / "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_is_counted_not_raised(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    (tmp_path / "r" / layout.SYSCALLS).symlink_to("/dev/full")
    writer.begin(INFO, Seed.empty())
    writer.write_events(some_events(5000))
    writer.write_events(some_events(10))
    assert writer.problem is not None
    assert "disk is full" in writer.problem
    assert writer.lost_event_count == 5010
    writer.finish(INFO)


def test_a_file_that_is_gone_counts_as_not_recorded(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    info = replace(
        INFO,
        syscalls=SyscallCoverage(engine="ptrace", event_count=3),
        packets=PacketCoverage(available=True, seen_count=2),
        sockets=SocketCoverage(snapshot_count=1),
    )
    writer.begin(info, Seed.empty())
    writer.write_events(some_events(3))
    writer.finish(info, Sockets(records=np.zeros(0, SOCKET_DTYPE), owners=np.zeros(0, OWNER_DTYPE)))
    assert read_recording(tmp_path / "r").damage == (f"{layout.PACKETS} is missing",)
    for name in (layout.SYSCALLS, layout.SOCKETS, layout.DESCRIPTORS):
        (tmp_path / "r" / name).unlink()
    found = read_recording(tmp_path / "r")
    assert set(found.damage) == {
        f"{name} is missing" for name in (layout.SYSCALLS, layout.PACKETS, layout.SOCKETS, layout.DESCRIPTORS)
    }
    assert (found.info.syscalls.engine, found.info.packets.available) == ("", False)
    assert found.info.sockets.snapshot_count == 0


def test_kernel_events_and_the_io_uring_flag_are_kept(tmp_path: Path) -> None:
    ends = pack_section(Section.SOCKADDR, bytes(range(28))) + pack_section(Section.PEER, bytes(range(28, 56)))
    calls = [Call.sock_state, Call.tcp_retransmit, Call.tcp_reset_sent, Call.tcp_reset_received, Call.recvfrom]
    records = np.zeros(len(calls), EVENT_DTYPE)
    records["call"] = calls
    records["args"][:, :3] = (1 << 63, 1, 8)
    records["enter_ns"] = records["exit_ns"] = np.arange(len(calls))
    records["blob_bytes"][:4] = len(ends)
    records["blob_offset"] = np.arange(len(calls)) * len(ends)
    records["flags"][4] = EventFlag.URING
    records["tgid"][4] = records["tid"][4] = 7
    ours = Events(records=records, blob=np.frombuffer(ends * 4, np.uint8))
    write(tmp_path / "r", [ours])
    theirs = read_recording(tmp_path / "r").events
    assert_same(ours, theirs)
    assert [theirs.call(row) for row in range(len(calls))] == calls
    assert theirs.section(0, Section.PEER) == bytes(range(28, 56))
