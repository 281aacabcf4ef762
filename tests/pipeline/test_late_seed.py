"""A process that comes under watch late: its descriptors are added, and override nothing that was witnessed since."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sockscope.model.calls import Call
from sockscope.model.descriptors import How
from sockscope.model.seed import SEED_EPOLL_DTYPE, SEED_FD_DTYPE, FileKind, Seed, SeedProcess
from sockscope.recording.reader import read_recording
from sockscope.recording.writer import Writer
from tests.analysis.builders import START_NS, Script, address
from tests.recording.test_roundtrip import INFO

MS = 1_000_000
CLIENT = address("10.0.0.9", 4000)


def process(tgid: int) -> SeedProcess:
    return SeedProcess(tgid=tgid, ppid=1, tids=(tgid,), comm="x", exe="/x", cmdline=(), netns=1)


def seed(tgid: int, *fds: tuple[int, int, int], interests: tuple[int, ...] = ()) -> Seed:
    """fds: (fd, inode, open file)."""
    held = np.zeros(len(fds), SEED_FD_DTYPE)
    held["tgid"], held["kind"] = tgid, FileKind.SOCKET
    for at, (fd, inode, number) in enumerate(fds):
        held[at]["fd"], held[at]["inode"], held[at]["open_file"] = fd, inode, number
    epolls = np.zeros(len(interests), SEED_EPOLL_DTYPE)
    epolls["tgid"], epolls["fd"] = tgid, interests
    return Seed(processes=(process(tgid),), fds=held, epolls=epolls)


def test_seeds_add_up() -> None:
    first = seed(1, (3, 30, 1), (4, 40, 2), interests=(3,))
    both = first.plus(seed(2, (3, 50, 1), interests=(3, 3)))
    assert [p.tgid for p in both.processes] == [1, 2]
    assert both.fds["open_file"].tolist() == [1, 2, 3]
    assert both.epolls["tgid"].tolist() == [1, 2, 2]
    again = both.plus(seed(1, (9, 90, 1), interests=(9,)))
    assert again.fds.tolist() == both.fds.tolist()
    assert again.epolls.tolist() == both.epolls.tolist()
    assert len(Seed.empty().plus(first).fds) == 2


def test_a_recording_takes_it_and_keeps_what_it_had(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    writer.begin(INFO, seed(1, (3, 30, 1), interests=(3,)))
    writer.add_seed(INFO, seed(2, (3, 50, 1)))
    writer.add_seed(INFO, seed(3, (3, 60, 1)))
    cut_off = read_recording(tmp_path / "r").seed
    writer.finish(INFO)
    whole = read_recording(tmp_path / "r").seed
    for read in (cut_off, whole):
        assert [p.tgid for p in read.processes] == [1, 2, 3]
        assert read.fds["inode"].tolist() == [30, 50, 60]
        assert read.epolls["tgid"].tolist() == [1]
    assert not [path for path in (tmp_path / "r").iterdir() if path.name.endswith(".new")]


def test_what_was_witnessed_before_it_was_read_stands() -> None:
    script = Script(ports=(80,)).process(100).process(200)
    script.seed_fd(100, 3, inode=11)
    script.seed_fd(200, 3, inode=30, at=50 * MS)
    script.seed_fd(200, 4, inode=40, at=50 * MS)
    script.event(200, 200, Call.task_attach, 1, at=5 * MS)
    bound = script.event(200, 200, Call.bind, fd=3, sockaddr=address("10.0.0.1", 80), at=6 * MS)
    first = script.event(200, 200, Call.accept4, fd=3, ret=4, sockaddr=CLIENT, at=20 * MS)
    closed = script.event(200, 200, Call.close, fd=4, at=60 * MS)
    second = script.event(200, 200, Call.accept4, fd=3, ret=4, sockaddr=CLIENT, at=70 * MS)
    session = script.session()
    listener = session.event_open_file[bound]
    assert session.open_files[listener].inode == 30
    assert session.event_open_file[first] == session.event_open_file[second] == listener
    fours = [d for d in session.descriptors if d.fd == 4]
    assert [(d.how, d.opened_event, d.closed_event) for d in fours] == [
        (How.ACCEPT, first, closed),
        (How.ACCEPT, second, -1),
    ]
    assert session.open_files[fours[0].open_file].inode == 40
    assert session.event_connection[first] != session.event_connection[second]
    assert session.processes[100].started_ns is None


def test_a_worker_that_was_forked_before_it_was_read() -> None:
    script = Script(ports=(80,)).process(100).process(200).process(201, ppid=200)
    script.seed_fd(100, 3, inode=11)
    for tgid in (200, 201):
        script.seed_fd(tgid, 3, inode=30, open_file=7, at=50 * MS)
    script.seed_fd(201, 4, inode=40, at=50 * MS)
    script.event(200, 200, Call.task_attach, 1, at=5 * MS)
    bound = script.event(200, 200, Call.bind, fd=3, sockaddr=address("10.0.0.1", 80), at=6 * MS)
    script.fork(200, 201, at=10 * MS)
    accepted = script.event(201, 201, Call.accept4, fd=3, ret=4, sockaddr=CLIENT, at=15 * MS)
    script.event(201, 201, Call.recvfrom, fd=4, ret=0, at=80 * MS)
    session = script.session()
    assert session.event_open_file[accepted] == session.event_open_file[bound]
    assert session.processes[201].parent == 200
    (four,) = [d for d in session.descriptors if d.fd == 4]
    assert (four.how, four.opened_event, four.closed_ns) == (How.ACCEPT, accepted, None)
    assert session.connections[session.event_connection[accepted]].peer == CLIENT


def test_a_listener_that_outlives_its_server_is_one_socket() -> None:
    """Socket activation: the next process is given the same listener."""
    script = Script(ports=(80,)).process(100).process(200)
    script.seed_fd(100, 3, inode=30, open_file=1)
    script.seed_fd(200, 3, inode=30, open_file=2, at=50 * MS)
    before = script.event(100, 100, Call.accept4, fd=3, ret=4, sockaddr=CLIENT, at=1 * MS)
    script.exit(100, at=10 * MS)
    script.event(200, 200, Call.task_attach, at=45 * MS)
    after = script.event(200, 200, Call.accept4, fd=3, ret=4, sockaddr=CLIENT, at=60 * MS)
    session = script.session()
    assert session.event_open_file[before] == session.event_open_file[after]
    listener = session.open_files[session.event_open_file[after]]
    assert listener.released_ns is None
    assert [d.closed_ns for d in session.descriptors if d.fd == 3] == [START_NS + 10 * MS, None]
