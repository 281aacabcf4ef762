"""A server that does a bit of everything, always in the same order, and its client. Not a test: a program.

`equality_program.py server PORT` prints READY; `equality_program.py client PORT` prints DONE. The client asks for one
thing after the other, a connection each; the server does it to its end before it accepts the next.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from types import FrameType

HOST = "127.0.0.1"


def command_of(conn: socket.socket) -> str:
    return conn.recv(64).decode().strip()


def ended(thread: threading.Thread) -> None:
    """Its exit(2) too, which `join` does not wait for."""
    thread.join()
    time.sleep(0.1)


def echo(conn: socket.socket) -> None:
    conn.sendall(b"ready")
    while data := conn.recv(512):
        conn.sendall(data.upper() * 20)
    conn.close()


def half_close(conn: socket.socket) -> None:
    """Answers after the client's FIN, in two parts, the first by shutdown."""
    while conn.recv(16):
        pass
    conn.sendall(b"after your FIN")
    conn.shutdown(socket.SHUT_WR)
    conn.close()


def reset(conn: socket.socket) -> None:
    conn.sendall(b"ready")
    poll = select.poll()
    poll.register(conn, select.POLLIN)
    poll.poll()
    with contextlib.suppress(ConnectionResetError):
        conn.recv(16)
    conn.close()


def broken_pipe(conn: socket.socket) -> None:
    """ECONNRESET, then EPIPE and a SIGPIPE that is ignored."""
    conn.sendall(b"ready")
    select.select([conn], [], [])
    for _ in range(3):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            conn.send(b"is anybody there")
    conn.close()


def dup(conn: socket.socket) -> None:
    first = conn.dup()
    os.dup2(first.fileno(), 200)
    conn.close()
    first.close()
    os.write(200, b"by the third name")
    fcntl.fcntl(200, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    last = fcntl.fcntl(200, fcntl.F_DUPFD_CLOEXEC, 300)
    os.close(200)
    os.close(last)


def fork(conn: socket.socket) -> None:
    child = os.fork()
    if child == 0:
        conn.sendall(b"from the child")
        os._exit(3)
    os.waitpid(child, 0)
    conn.close()


def execute(conn: socket.socket) -> None:
    child = os.fork()
    if child == 0:
        conn.set_inheritable(True)
        os.execv("/bin/true", ["true"])
    os.waitpid(child, 0)
    conn.close()


def killed(conn: socket.socket) -> None:
    """A child that holds the connection is ended by a signal."""
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    os.waitpid(child, 0)
    conn.close()


def thread(conn: socket.socket) -> None:
    def work() -> None:
        conn.recv(16)
        conn.sendall(b"from a thread")
        conn.close()

    conn.sendall(b"ready")
    worker = threading.Thread(target=work)
    worker.start()
    ended(worker)


def pass_on(conn: socket.socket) -> None:
    """Through a unix socket, to ourselves."""
    here, there = socket.socketpair()
    socket.send_fds(here, [b"take it"], [conn.fileno()])
    conn.close()
    _, fds, _, _ = socket.recv_fds(there, 16, 4)
    os.write(fds[0], b"passed on")
    for fd in fds:
        os.close(fd)
    here.close()
    there.close()


def pass_to_child(conn: socket.socket) -> None:
    here, there = socket.socketpair()
    child = os.fork()
    if child == 0:
        conn.close()
        _, fds, _, _ = socket.recv_fds(there, 16, 4)
        os.write(fds[0], b"from whom it was passed to")
        os._exit(0)
    socket.send_fds(here, [b"take it"], [conn.fileno()])
    os.waitpid(child, 0)
    conn.close()
    here.close()
    there.close()


def waits(conn: socket.socket) -> None:
    """Each way to wait, once."""
    conn.sendall(b"ready")
    poll = select.poll()
    poll.register(conn, select.POLLIN)
    poll.poll()
    conn.recv(1)
    conn.sendall(b"1")
    select.select([], [conn], [], 5)
    select.select([conn], [], [], None)
    conn.recv(1)
    conn.sendall(b"2")
    with select.epoll() as epoll:
        epoll.register(conn, select.EPOLLIN | select.EPOLLET)
        epoll.poll()
        conn.recv(1)
        epoll.modify(conn, select.EPOLLOUT)
        epoll.poll(1)
        epoll.unregister(conn)
        epoll.poll(0.01)
    conn.close()


def options(conn: socket.socket) -> None:
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    conn.getsockname()
    conn.getpeername()
    conn.sendall(b"ready")
    conn.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)
    waiting = array.array("i", [0])
    fcntl.ioctl(conn, termios.FIONREAD, waiting)
    conn.setblocking(False)
    conn.recv(16)
    with contextlib.suppress(BlockingIOError):
        conn.recv(16)
    conn.setblocking(True)
    conn.settimeout(None)
    conn.close()


def vectors(conn: socket.socket) -> None:
    conn.sendall(b"ready")
    os.readv(conn.fileno(), [bytearray(3), bytearray(40)])
    os.writev(conn.fileno(), [b"", b"one", b"two" * 40])
    conn.recvmsg(16, 64)
    conn.sendmsg([b"three", b"four"])
    source = os.memfd_create("equality")
    os.write(source, b"0123456789" * 20)
    os.pread(source, 5, 2)
    os.sendfile(conn.fileno(), source, 0, 100)
    reading, writing = os.pipe()
    os.write(writing, b"through a pipe")
    os.splice(reading, conn.fileno(), 14)
    for fd in (source, reading, writing):
        os.close(fd)
    conn.close()


def datagrams(conn: socket.socket) -> None:
    one, two = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    one.bind((HOST, 0))
    two.sendto(b"a datagram longer than the buffer", one.getsockname())
    one.recvfrom(8)
    two.connect(one.getsockname())
    two.send(b"connected")
    one.recvmsg(64)
    named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    named.bind("\0sockscope-equality")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.sendto(b"by name", "\0sockscope-equality")
    named.recvfrom(64)
    for each in (one, two, named):
        each.close()
    conn.close()


def calls_out(conn: socket.socket) -> None:
    """Refused, then one that is accepted here, without blocking."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        with socket.socket() as refused:
            refused.connect_ex(listener.getsockname())
        listener.listen(1)
        with socket.socket() as client:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            select.select([], [client], [])
            client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            accepted, _ = listener.accept()
            client.send(b"hello")
            accepted.recv(16)
            accepted.close()
            client.setblocking(True)
            client.recv(16)
    conn.close()


def signals(conn: socket.socket) -> None:
    """A wait that a signal ends, a recv that goes on after one, and one that time ends."""
    conn.sendall(b"ready")
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    poll = select.poll()
    poll.register(conn, select.POLLIN)
    poll.poll()
    conn.recv(1)
    conn.sendall(b"1")
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    conn.recv(1)
    conn.sendall(b"2")
    os.kill(os.getpid(), signal.SIGALRM)
    signal.siginterrupt(signal.SIGALRM, True)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    with contextlib.suppress(BlockingIOError):
        conn.recv(1)
    conn.close()


def files(conn: socket.socket) -> None:
    path = f"/dev/shm/equality-{sys.argv[2]}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(fd, 4096)
    with mmap.mmap(fd, 4096) as shared:
        shared[0] = 1
    os.unlink(path)
    os.close(fd)
    os.close(os.eventfd(0))
    for wrong in (fd, 999):
        with contextlib.suppress(OSError):
            os.close(wrong)
    with contextlib.suppress(OSError):
        os.write(999, b"nobody")
    os.closerange(900, 910)
    conn.close()


def early_close(conn: socket.socket) -> None:
    """Closed with unread data: the client is reset."""
    poll = select.poll()
    poll.register(conn, select.POLLIN)
    poll.poll()
    conn.close()


KEPT: list[socket.socket] = []


def leak(conn: socket.socket) -> None:
    conn.sendall(b"ready")
    conn.recv(16)
    KEPT.append(conn)


JOBS: tuple[Callable[[socket.socket], None], ...] = (
    echo, half_close, reset, broken_pipe, dup, fork, execute, killed, thread, pass_on, pass_to_child, waits, options,
    vectors, datagrams, calls_out, signals, files, early_close, leak,
)  # fmt: skip


def serve(port: int) -> None:
    jobs = {job.__name__: job for job in JOBS}

    def woken(number: int, frame: FrameType | None) -> None:
        pass

    signal.signal(signal.SIGALRM, woken)
    listener = socket.create_server((HOST, port))
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    # Threads that sit in the kernel when somebody attaches.
    in_recv, wakes_recv = socket.socketpair()
    in_poll, wakes_poll = socket.socketpair()

    def sit_in_poll() -> None:
        poll = select.poll()
        poll.register(in_poll, select.POLLIN)
        poll.poll()

    sitting = [threading.Thread(target=work) for work in (lambda: in_recv.recv(8), sit_in_poll)]
    for each in sitting:
        each.start()
    os.write(1, b"READY\n")
    while True:
        epoll.poll()
        conn, _ = listener.accept()
        command = command_of(conn)
        if command == "quit":
            break
        jobs[command](conn)
    for wake in (wakes_recv, wakes_poll):
        wake.send(b"wake up")
    for each in sitting:
        ended(each)
    conn.close()
    listener.close()
    epoll.close()
    os._exit(0)


def ask(port: int, command: str) -> None:
    """One connection; each job needs its own counterpart."""
    with socket.create_connection((HOST, port)) as conn:
        conn.sendall(command.encode())
        match command:
            case "echo":
                conn.recv(64)
                for _ in range(3):
                    conn.sendall(b"hello")
                    left = 100
                    while left:
                        left -= len(conn.recv(left))
                conn.shutdown(socket.SHUT_WR)
            case "half_close":
                conn.shutdown(socket.SHUT_WR)
            case "reset" | "broken_pipe":
                conn.recv(5)
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            case "thread":
                conn.recv(5)
                conn.sendall(b"go")
            case "waits":
                conn.recv(5)
                for _ in range(2):
                    conn.sendall(b"x")
                    conn.recv(1)
                conn.sendall(b"x")
            case "options":
                conn.recv(5)
                conn.sendall(b"1234")
            case "vectors":
                conn.recv(5)
                conn.sendall(b"x" * 20)
                conn.recv(123, socket.MSG_WAITALL)
                conn.sendall(b"y" * 10)
            case "signals":
                conn.recv(5)
                for _ in range(2):
                    time.sleep(0.3)
                    conn.sendall(b"x")
                    conn.recv(1)
            case "early_close":
                time.sleep(0.2)
                conn.sendall(b"unread")
            case "leak":
                conn.recv(5)
        with contextlib.suppress(ConnectionResetError):
            if command == "leak":
                return
            while conn.recv(4096):
                pass


def main() -> None:
    role, port = sys.argv[1], int(sys.argv[2])
    if role == "server":
        serve(port)
    for job in JOBS:
        ask(port, job.__name__)
    time.sleep(2)
    ask(port, "quit")
    os.write(1, b"DONE\n")


if __name__ == "__main__":
    main()
