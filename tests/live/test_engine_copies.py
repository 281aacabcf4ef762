"""What is copied from the target's memory is what the program passed and got."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag, Events, Section
from sockscope.model.sockaddr import decode_sockaddr
from tests.sources.syscalls.ptrace_support import ENGINES, Program, Trace, args, compile_c, flags, ret, rows, section

pytestmark = [pytest.mark.live, pytest.mark.parametrize("engine", ENGINES)]


def trace_python(engine: str, body: str) -> tuple[Events, str]:
    """Run Python lines under an attached trace; the events and what the program printed."""
    source = "import os, sys, socket, struct, select, array\nsys.stdin.readline()\n" + body + "\nprint('done')\n"
    with (
        Program.python(source + "sys.stdin.readline()\n") as program,
        Trace(engine=engine, attach=[program.pid]) as trace,
    ):
        program.say("go")
        printed = []
        while (line := program.line()) != "done":
            assert line or program.process.poll() is None, "the program died"
            printed.append(line)
        return trace.finish(), "\n".join(printed)


def port_of(data: bytes) -> int:
    address = decode_sockaddr(data)
    assert address is not None
    return address.port


def test_addresses_of_bind_connect_accept_and_names(engine: str) -> None:
    events, printed = trace_python(
        engine,
        """
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(4)
c = socket.socket(); c.connect(l.getsockname())
a, peer = l.accept()
a.getpeername()
print(l.getsockname()[1], c.getsockname()[1])
""",
    )
    listener, client = map(int, printed.split())
    assert port_of(section(events, rows(events, Call.bind)[0], Section.SOCKADDR)) == 0
    assert port_of(section(events, rows(events, Call.connect)[0], Section.SOCKADDR)) == listener
    (accept,) = rows(events, Call.accept4)
    assert port_of(section(events, accept, Section.SOCKADDR)) == client
    assert port_of(section(events, rows(events, Call.getpeername)[0], Section.SOCKADDR)) == client
    assert port_of(section(events, rows(events, Call.getsockname)[0], Section.SOCKADDR)) == listener


def test_payload_prefixes_and_what_is_cut(engine: str) -> None:
    events, _ = trace_python(
        engine,
        """
a, b = socket.socketpair()
a.send(b"x" * 100); b.recv(200)
os.write(a.fileno(), b"short"); os.read(b.fileno(), 10)
os.writev(a.fileno(), [b"", b"first", b"second"]); os.readv(b.fileno(), [bytearray(3), bytearray(30)])
""",
    )
    send, receive = rows(events, Call.sendto)[0], rows(events, Call.recvfrom)[0]
    for row in (send, receive):
        assert section(events, row, Section.PAYLOAD) == b"x" * 64
        assert flags(events, row) == EventFlag.TRUNCATED
    writes = [row for row in rows(events, Call.write) if ret(events, row) == 5]
    assert section(events, writes[0], Section.PAYLOAD) == b"short"
    (writev,) = rows(events, Call.writev)
    assert section(events, writev, Section.PAYLOAD) == b"first"
    assert struct.unpack("<Q", section(events, writev, Section.IOV_TOTAL)) == (11,)
    (readv,) = rows(events, Call.readv)
    assert section(events, readv, Section.PAYLOAD) == b"fir"
    (pair,) = rows(events, Call.socketpair)
    assert len(section(events, pair, Section.FD_PAIR)) == 8


def test_scm_rights_are_seen_on_both_sides(engine: str) -> None:
    events, printed = trace_python(
        engine,
        """
a, b = socket.socketpair()
socket.send_fds(a, [b"fds"], [0, 1])
data, fds, flags, address = socket.recv_fds(b, 10, 4)
print(*fds)
""",
    )
    received = [int(word) for word in printed.split()]
    (sent,) = rows(events, Call.sendmsg)
    (got,) = rows(events, Call.recvmsg)
    for row, fds in ((sent, [0, 1]), (got, received)):
        length, level, kind, *numbers = struct.unpack_from("<Qii2i", section(events, row, Section.CONTROL))
        assert (length, level, kind, numbers) == (24, socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)
        assert section(events, row, Section.PAYLOAD) == b"fds"
    assert len(section(events, got, Section.MSG_FLAGS)) == 4


def test_epoll_poll_and_select_results(engine: str) -> None:
    events, printed = trace_python(
        engine,
        """
a, b = socket.socketpair()
a.send(b"x")
e = select.epoll(); e.register(b, select.EPOLLIN | select.EPOLLET)
e.poll(1)
p = select.poll(); p.register(b, select.POLLIN); p.poll(1000)
select.select([b, 0], [a], [], 5)
print(a.fileno(), b.fileno())
""",
    )
    a, b = map(int, printed.split())
    epolls = rows(events, Call.epoll_wait) + rows(events, Call.epoll_pwait)
    kind = Section.EPOLL_EVENTS if os.uname().machine == "x86_64" else Section.EPOLL_EVENTS_ALIGNED
    packed = "<IQ" if kind is Section.EPOLL_EVENTS else "<IxxxxQ"
    ready, data = struct.unpack(packed, section(events, epolls[0], kind))
    assert (ready, data & 0xFFFFFFFF) == (1, b)
    (ctl,) = rows(events, Call.epoll_ctl)
    assert struct.unpack(packed, section(events, ctl, kind))[0] == 1 | 1 << 31
    polls = rows(events, Call.poll) + rows(events, Call.ppoll)
    poll = next(row for row in polls if ret(events, row) == 1)
    assert struct.unpack("<ihh", section(events, poll, Section.POLLFDS)) == (b, 1, 1)
    select_rows = rows(events, Call.pselect6) + rows(events, Call.select)
    asked = struct.unpack("<QQQ", section(events, select_rows[0], Section.FDSETS_IN))
    told = struct.unpack("<QQQ", section(events, select_rows[0], Section.FDSETS))
    assert asked == (1 << b | 1, 1 << a, 0)
    assert told == (1 << b, 1 << a, 0)
    assert len(section(events, select_rows[0], Section.TIMEOUT)) == 16


def test_options_ints_and_paths(engine: str, tmp_path: Path) -> None:
    events, _ = trace_python(
        engine,
        f"""
import fcntl, mmap, termios
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
fcntl.ioctl(s, 0x5421, struct.pack("i", 1))
try: termios.tcgetattr(s)
except termios.error: pass
open({str(tmp_path / "f")!r}, "w+b").truncate(4096)
f = open({str(tmp_path / "f")!r}, "r+b")
shared = mmap.mmap(f.fileno(), 4096)
private = mmap.mmap(-1, 4096)
os.unlink({str(tmp_path / "f")!r})
""",
    )
    options = rows(events, Call.setsockopt)
    assert section(events, options[0], Section.OPTION) == struct.pack("i", 1)
    assert section(events, options[1], Section.OPTION) == struct.pack("ii", 1, 0)
    assert section(events, rows(events, Call.getsockopt)[-1], Section.OPTION) == struct.pack("i", 1)
    ioctls = [row for row in rows(events, Call.ioctl) if args(events, row)[1] == 0x5421]
    assert section(events, ioctls[0], Section.INT) == struct.pack("i", 1)
    assert not [row for row in rows(events, Call.ioctl) if args(events, row)[1] == 0x5401]
    opened = [section(events, row, Section.PATH) for row in rows(events, Call.openat)]
    assert opened.count(str(tmp_path / "f").encode()) == 2
    (mapped,) = rows(events, Call.mmap)
    assert args(events, mapped)[3] & 1
    unlinked = [section(events, row, Section.PATH) for row in rows(events, Call.unlink) + rows(events, Call.unlinkat)]
    assert str(tmp_path / "f").encode() in unlinked


def test_many_messages_and_bad_pointers(engine: str, tmp_path: Path) -> None:
    source = """
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
int main(void) {
    int s[2]; char go, in[3][8];
    struct iovec v[3] = {{"one", 3}, {"three", 5}, {"x", 1}}, w[3] = {{in[0], 8}, {in[1], 8}, {in[2], 8}};
    struct mmsghdr m[3], n[3];
    memset(m, 0, sizeof m); memset(n, 0, sizeof n);
    for (int i = 0; i < 3; i++) {
        m[i].msg_hdr.msg_iov = &v[i]; m[i].msg_hdr.msg_iovlen = 1;
        n[i].msg_hdr.msg_iov = &w[i]; n[i].msg_hdr.msg_iovlen = 1;
    }
    read(0, &go, 1);
    socketpair(AF_UNIX, SOCK_DGRAM, 0, s);
    sendmmsg(s[0], m, 3, 0);
    recvmmsg(s[1], n, 3, 0, 0);
    write(s[0], (void *)8, 5);
    sendmsg(s[0], (void *)16, 0);
    puts("done"); fflush(stdout);
    pause();
}
"""
    with Program(compile_c(source, tmp_path, "-w")) as program, Trace(engine=engine, attach=[program.pid]) as trace:
        program.say("go")
        assert program.line() == "done"
        events = trace.finish()
    for call in (Call.sendmmsg, Call.recvmmsg):
        (row,) = rows(events, call)
        assert struct.unpack("<3I", section(events, row, Section.MMSG_LENS)) == (3, 5, 1)
        assert section(events, row, Section.PAYLOAD) == b"one"
    bad = [rows(events, Call.sendmsg)[0], next(r for r in rows(events, Call.write) if args(events, r)[1] == 8)]
    for row in bad:
        assert ret(events, row) == -14
        assert EventFlag.COPY_FAILED in flags(events, row)
