"""One fault with two names: a worker goes on writing to who has gone, and the second write kills it."""

import os
import signal
import socket
import sys
import time

ADDRESS = ("127.0.0.1", int(sys.argv[2]))


def serve() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    listener = socket.create_server(ADDRESS, backlog=64)
    print("READY", flush=True)
    while True:
        if os.fork() == 0:
            waiting, _peer = listener.accept()
            conn, _peer = listener.accept()
            conn.recv(100)
            for _ in range(20):
                conn.send(b"tick\n")
                time.sleep(0.05)
            waiting.sendall(b"nothing to do\n")
            os._exit(0)
        os.waitpid(-1, 0)


def ask() -> None:
    for _ in range(3):
        with socket.create_connection(ADDRESS, timeout=5) as other:
            with socket.create_connection(ADDRESS, timeout=5) as client:
                client.sendall(b"go on\n")
                client.recv(100)
            other.recv(100)
    print("DONE", flush=True)
    time.sleep(60)


{"server": serve, "client": ask}[sys.argv[1]]()
