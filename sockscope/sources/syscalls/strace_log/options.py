"""Socket option values as strace prints them, back to bytes. Pure.

Source: strace src/net.c, print_getsockopt and print_setsockopt; socket(7), tcp(7).
"""

from __future__ import annotations

import struct
from typing import Final

from sockscope.model.constants import SO_LINGER, SOCKET_OPTIONS, SOL_SOCKET, TIMEVAL_OPTIONS
from sockscope.model.events import Section
from sockscope.model.tcp import TcpState
from sockscope.sources.syscalls.strace_log.addresses import sockaddr
from sockscope.sources.syscalls.strace_log.arguments import CUT, Group, Value
from sockscope.sources.syscalls.strace_log.messages import credentials
from sockscope.sources.syscalls.strace_log.parts import Parts
from sockscope.sources.syscalls.strace_log.texts import Text
from sockscope.sources.syscalls.strace_log.values import U64, after, number, whole
from sockscope.sources.syscalls.strace_log.waiting import seconds

OPTION_CAP: Final = 256
_SO_PEERCRED: Final = 17
_TIMES: Final = frozenset(key for key, name in SOCKET_OPTIONS.items() if name in TIMEVAL_OPTIONS)
_TCP_STATES: Final = {f"TCP_{state.name}".encode(): int(state) for state in TcpState}


def option(level: int, name: int, value: Value | None, length: int | None, parts: Parts) -> None:
    """OPTION, where strace printed the value.

    Args:
        length: bytes that the option has; None where not known.
    """
    value = after(value)
    raw = _raw(level, name, value, length)
    if raw is None:
        return
    if isinstance(value, Text) and value.cut:
        parts.cut()
        wanted = len(raw)
    else:
        wanted = len(raw) if length is None or length < 0 else length
    if wanted > OPTION_CAP:
        parts.cut()
        wanted = OPTION_CAP
    raw = raw[:wanted]
    if raw:
        parts.add(Section.OPTION, raw)


def _raw(level: int, name: int, value: Value | None, length: int | None) -> bytes | None:
    if isinstance(value, Text):
        return value.data
    if not isinstance(value, Group):
        return None
    if value.opener == b"[":
        return _numbers(value, length)
    if level == SOL_SOCKET:
        if name == SO_LINGER and len(value.items) >= 2:
            on, linger = (whole(each) & 0xFFFF_FFFF for each in value.items[:2])
            return struct.pack("<II", on, linger)
        if name in _TIMES:
            return seconds(value)
        if name == _SO_PEERCRED:
            return credentials(value)
    if value.field(b"tcpi_state") is not None:
        return _tcp_info(value)
    return sockaddr(value, length)


def _numbers(value: Group, length: int | None) -> bytes | None:
    """`[1]`: an int, or what has the option's length; `[2, 3]`: several ints."""
    found = [number(each) for each in value.items[:64] if each != CUT]
    known = [each for each in found if each is not None]
    if not known or len(known) < len(found):
        return None
    if len(known) == 1 and length is not None and length in (1, 2, 8):
        return struct.pack("<Q", known[0] & U64)[:length]
    return b"".join(struct.pack("<I", each & 0xFFFF_FFFF) for each in known)


def _tcp_info(value: Group) -> bytes | None:
    """The first byte alone: what follows is abbreviated, and a wrong layout would be worse than none."""
    state = value.field(b"tcpi_state")
    found = _TCP_STATES.get(state) if isinstance(state, bytes) else None
    found = number(state) if found is None else found
    return bytes((found,)) if found is not None and 0 <= found < 256 else None
