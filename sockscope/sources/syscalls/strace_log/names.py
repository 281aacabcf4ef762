"""What -y and -yy say of a descriptor: `TCP:[127.0.0.1:80->127.0.0.1:5555]`.

Source: strace 4.11 to 6.13, `printfd` in util.c and socketutils.c.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import NamedTuple

from sockscope.model.events import Section, pack_section
from sockscope.model.seed import FileKind
from sockscope.model.sockaddr import Family

_INET = re.compile(rb"(?:TCP|UDP)(?:v6|-Lite|-Litev6)?:\[(.+)\]$", re.DOTALL)
_SOCKET = re.compile(rb"(?:\(null\)|[A-Z][A-Za-z0-9_-]*|socket):\[(.*)\]$", re.DOTALL)
_END = re.compile(rb"(?:\[([0-9a-fA-F:.]{2,45})(?:%[^\]]*)?\]|([0-9.]{7,15})):(\d{1,5})$")
_UNIX_PATH = re.compile(rb'(@?)"((?:[^"\\]|\\.)*)"', re.DOTALL)
_INODE = re.compile(rb"(?:[A-Z0-9_]+:)?(\d{1,19})")
_ANONYMOUS = (
    (b"anon_inode:[eventpoll]", FileKind.EPOLL),
    (b"anon_inode:[eventfd", FileKind.EVENTFD),
    (b"anon_inode:[timerfd]", FileKind.TIMERFD),
    (b"anon_inode:[signalfd]", FileKind.SIGNALFD),
    (b"signalfd:[", FileKind.SIGNALFD),
    (b"anon_inode:[io_uring]", FileKind.IO_URING),
    (b"anon_inode:[pidfd]", FileKind.PIDFD),
    (b"pid:", FileKind.PIDFD),
    (b"pipe:[", FileKind.PIPE),
    (b"/dev/shm/", FileKind.SHARED_MEMORY),
    (b"/memfd:", FileKind.SHARED_MEMORY),
)


class NameFacts(NamedTuple):
    """What a name says.

    Attributes:
        inode: of a socket, where the name has it; else 0.
        local, peer: a packed SOCKADDR section each; empty where the name has no such address.
    """

    kind: FileKind
    inode: int = 0
    local: bytes = b""
    peer: bytes = b""


def read_name(text: bytes) -> NameFacts:
    """The facts in a name; `FileKind.OTHER` for a path and for what is not known."""
    for beginning, kind in _ANONYMOUS:
        if text.startswith(beginning):
            return NameFacts(kind)
    match = _INET.match(text)
    if match:
        local, _, peer = match[1].partition(b"->")
        if _END.match(local):
            return NameFacts(FileKind.SOCKET, 0, _inet(local), _inet(peer))
    match = _SOCKET.match(text)
    if match is None:
        return NameFacts(FileKind.OTHER)
    inode = _INODE.match(match[1])
    local_name = b""
    if b"UNIX" in text[:8] or text.startswith(b"(null)"):
        path = _UNIX_PATH.search(match[1])
        if path:
            raw = (b"\0" if path[1] else b"") + path[2]
            local_name = _section(struct.pack("<H", Family.UNIX) + raw[:108])
    return NameFacts(FileKind.SOCKET, int(inode[1]) if inode else 0, local_name)


def _inet(text: bytes) -> bytes:
    match = _END.match(text)
    if match is None or int(match[3]) > 0xFFFF:
        return b""
    try:
        address = ipaddress.ip_address((match[1] or match[2]).decode("ascii"))
    except ValueError:
        return b""
    port = struct.pack("!H", int(match[3]))
    if address.version == 4:
        return _section(struct.pack("<H", Family.INET) + port + address.packed + bytes(8))
    return _section(struct.pack("<H", Family.INET6) + port + bytes(4) + address.packed + bytes(4))


def _section(sockaddr: bytes) -> bytes:
    return pack_section(Section.SOCKADDR, sockaddr)
