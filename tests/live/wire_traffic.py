"""Run in a network namespace by test_expert_agreement.py: `wire_traffic.py serve` or `wire_traffic.py CLIENT…`.

Each client is a way of using a connection that leaves its marks on the wire; the server does what its port says.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

HOST = "10.231.7.2"
BULK, SLOW, IDLE, PIECES, ECHO, HALF = 7001, 7002, 7003, 7004, 7005, 7006
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
    }
    for port, role in roles.items():
        listener = socket.create_server(("0.0.0.0", port), backlog=64)
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


def bulk() -> None:
    """Reads all as fast as it comes."""
    with socket.create_connection((HOST, BULK), 30) as connection:
        while connection.recv(65536):
            pass


def upload() -> None:
    """Sends, and reads it back."""
    with socket.create_connection((HOST, ECHO), 30) as connection:
        for _ in range(20):
            connection.sendall(CHUNK)
            left = len(CHUNK)
            while left:
                left -= len(connection.recv(left))


def slow() -> None:
    """Lets its window close, twice."""
    with socket.socket() as connection:
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
    with socket.socket() as connection:
        connection.settimeout(30)
        connection.connect_ex((HOST, 7999))


def again() -> None:
    """The same port twice: the first connection was reset, so that no TIME_WAIT is in the way."""
    for _ in range(2):
        with socket.socket() as connection:
            connection.settimeout(30)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.bind(("0.0.0.0", 20123))
            connection.connect((HOST, ECHO))
            connection.sendall(b"hello")
            connection.recv(100)
        time.sleep(0.3)


CLIENTS: dict[str, Callable[[], None]] = {
    one.__name__: one for one in (bulk, upload, slow, idle, pieces, reset, half, refused, again)
}


def main() -> None:
    """Runs the clients named, all at once."""
    if sys.argv[1] == "serve":
        serve()
    threads = [threading.Thread(target=CLIENTS[name]) for name in sys.argv[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
