"""One fault with many faces: the loop waits for a slow backend, so nobody is accepted, and answers are late."""

import selectors
import socket
import sys
import threading
import time

ADDRESS = ("127.0.0.1", int(sys.argv[2]))


def slow_backend(listener: socket.socket) -> None:
    while True:
        conn, _ = listener.accept()
        conn.recv(100)
        time.sleep(1.5)
        conn.sendall(b"at last\n")
        conn.close()


def serve() -> None:
    backend = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=slow_backend, args=(backend,), daemon=True).start()
    selector = selectors.DefaultSelector()
    listener = socket.create_server(ADDRESS, backlog=64)
    selector.register(listener, selectors.EVENT_READ)
    print("READY", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                conn, _peer = listener.accept()
                selector.register(conn, selectors.EVENT_READ)
                continue
            conn = key.fileobj  # type: ignore[assignment]
            request = conn.recv(100)
            if request.startswith(b"slow"):
                with socket.create_connection(backend.getsockname()) as upstream:
                    upstream.sendall(b"please\n")
                    upstream.recv(100)
            if request:
                conn.sendall(b"ok\n")
            else:
                selector.unregister(conn)
                conn.close()


def one(word: bytes) -> None:
    with socket.create_connection(ADDRESS, timeout=10) as client:
        client.sendall(word)
        client.recv(100)


def ask() -> None:
    for _ in range(10):
        one(b"quick\n")
    for _ in range(2):
        slow = threading.Thread(target=one, args=(b"slow\n",))
        slow.start()
        time.sleep(0.2)
        others = [threading.Thread(target=one, args=(b"quick\n",)) for _ in range(5)]
        for other in others:
            other.start()
        for thread in (slow, *others):
            thread.join()
    print("DONE", flush=True)
    time.sleep(60)


{"server": serve, "client": ask}[sys.argv[1]]()
