"""Clients that go on asking until nobody listens any more. Not a test: a program.

`python -m tests.live.steady_clients PROTOCOL PORT`: some keep their connection, others take a new one for each
question; a line on stdin (or its end) stops them. On stdout a line for each `A_LINE` answers (of one client), and
at the end one of JSON: what they got.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import MappingProxyType

KEEPERS = 3
CALLERS = 2
PAUSE_S = 0.004
A_LINE = 10
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is asked, and whether an answer is there in full."""

    question: bytes
    last_question: bytes
    """Asks for the connection's end too."""
    is_whole: Callable[[bytes], bool]


def whole_page(data: bytes) -> bool:
    """The header, and as much as its Content-Length says (or the last chunk)."""
    head, end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    if not end:
        return False
    return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")


PROTOCOLS = MappingProxyType(
    {
        "http": Protocol(
            question=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            last_question=b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            is_whole=whole_page,
        ),
        "redis": Protocol(
            question=b"PING\r\n", last_question=b"QUIT\r\n", is_whole=lambda data: data.endswith((b"G\r\n", b"K\r\n"))
        ),
    }
)


@dataclass(kw_only=True)
class Tally:
    """What became of the questions.

    Attributes:
        answered: in full.
        cut: an answer that began and did not end.
        unanswered: nothing came (a server may close an idle connection just as the next question comes).
        refused: nobody listened.
        errors: of HTTP answers, those whose status is not 200.
        connections: that were made.
    """

    answered: int = 0
    cut: int = 0
    unanswered: int = 0
    refused: int = 0
    errors: int = 0
    connections: int = 0

    def add(self, other: Tally) -> None:
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


class Client:
    """One thread's.

    Args:
        keeps: asks again on the same connection.
    """

    def __init__(self, protocol: Protocol, port: int, stop: threading.Event, *, keeps: bool) -> None:
        self.tally = Tally()
        self._protocol = protocol
        self._port = port
        self._stop = stop
        self._keeps = keeps

    def go_on(self) -> None:
        while not self._stop.is_set() and not self.tally.refused:
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S) as connection:
                    self.tally.connections += 1
                    self._talk(connection)
            except ConnectionRefusedError:
                self.tally.refused += 1
            except OSError:
                # Reset while it was made, or as it was closed.
                self.tally.unanswered += 1

    def _talk(self, connection: socket.socket) -> None:
        while self._keeps and not self._stop.is_set():
            if not self._ask(connection, self._protocol.question):
                return
            time.sleep(PAUSE_S)
        self._ask(connection, self._protocol.last_question)
        while connection.recv(4096):
            pass
        time.sleep(PAUSE_S)

    def _ask(self, connection: socket.socket, question: bytes) -> bool:
        got = b""
        try:
            connection.sendall(question)
            while not self._protocol.is_whole(got):
                more = connection.recv(65536)
                if not more:
                    break
                got += more
        except OSError:
            more = b""
        if self._protocol.is_whole(got):
            self.tally.answered += 1
            if self.tally.answered % A_LINE == 0:
                # In one piece: print() writes the end of the line apart, and another client may come between.
                sys.stdout.write("answered\n")
                sys.stdout.flush()
            self.tally.errors += got.startswith(b"HTTP/") and b" 200 " not in got[:16]
            return b"onnection: close" not in got and not got.startswith(b"HTTP/1.0")
        if got:
            self.tally.cut += 1
        else:
            self.tally.unanswered += 1
        return False


def main(protocol: str, port: int) -> None:
    stop = threading.Event()
    clients = [Client(PROTOCOLS[protocol], port, stop, keeps=number < KEEPERS) for number in range(KEEPERS + CALLERS)]
    threads = [threading.Thread(target=client.go_on, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_S + 1)
    tally = Tally()
    for client in clients:
        tally.add(client.tally)
    print(json.dumps(asdict(tally)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
