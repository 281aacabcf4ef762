"""Socket addresses: `struct sockaddr` decoded, v4-mapped IPv6 normalised (RFC 4291 section 2.5.5.2)."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum


class Family(IntEnum):
    """Address families, as in include/linux/socket.h."""

    UNSPEC = 0
    UNIX = 1
    INET = 2
    INET6 = 10
    NETLINK = 16
    PACKET = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One end of a socket.

    Attributes:
        family: as in the kernel; v4-mapped IPv6 is INET.
        packed: 4 or 16 address bytes; the path for UNIX (leading NUL for the abstract namespace;
            empty for an unnamed socket).
        port: host order; 0 for UNIX.
    """

    family: int
    packed: bytes
    port: int = 0

    @classmethod
    def inet(cls, packed: bytes, port: int) -> Address:
        """From 4 or 16 address bytes."""
        if len(packed) == 16 and packed[:12] == V4_MAPPED_PREFIX:
            packed = packed[12:]
        return cls(family=Family.INET if len(packed) == 4 else Family.INET6, packed=packed, port=port)

    @property
    def host(self) -> str:
        if self.family in (Family.INET, Family.INET6):
            return dotted(self.packed) if len(self.packed) == 4 else str(ipaddress.ip_address(self.packed))
        if self.family == Family.UNIX:
            return unix_name(self.packed)
        return ""

    def __str__(self) -> str:
        if self.family == Family.INET:
            return f"{self.host}:{self.port}"
        if self.family == Family.INET6:
            return f"[{self.host}]:{self.port}"
        if self.family == Family.UNIX:
            return self.host
        return f"family {self.family}"


V4_MAPPED_PREFIX = b"\x00" * 10 + b"\xff\xff"


def dotted(packed: bytes) -> str:
    """Of IPv4, `127.0.0.1`; ten thousand are written for a page, and `ipaddress` takes several times as long."""
    return ".".join(map(str, packed))


def unix_name(path: bytes) -> str:
    """A unix socket's name as `ss` writes it: `@` for the abstract namespace, `*` when unnamed."""
    if not path:
        return "*"
    if path[:1] == b"\x00":
        return "@" + path[1:].rstrip(b"\x00").decode("utf-8", "backslashreplace")
    return path.split(b"\x00", 1)[0].decode("utf-8", "backslashreplace")


def decode_sockaddr(raw: bytes) -> Address | None:
    """Decode a raw `struct sockaddr`; None where it is too short for its family.

    Source: ip(7), ipv6(7), unix(7).
    """
    if len(raw) < 2:
        return None
    (family,) = struct.unpack_from("<H", raw)
    if family == Family.INET:
        if len(raw) < 8:
            return None
        (port,) = struct.unpack_from("!H", raw, 2)
        return Address.inet(raw[4:8], port)
    if family == Family.INET6:
        if len(raw) < 24:
            return None
        (port,) = struct.unpack_from("!H", raw, 2)
        return Address.inet(raw[8:24], port)
    if family == Family.UNIX:
        path = raw[2:]
        if path[:1] != b"\x00":
            path = path.split(b"\x00", 1)[0]
        return Address(family=family, packed=path)
    return Address(family=family, packed=raw[2:])


def encode_key(address: Address) -> bytes:
    """16 bytes as the tables hold them: IPv6, v4 as v4-mapped."""
    if len(address.packed) == 4:
        return V4_MAPPED_PREFIX + address.packed
    return address.packed.ljust(16, b"\x00")[:16]


def from_key(key: bytes, port: int) -> Address:
    """The inverse of `encode_key` for inet addresses."""
    return Address.inet(bytes(key).ljust(16, b"\x00"), port)
