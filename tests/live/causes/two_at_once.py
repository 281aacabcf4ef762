"""Two faults that have nothing to do with each other: three connections are kept after their end, two are closed but
kept by a helper."""

import contextlib
import os
import selectors
import socket
import sys
import time

ADDRESS = ("127.0.0.1", int(sys.argv[2]))


def serve() -> None:
    selector = selectors.DefaultSelector()
    listener = socket.create_server(ADDRESS, backlog=64)
    selector.register(listener, selectors.EVENT_READ)
    forgotten = []
    print("READY", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                conn, _peer = listener.accept()
                selector.register(conn, selectors.EVENT_READ)
                continue
            conn = key.fileobj  # type: ignore[assignment]
            request = conn.recv(100)
            if request.startswith(b"helper"):
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                conn.sendall(b"ok\n")
                selector.unregister(conn)
                conn.close()
            elif request:
                conn.sendall(b"ok\n")
            else:
                selector.unregister(conn)
                forgotten.append(conn)


def ask() -> None:
    leaving = [socket.create_connection(ADDRESS, timeout=5) for _ in range(3)]
    for client in leaving:
        client.sendall(b"hello\n")
        client.recv(100)
        client.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    waiting = [socket.create_connection(ADDRESS, timeout=0.3) for _ in range(2)]
    for client in waiting:
        client.sendall(b"helper\n")
        with contextlib.suppress(TimeoutError):
            client.recv(100)
    print("DONE", flush=True)
    time.sleep(60)


{"server": serve, "client": ask}[sys.argv[1]]()
