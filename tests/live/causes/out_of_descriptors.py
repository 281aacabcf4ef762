"""One fault that brings on another: connections are kept after their end, until accept fails with EMFILE."""

import resource
import socket
import sys
import time

ADDRESS = ("127.0.0.1", int(sys.argv[2]))


def serve() -> None:
    listener = socket.create_server(ADDRESS, backlog=64)
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    kept = []
    print("READY", flush=True)
    while True:
        try:
            conn, _peer = listener.accept()
        except OSError:
            time.sleep(0.2)
            continue
        if conn.recv(100):
            conn.sendall(b"ok\n")
        conn.recv(100)
        kept.append(conn)


def ask() -> None:
    for _ in range(30):
        client = socket.create_connection(ADDRESS, timeout=5)
        client.sendall(b"hello\n")
        client.settimeout(0.2)
        try:
            client.recv(100)
        except TimeoutError:
            break
        client.close()
    print("DONE", flush=True)
    time.sleep(60)


{"server": serve, "client": ask}[sys.argv[1]]()
