"""`address:port`, as ss and netstat write it."""

from __future__ import annotations

import socket

from sockscope.model.sockaddr import V4_MAPPED_PREFIX, Family

End = tuple[bytes, int, int]
"""Address (16 bytes, IPv4 as v4-mapped), port, family."""

WILDCARD_FAMILY = 254
"""`*`: any IPv6 address and so IPv4 too (ss since 4.16), or any IPv4 address (ss before). The file as a whole tells."""

NO_ADDRESS = bytes(16)
_INET, _INET6 = int(Family.INET), int(Family.INET6)
_KNOWN_LIMIT = 200_000
_LONGEST = 120


class Ends:
    """Reads ends; the same text is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], End | None] = {}
        self._services: dict[tuple[str, str], int | None] = {}

    def read(self, text: str, protocol: str) -> End | None:
        """One end; None where it is none, or has a name in the place of its numbers that nobody here knows.

        Args:
            text: `127.0.0.1:80`, `[::1]:80`, `*:80`, `:::80`, `127.0.0.53%lo:53`, `0.0.0.0:http`, `*:*`.
            protocol: `tcp` or `udp`: of the service's name.
        """
        key = (text, protocol)
        if key in self._known:
            return self._known[key]
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        found = self._known[key] = self._read(text, protocol) if len(text) <= _LONGEST else None
        return found

    def _read(self, text: str, protocol: str) -> End | None:
        host, colon, name = text.rpartition(":")
        port = self._port(name, protocol)
        if not colon or port is None:
            return None
        if host in ("*", ""):
            return NO_ADDRESS, port, WILDCARD_FAMILY
        inside, bracket, _ = host.partition("]")
        host = inside[1:] if bracket and inside.startswith("[") else host
        host = host.partition("%")[0]
        try:
            if ":" in host:
                return socket.inet_pton(socket.AF_INET6, host), port, _INET6
            return V4_MAPPED_PREFIX + socket.inet_pton(socket.AF_INET, host), port, _INET
        except (OSError, ValueError):
            return None

    def _port(self, name: str, protocol: str) -> int | None:
        if name == "*":
            return 0
        if name.isascii() and name.isdigit() and len(name) <= 5:
            return int(name) if int(name) < 1 << 16 else None
        key = (name, protocol)
        if key not in self._services:
            self._services[key] = _service(name, protocol)
        return self._services[key]


def _service(name: str, protocol: str) -> int | None:
    """The port of a service by this machine's /etc/services, which most have alike."""
    if not name or not name.isascii() or not name.isprintable() or not name[0].isalnum():
        return None
    try:
        return socket.getservbyname(name, protocol)
    except (OSError, ValueError):
        return None
