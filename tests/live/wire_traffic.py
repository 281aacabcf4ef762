"""Run in a network namespace by test_expert_agreement.py: `wire_traffic.py serve` or `wire_traffic.py HOST CLIENT…`.

Each client is a way of using a connection that leaves its marks on the wire; the server does what its port says.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

HOST = sys.argv[1] if len(sys.argv) > 1 else ""
FAMILY = socket.AF_INET6 if ":" in HOST else socket.AF_INET
BULK, SLOW, IDLE, PIECES, ECHO, HALF, DEAF, TOGETHER = 7001, 7002, 7003, 7004, 7005, 7006, 7007, 7008
OPENED, OPENER = 7108, 7208
BULK_BYTES = 400_000
CHUNK = bytes(range(256)) * 16


def serve() -> None:
    """Every port, until killed."""
    roles: dict[int, Callable[[socket.socket], None]] = {
        BULK: _send_much,
        SLOW: _send_much,
        IDLE: _keep_alive,
        PIECES: _answer_in_pieces,
        ECHO: _echo,
        HALF: _send_late,
        DEAF: _leave_unread,
        TOGETHER: _open_and_close_together,
    }
    for port, role in roles.items():
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        threading.Thread(target=_accept, args=(listener, role), daemon=True).start()
    print("ready", flush=True)
    time.sleep(120)


def _accept(listener: socket.socket, role: Callable[[socket.socket], None]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_guarded, args=(connection, role), daemon=True).start()


def _guarded(connection: socket.socket, role: Callable[[socket.socket], None]) -> None:
    with connection:
        try:
            role(connection)
        except OSError:
            return


def _send_much(connection: socket.socket) -> None:
    for _ in range(BULK_BYTES // len(CHUNK)):
        connection.sendall(CHUNK)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.recv(10)


def _answer_in_pieces(connection: socket.socket) -> None:
    while connection.recv(1000):
        connection.send(b"head")
        connection.send(b"body")


def _echo(connection: socket.socket) -> None:
    while said := connection.recv(65536):
        connection.sendall(said)


def _send_late(connection: socket.socket) -> None:
    while connection.recv(1000):
        pass
    time.sleep(0.2)
    connection.sendall(b"late")


def _leave_unread(connection: socket.socket) -> None:
    connection.recv(10)
    time.sleep(0.05)


def _open_and_close_together(connection: socket.socket) -> None:
    """The client says when: both clocks are one."""
    at = float(connection.recv(100))
    host = connection.getpeername()[0]
    _meet(connection.family, OPENED, (host, OPENER), at)


def _meet(family: int, port: int, other: tuple[str, int], at: float) -> None:
    with socket.socket(family) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.settimeout(5)
        connection.bind(("", port))
        time.sleep(max(0.0, at - time.time()))
        if connection.connect_ex(other) == 0:
            connection.send(b"both")
            connection.recv(10)
            time.sleep(max(0.0, at + 0.5 - time.time()))


def bulk() -> None:
    """Reads all as fast as it comes."""
    with socket.create_connection((HOST, BULK), 30) as connection:
        while connection.recv(65536):
            pass


def upload() -> None:
    """Sends, and reads it back."""
    with socket.create_connection((HOST, ECHO), 30) as connection:
        _sent_back(connection, 20)


def slow() -> None:
    """Lets its window close, twice."""
    with socket.socket(FAMILY) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.settimeout(30)
        connection.connect((HOST, SLOW))
        time.sleep(1.5)
        for _ in range(12):
            connection.recv(4096)
        time.sleep(1.0)
        while connection.recv(65536):
            pass


def idle() -> None:
    """Is asked whether it is there."""
    with socket.create_connection((HOST, IDLE), 30):
        time.sleep(3.4)


def pieces() -> None:
    """Small answers in two sends: Nagle meets a delayed ACK."""
    with socket.create_connection((HOST, PIECES), 30) as connection:
        for _ in range(8):
            connection.send(b"ask")
            got = 0
            while got < 8:
                got += len(connection.recv(100))


def reset() -> None:
    """Ends by RST."""
    connection = socket.create_connection((HOST, ECHO), 30)
    connection.sendall(b"x" * 100)
    connection.recv(100)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half() -> None:
    """Ends its half, and still reads."""
    with socket.create_connection((HOST, HALF), 30) as connection:
        connection.sendall(b"all")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(100):
            pass


def refused() -> None:
    """Nobody listens there."""
    with socket.socket(FAMILY) as connection:
        connection.settimeout(30)
        connection.connect_ex((HOST, 7999))


def again() -> None:
    """The same port twice: the first connection was reset, so that no TIME_WAIT is in the way."""
    for _ in range(2):
        with socket.socket(FAMILY) as connection:
            connection.settimeout(30)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.bind(("", 20123))
            connection.connect((HOST, ECHO))
            connection.sendall(b"hello")
            connection.recv(100)
        time.sleep(0.3)


def closed_and_again() -> None:
    """The same port, while the server remembers its connection before (TIME_WAIT)."""
    for _ in range(2):
        with socket.socket(FAMILY) as connection:
            connection.settimeout(30)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(("", 20124))
            connection.connect((HOST, HALF))
            connection.shutdown(socket.SHUT_WR)
            connection.recv(100)
            connection.recv(100)


def cut_off() -> None:
    """Ends by RST while much is on its way."""
    with socket.create_connection((HOST, BULK), 30) as connection:
        got = 0
        while got < 100_000:
            got += len(connection.recv(20_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def unread() -> None:
    """Is cut off by a server that did not read all."""
    with socket.create_connection((HOST, DEAF), 30) as connection, suppress(OSError):
        for _ in range(20):
            connection.sendall(CHUNK)
            time.sleep(0.01)


def small() -> None:
    """Small segments both ways."""
    with socket.socket(FAMILY) as connection:
        connection.settimeout(30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        connection.connect((HOST, ECHO))
        _sent_back(connection, 10)


def wrapping() -> None:
    """Its numbers begin anew amid the transfer."""
    with socket.socket(FAMILY) as connection:
        connection.settimeout(30)
        repair, queue, number, of_sending, off = 19, 20, 21, 2, -1
        connection.setsockopt(socket.IPPROTO_TCP, repair, 1)
        connection.setsockopt(socket.IPPROTO_TCP, queue, of_sending)
        connection.setsockopt(socket.IPPROTO_TCP, number, struct.pack("I", 2**32 - 30_000))
        connection.setsockopt(socket.IPPROTO_TCP, repair, off)
        connection.connect((HOST, ECHO))
        _sent_back(connection, 20)


def trickle() -> None:
    """One byte, and one byte back; then each side its own way."""
    with socket.create_connection((HOST, ECHO), 30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(30):
            connection.send(b"x")
            time.sleep(0.002)
        got = 0
        while got < 30:
            got += len(connection.recv(100))


def watched() -> None:
    """Keep-alives while the window is closed."""
    with socket.socket(FAMILY) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        connection.settimeout(30)
        connection.connect((HOST, SLOW))
        time.sleep(3.2)
        connection.recv(4096)


def early() -> None:
    """Data in the SYN, from the second time on (TCP Fast Open)."""
    for _ in range(3):
        with socket.socket(FAMILY) as connection:
            connection.sendto(CHUNK[:500], socket.MSG_FASTOPEN, (HOST, ECHO))
            connection.settimeout(30)
            got = 0
            while got < 500:
                got += len(connection.recv(1000))


def together() -> None:
    """Both open, both close at once."""
    with socket.create_connection((HOST, TOGETHER), 30) as connection:
        at = time.time() + 0.3
        connection.sendall(str(at).encode())
        with suppress(OSError):
            _meet(FAMILY, OPENER, (HOST, OPENED), at)


def _sent_back(connection: socket.socket, chunks: int) -> None:
    for _ in range(chunks):
        connection.sendall(CHUNK)
        left = len(CHUNK)
        while left:
            left -= len(connection.recv(left))


CLIENTS: dict[str, Callable[[], None]] = {
    one.__name__: one for one in (bulk, upload, slow, idle, pieces, reset, half, refused, again)
}
MORE: dict[str, Callable[[], None]] = {
    one.__name__: one for one in (closed_and_again, cut_off, unread, small, wrapping, trickle, watched, early, together)
}


def main() -> None:
    """Runs the clients named, all at once."""
    if sys.argv[1] == "serve":
        serve()
    threads = [threading.Thread(target={**CLIENTS, **MORE}[name]) for name in sys.argv[2:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
