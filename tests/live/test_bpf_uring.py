"""What a server does through an io_uring is told as the system calls it stands for."""

from __future__ import annotations

import errno
import socket
import struct
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sockscope.model.calls import Call
from sockscope.model.connections import Role
from sockscope.model.events import EventFlag, Events, Section
from sockscope.model.findings import Severity
from sockscope.model.sockaddr import decode_sockaddr
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from tests.live import uring
from tests.live.engines import need
from tests.live.uring import ANSWER, BUFFER_BYTES, QUESTION
from tests.sources.syscalls.ptrace_support import Program, Trace, args, flags, ret, rows, section

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not uring.is_allowed(), reason="the kernel allows no io_uring (kernel.io_uring_disabled)"),
]
PREFIX = QUESTION[:64]


def served(mode: str, count: int) -> tuple[Events, int, list[int]]:
    """(events that went through the ring, the listener, the connections' descriptors) of a served count of clients."""
    with Program(sys.executable, "-m", "tests.live.uring", mode, str(count)) as program:
        port = int(program.line())
        with Trace(attach=[program.pid], engine="bpf") as trace:
            program.say("go")
            assert [uring.ask(port) for _ in range(count)] == [ANSWER] * count
            listener, *fds = map(int, program.line().split())
            events = trace.finish()
    through = events.records["flags"] & EventFlag.URING != 0
    assert {int(tgid) for tgid in events.records["tgid"][through]} == {program.pid}
    return Events(records=events.records[through], blob=events.blob), listener, fds


def calls(events: Events) -> Counter[Call]:
    return Counter(events.call(i) for i in range(len(events)))


@pytest.mark.parametrize("mode", ["single", "workers", "deferred", "sqpoll"])
def test_each_operation_is_its_call(mode: str) -> None:
    events, listener, fds = served(mode, 3)
    assert [events.call(i) for i in range(len(events))] == [Call.accept4, Call.recvfrom, Call.sendto, Call.close] * 3
    assert [ret(events, row) for row in rows(events, Call.accept4)] == fds
    for at, fd in enumerate(fds):
        accept, receive, send, close = range(4 * at, 4 * at + 4)
        assert args(events, accept)[0] == listener
        address = decode_sockaddr(section(events, accept, Section.SOCKADDR))
        assert address is not None
        assert address.host == "127.0.0.1"
        assert args(events, receive)[:1] + args(events, receive)[2:4] == [fd, BUFFER_BYTES, 0]
        assert ret(events, receive) == len(QUESTION)
        assert section(events, receive, Section.PAYLOAD) == PREFIX
        assert args(events, send)[:1] + args(events, send)[2:3] == [fd, len(ANSWER)]
        assert ret(events, send) == len(ANSWER)
        assert section(events, send, Section.PAYLOAD) == ANSWER[:64]
        assert (args(events, close)[0], ret(events, close)) == (fd, 0)
    assert (events.records["enter_ns"] <= events.records["exit_ns"]).all()
    assert (events.records["exit_ns"][:-1] <= events.records["enter_ns"][1:]).all()


def test_vectors_messages_and_a_close_without_a_word() -> None:
    events, _, fds = served("linked", 2)
    assert calls(events) == Counter({Call.accept4: 2, Call.readv: 2, Call.sendmsg: 2, Call.shutdown: 2, Call.close: 2})
    for readv in rows(events, Call.readv):
        assert section(events, readv, Section.PAYLOAD) == PREFIX
        assert struct.unpack("<Q", section(events, readv, Section.IOV_TOTAL)) == (BUFFER_BYTES,)
    for sendmsg in rows(events, Call.sendmsg):
        assert section(events, sendmsg, Section.PAYLOAD) == ANSWER[:64]
    assert [(args(events, row)[0], ret(events, row)) for row in rows(events, Call.close)] == [(fd, 0) for fd in fds]
    assert not any(flags(events, row) & EventFlag.ENTERED_ONLY for row in range(len(events)))
    # It is linked to the shutdown, so it began when that had ended.
    ended = events.records["exit_ns"][rows(events, Call.shutdown)]
    assert (events.records["enter_ns"][rows(events, Call.close)] >= ended).all()


def test_multishot_requests_tell_every_completion() -> None:
    events, listener, fds = served("multishot", 5)
    *accepts, pending = rows(events, Call.accept4)
    assert flags(events, pending) & EventFlag.ENTERED_ONLY
    assert [ret(events, row) for row in accepts] == fds
    assert {args(events, row)[0] for row in accepts} == {listener}
    received = [row for row in rows(events, Call.recvfrom) if ret(events, row) > 0]
    assert [section(events, row, Section.PAYLOAD) for row in received] == [PREFIX] * 5
    assert len([row for row in rows(events, Call.recvfrom) if ret(events, row) == 0]) == 5
    assert calls(events)[Call.sendto] == calls(events)[Call.close] == 5


def test_failures_and_requests_that_the_kernel_refuses() -> None:
    body = f"""
import ctypes, socket, struct, sys
from tests.live.uring import *
ring = Ring()
space = ctypes.create_string_buffer(64)
at = ctypes.addressof(space)
print("ready")
sys.stdin.readline()
print(result(ring, Op.RECV, 999, at, 64), result(ring, Op.CLOSE, 998), result(ring, Op.RECV, 997, at, 64, offset=1))
taken = socket.create_server(("127.0.0.1", 0))
ring.register_files([taken.fileno()])
other = result(ring, Op.SOCKET, {2}, 0, offset=1)
space[:16] = struct.pack("<H", 2) + struct.pack(">H", taken.getsockname()[1]) + socket.inet_aton("127.0.0.1") + bytes(8)
print(other, taken.getsockname()[1], result(ring, Op.BIND, other, at, 0, offset=16))
print(result(ring, Op.CONNECT, other, at, 0, offset=16), result(ring, Op.SHUTDOWN, 0, 0, 2, flags=Sqe.FIXED_FILE))
sys.stdin.readline()
"""
    with Program.python(body) as program:
        assert program.line() == "ready"
        with Trace(attach=[program.pid], engine="bpf") as trace:
            program.say("go")
            assert program.line() == f"{-errno.EBADF} {-errno.EBADF} {-errno.EINVAL}"
            other, port, bound = map(int, program.line().split())
            assert program.line().split()[0] == "0"
            all_events = trace.finish()
            assert trace.engine.coverage().lost == {"io_uring request of a registered file": 1}
    through = all_events.records["flags"] & EventFlag.URING != 0
    events = Events(records=all_events.records[through], blob=all_events.blob)
    told = [(events.call(i).name, args(events, i)[0], ret(events, i)) for i in range(len(events))]
    assert told == [
        ("recvfrom", 999, -errno.EBADF),
        ("close", 998, -errno.EBADF),
        ("recvfrom", 997, -errno.EINVAL),
        ("socket", 2, other),
        ("bind", other, bound),
        ("connect", other, 0),
    ]
    for row in rows(events, Call.bind) + rows(events, Call.connect):
        address = decode_sockaddr(section(events, row, Section.SOCKADDR))
        assert address is not None
        assert address.port == port


def test_what_was_asked_for_before_the_attach() -> None:
    """A server arms its accept once, at its start: its connections are seen all the same."""
    body = """
import ctypes, socket, sys
from tests.live.uring import *
ring = Ring()
space = ctypes.create_string_buffer(64)
l = socket.create_server(("127.0.0.1", 0))
a, b = socket.socketpair()
ring.put(Op.ACCEPT, l.fileno(), ioprio=ACCEPT_MULTISHOT, user_data=1)
ring.put(Op.RECV, a.fileno(), ctypes.addressof(space), 64, user_data=2)
ring.submit()
print(l.getsockname()[1], l.fileno(), a.fileno())
sys.stdin.readline()
b.send(b"early")
got = []
while len(got) < 4:
    ring.submit(wait=1)
    got += [res for _, res, _ in ring.completions()]
print(*got)
sys.stdin.readline()
"""
    with Program.python(body) as program:
        port, listener, receiver = map(int, program.line().split())
        with Trace(attach=[program.pid], engine="bpf") as trace:
            program.say("go")
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
            results = sorted(map(int, program.line().split()))
            events = trace.finish()
        for client in clients:
            client.close()
    through = [row for row in range(len(events)) if flags(events, row) & EventFlag.URING]
    ended = [row for row in through if not flags(events, row) & EventFlag.ENTERED_ONLY]
    assert sorted(ret(events, row) for row in ended) == results
    (receive,) = (row for row in ended if events.call(row) is Call.recvfrom)
    assert (args(events, receive)[0], ret(events, receive)) == (receiver, 5)
    assert section(events, receive, Section.PAYLOAD) == b"early"
    assert flags(events, receive) & EventFlag.NO_ENTRY
    accepts = [row for row in ended if events.call(row) is Call.accept4]
    assert {args(events, row)[0] for row in accepts} == {listener}
    assert [bool(flags(events, row) & EventFlag.NO_ENTRY) for row in accepts] == [True, False, False]
    (pending,) = set(through) - set(ended)
    assert events.call(pending) is Call.accept4


def test_an_option_set_through_the_ring() -> None:
    """SO_REUSEADDR that was set must not be missed. The same command number to another file is not that call."""
    body = """
import ctypes, os, socket, struct, sys
from tests.live.uring import *
ring = Ring()
s = socket.socket()
other = os.open("/dev/null", os.O_RDWR)
on = ctypes.create_string_buffer(struct.pack("<i", 1))
print("ready")
sys.stdin.readline()
for fd in (other, s.fileno()):
    ring.put(
        *(Op.URING_CMD, fd, socket.SOL_SOCKET | socket.SO_REUSEADDR << 32),
        offset=3, file_index=4, address3=ctypes.addressof(on),
    )
    res = ring.one()[1]
print(s.fileno(), res, s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
sys.stdin.readline()
"""
    with Program.python(body) as program:
        assert program.line() == "ready"
        with Trace(attach=[program.pid], engine="bpf") as trace:
            program.say("go")
            fd, res, is_set = map(int, program.line().split())
            events = trace.finish()
    if res:
        pytest.skip(f"this kernel sets no options through a ring: {errno.errorcode[-res]}")
    assert is_set
    (row,) = rows(events, Call.setsockopt)
    assert args(events, row)[:3] == [fd, socket.SOL_SOCKET, socket.SO_REUSEADDR]
    assert section(events, row, Section.OPTION) == struct.pack("<i", 1)


def test_a_broken_chain_says_what_was_not_done() -> None:
    """A close that says nothing of success has none where what it was linked to failed."""
    body = """
import ctypes, socket, sys
from tests.live.uring import *
ring = Ring()
space = ctypes.create_string_buffer(64)
a, b = socket.socketpair()
print("ready")
sys.stdin.readline()
ring.put(Op.RECV, 999, ctypes.addressof(space), 64, flags=Sqe.LINK, user_data=1)
ring.put(Op.CLOSE, a.fileno(), flags=Sqe.CQE_SKIP, user_data=2)
ring.submit(wait=2)
print(*(res for _, res, _ in ring.completions()))
ring.put(Op.CLOSE, a.fileno(), flags=Sqe.CQE_SKIP, user_data=3)
ring.submit()
ring.put(Op.CLOSE, 998, flags=Sqe.CQE_SKIP, user_data=4)
ring.submit(wait=1)
print(a.detach(), *(res for _, res, _ in ring.completions()))
sys.stdin.readline()
"""
    with Program.python(body) as program:
        assert program.line() == "ready"
        with Trace(attach=[program.pid], engine="bpf") as trace:
            program.say("go")
            assert program.line() == f"{-errno.EBADF} {-errno.ECANCELED}"
            closed, refused = map(int, program.line().split())
            assert refused == -errno.EBADF
            all_events = trace.finish()
    through = all_events.records["flags"] & EventFlag.URING != 0
    events = Events(records=all_events.records[through], blob=all_events.blob)
    assert [(args(events, row)[0], ret(events, row)) for row in rows(events, Call.close)] == [
        (closed, -errno.ECANCELED),
        (closed, 0),
        (998, 0),
        (998, -errno.EBADF),
    ]


WAITING = """
import ctypes, socket, sys
from tests.live.uring import *
ring = Ring()
space = ctypes.create_string_buffer(64)
at = ctypes.addressof(space)
l = socket.create_server(("127.0.0.1", 0))
a, b = socket.socketpair()
print("ready")
sys.stdin.readline()
ring.put(Op.ACCEPT, l.fileno(), user_data=1)
ring.put(Op.RECV, a.fileno(), at, 64, user_data=2)
ring.put(Op.SEND, b.fileno(), at, 5, flags=Sqe.LINK, user_data=3)
ring.put(Op.RECV, b.fileno(), at, 64, user_data=4)
ring.submit(wait=2)
print(l.fileno(), b.fileno())
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["detached", "killed"])
def test_what_is_under_way_at_the_end(how: str) -> None:
    """Told as entered, once: the program never hears how it ended."""
    with Program.python(WAITING) as program:
        assert program.line() == "ready"
        with Trace(attach=[program.pid], engine="bpf") as trace:
            program.say("go")
            listener, receiver = map(int, program.line().split())
            if how == "killed":
                program.process.kill()
                all_events = trace.join()
            else:
                all_events = trace.finish()
    through = all_events.records["flags"] & EventFlag.URING != 0
    events = Events(records=all_events.records[through], blob=all_events.blob)
    waiting = [i for i in range(len(events)) if flags(events, i) & EventFlag.ENTERED_ONLY]
    assert {(events.call(i), args(events, i)[0]) for i in waiting} == {
        (Call.accept4, listener),
        (Call.recvfrom, receiver),
    }
    assert len(waiting) == 2
    assert {int(ns) for ns in events.records["exit_ns"][waiting]} == {-1}
    ended = sorted(set(range(len(events))) - set(waiting))
    assert [(events.call(i), ret(events, i)) for i in ended] in (
        [(Call.sendto, 5), (Call.recvfrom, 5)],
        [(Call.recvfrom, 5), (Call.sendto, 5)],
    )


def test_more_requests_than_one_submission_holds_are_all_told() -> None:
    body = """
import ctypes, socket, sys
from tests.live.uring import *
ring = Ring(2048)
a, b = socket.socketpair()
space = ctypes.create_string_buffer(4096)
print("ready")
sys.stdin.readline()
for i in range(2000):
    ring.put(Op.RECV, b.fileno(), ctypes.addressof(space) + i, 1, user_data=i)
ring.submit()
a.sendall(b"x" * 1000)
ring.submit(wait=1000)
print(len(list(ring.completions())))
sys.stdin.readline()
"""
    with Program.python(body) as program:
        assert program.line() == "ready"
        with Trace(attach=[program.pid], engine="bpf") as trace:
            program.say("go")
            assert program.line() == "1000"
            events = trace.finish()
            assert trace.engine.coverage().lost == {}
    asked = [row for row in rows(events, Call.recvfrom) if flags(events, row) & EventFlag.URING]
    told = Counter((flags(events, row) & EventFlag.ENTERED_ONLY, ret(events, row)) for row in asked)
    assert told == {(EventFlag(0), 1): 1000, (EventFlag.ENTERED_ONLY, 0): 1000}


@pytest.mark.parametrize("mode", list(uring.MODES))
def test_connections_come_out_whole(mode: str, tmp_path: Path) -> None:
    need(EngineChoice.BPF)
    count = 4
    watcher = Watcher()
    with Program(sys.executable, "-m", "tests.live.uring", mode, str(count)) as program:
        port = int(program.line())

        def drive() -> None:
            program.say("go")
            for _ in range(count):
                uring.ask(port)
            program.line()
            watcher.stop.set()

        driver = threading.Thread(target=drive, daemon=True)
        watcher.on_ready = lambda tgids, seed: driver.start()
        options = RecordOptions(pids=(program.pid,), engine=EngineChoice.BPF, duration_s=30)
        record(options, tmp_path / "rec", watcher)
        driver.join()
    session = load_session(tmp_path / "rec")
    serving = [c for c in session.connections if c.role is Role.SERVER]
    assert len(serving) == count
    for connection in serving:
        events = session.events_of(connection.id)
        named = [session.events.call(int(event)) for event in events]
        assert Call.accept4 in named
        assert Call.close in named
        flagged = session.events.records["flags"][events] & EventFlag.URING != 0
        assert np.count_nonzero(flagged) >= 4
    report = make_report(session)
    assert [f for f in report.findings if f.severity is not Severity.INFO] == []
