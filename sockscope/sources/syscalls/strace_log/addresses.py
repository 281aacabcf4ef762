"""`{sa_family=AF_INET, sin_port=htons(80), ...}` as the struct sockaddr that it was. Pure.

Source: strace src/sockaddr.c; ip(7), ipv6(7), unix(7), netlink(7), vsock(7).
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from sockscope.model.sockaddr import Family
from sockscope.sources.syscalls.strace_log.arguments import Change, Group, Value
from sockscope.sources.syscalls.strace_log.texts import Text
from sockscope.sources.syscalls.strace_log.values import after, number, whole, word_number

SOCKADDR_CAP: Final = 128
_VSOCK: Final = 40


def sockaddr(value: Value | None, length: int | None) -> bytes | None:
    """The raw address.

    Args:
        value: what strace printed for it.
        length: how many bytes the kernel was given or gave; None where not known.

    Returns:
        at most SOCKADDR_CAP bytes; None where nothing was printed of it (a pointer, NULL) or its family is unknown.
    """
    value = after(value)
    if not isinstance(value, Group) or value.opener != b"{" or length == 0:
        return None
    family = number(value.field(b"sa_family"))
    if family is None or not 0 <= family <= 0xFFFF:
        return None
    raw = struct.pack("<H", family) + _rest(value, family)
    if length is None or length < 0:
        return raw[:SOCKADDR_CAP]
    return raw.ljust(min(length, SOCKADDR_CAP), b"\0")[: min(length, SOCKADDR_CAP)]


def address_length(value: Value | None) -> int | None:
    """`[16]`, `[128 => 16]` or `16`: the length that counts in the end."""
    if isinstance(value, Group) and value.opener == b"[" and value.items:
        last = value.items[0]
        return number(last.after if isinstance(last, Change) else last)
    return number(value)


def _rest(fields: Group, family: int) -> bytes:
    if family == Family.INET:
        address = _packed(fields, socket.AF_INET, 4, b"sin_addr")
        return _port(fields.field(b"sin_port")) + address + bytes(8)
    if family == Family.INET6:
        flow = fields.field(b"sin6_flowinfo")
        raw_flow = _bytes_of(flow, 4) if isinstance(flow, Text) else struct.pack("!I", whole(flow) & 0xFFFF_FFFF)
        scope = struct.pack("<I", whole(fields.field(b"sin6_scope_id")) & 0xFFFF_FFFF)
        return _port(fields.field(b"sin6_port")) + raw_flow + _packed(fields, socket.AF_INET6, 16, b"sin6_addr") + scope
    if family == Family.UNIX:
        path = fields.field(b"sun_path", b"path")
        if not isinstance(path, Text):
            return b""
        return b"\0" + path.data if path.abstract else path.data + b"\0"
    if family == Family.NETLINK:
        pid = whole(fields.field(b"nl_pid", b"pid"))
        groups = whole(fields.field(b"nl_groups", b"groups"))
        pad = whole(fields.field(b"nl_pad"))
        return struct.pack("<HII", pad & 0xFFFF, pid & 0xFFFF_FFFF, groups & 0xFFFF_FFFF)
    if family == _VSOCK:
        port, cid = whole(fields.field(b"svm_port")), whole(fields.field(b"svm_cid"))
        return struct.pack("<HII", 0, port & 0xFFFF_FFFF, cid & 0xFFFF_FFFF) + bytes(4)
    data = fields.field(b"sa_data", b"sa_data_raw")
    return data.data if isinstance(data, Text) else b""


def _port(value: Value | None) -> bytes:
    if isinstance(value, Text):  # -X raw: the bytes as they lie there
        return _bytes_of(value, 2)
    return struct.pack("!H", whole(value) & 0xFFFF)


def _bytes_of(value: Text, count: int) -> bytes:
    return value.data[:count].ljust(count, b"\0")


def _packed(fields: Group, family: int, count: int, name: bytes) -> bytes:
    """The address: `inet_addr("..")`, `inet_pton(AF_INET6, "..", &sin6_addr)`, or its raw bytes."""
    value = fields.field(name)
    if value is None:
        value = next((each for each in fields.items if isinstance(each, Group) and each.head == b"inet_pton"), None)
    if isinstance(value, Text):
        return _bytes_of(value, count)
    if isinstance(value, Group):
        text = next((each for each in value.items if isinstance(each, Text)), None)
        if text is not None:
            try:
                return socket.inet_pton(family, text.data.decode("ascii"))
            except (OSError, ValueError):  # no address
                return bytes(count)
        if value.head == b"htonl":
            return struct.pack("!I", whole(value) & 0xFFFF_FFFF).ljust(count, b"\0")
    if isinstance(value, bytes):
        known = word_number(value) or 0
        return struct.pack("!I", known & 0xFFFF_FFFF).ljust(count, b"\0")
    return bytes(count)
