"""What the calls that wait print: pollfds, descriptor sets, epoll events, limits. Pure.

Source: strace src/poll.c, src/desc.c, src/epoll.c, src/print_timespec.h.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from sockscope.model.events import Section
from sockscope.sources.syscalls.strace_log.arguments import CUT, Group, Value, parse
from sockscope.sources.syscalls.strace_log.parts import Parts
from sockscope.sources.syscalls.strace_log.values import U64, before, number, signed32, whole

_POLLFD: Final = struct.Struct("<iHH")
_EPOLL_EVENT: Final = struct.Struct("<IQ")
MAX_BITS: Final = 65536
_POLLFDS_CAP: Final = 8192 // _POLLFD.size
_EVENTS_CAP: Final = 8192 // _EPOLL_EVENT.size
_DETAIL = re.compile(rb"\s*+\S++\s++\((.*)\)\s*\Z", re.DOTALL)
"""What follows a result in parentheses."""
_TWICE_CLOSED = re.compile(rb"(?<=[\d>])\]\](?=, |\Z)")
"""Where select found more than strace can name (`2 (in [3]])`), strace closes a list twice."""


def detail(result: bytes) -> Group | None:
    """`1 ([{fd=3, revents=POLLIN}])`, `2 (in [3], left {..})`: what is in the parentheses; None without."""
    found = _DETAIL.match(result)
    return parse(_TWICE_CLOSED.sub(b"]", found[1])).top if found else None


def pollfds(value: Value | None, ret: int | None, told: Group | None, parts: Parts) -> None:
    """`[{fd=3, events=POLLIN}, ...]` with the revents that the result tells: POLLFDS."""
    value = before(value)
    if not isinstance(value, Group) or value.opener != b"[" or not value.items:
        return
    revents = _revents(told) if ret else {}
    packed = []
    for each in value.items[:_POLLFDS_CAP]:
        fd = number(each.field(b"fd")) if isinstance(each, Group) else None
        if fd is None or not isinstance(each, Group):
            parts.cut()
            continue
        own = revents.get(fd)
        ready = own.pop(0) if own else 0
        packed.append(_POLLFD.pack(signed32(fd), whole(each.field(b"events")) & 0xFFFF, ready))
    if len(value.items) > _POLLFDS_CAP:
        parts.cut()
    if packed:
        parts.add(Section.POLLFDS, b"".join(packed))


def _revents(told: Group | None) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    held = told.items[0] if told is not None and told.items else None
    if isinstance(held, Group):
        for each in held.items[:_POLLFDS_CAP]:
            fd = number(each.field(b"fd")) if isinstance(each, Group) else None
            if fd is not None and isinstance(each, Group):
                found.setdefault(fd, []).append(whole(each.field(b"revents")) & 0xFFFF)
    return found


def fd_sets(nfds: int, values: list[Value | None], ret: int | None, told: Group | None, parts: Parts) -> None:
    """select's three sets before and after: FDSETS_IN, FDSETS."""
    if not 0 < nfds <= 0x7FFF_FFFF:
        return
    bits = min(nfds, MAX_BITS)
    known = [value for value in (before(each) for each in values) if value is not None]
    if len(known) == 3 and all(isinstance(each, Group) or number(each) == 0 for each in known):
        parts.add(Section.FDSETS_IN, b"".join(_bit_set(each, bits, parts) for each in known))
    if ret is None or ret < 0:
        return
    # A set that is not named came back empty: `1 (in [3])`.
    after = {b"in": _EMPTY, b"out": _EMPTY, b"except": _EMPTY}
    items = told.items if told is not None and ret > 0 else []
    if ret > 0 and not items:
        return
    after.update({each.head: each for each in items if isinstance(each, Group) and each.head in after})
    if sum(len(each.items) for each in after.values()) < ret:
        parts.cut()
    parts.add(Section.FDSETS, b"".join(_bit_set(each, bits, parts) for each in after.values()))


_EMPTY: Final = Group(b"[", b"", [], [])


def _bit_set(value: Value | None, bits: int, parts: Parts) -> bytes:
    size = (bits + 63) // 64 * 8
    if not isinstance(value, Group):
        return bytes(size)
    mask = bytearray(size)
    for each in value.items:
        if each == CUT:
            parts.cut()
        fd = number(each)
        if fd is not None and 0 <= fd < size * 8:
            mask[fd >> 3] |= 1 << (fd & 7)
    return bytes(mask)


def epoll_event(value: Value | None, parts: Parts) -> None:
    """epoll_ctl's `{events=EPOLLIN, data={u32=5, u64=5}}`: EPOLL_EVENTS."""
    raw = _event(value)
    if raw is not None:
        parts.add(Section.EPOLL_EVENTS, raw)


def epoll_events(value: Value | None, ret: int | None, parts: Parts) -> None:
    """epoll_wait's array: EPOLL_EVENTS."""
    # Strace 4: `{{EPOLLIN, {u32=5, u64=5}}}`.
    if not isinstance(value, Group) or ret is None or ret <= 0:
        return
    raws = [raw for each in value.items[: min(ret, _EVENTS_CAP)] if (raw := _event(each)) is not None]
    if len(raws) < ret:
        parts.cut()
    if raws:
        parts.add(Section.EPOLL_EVENTS, b"".join(raws))


def _event(value: Value | None) -> bytes | None:
    if not isinstance(value, Group) or value.opener != b"{" or not value.items:
        return None
    told = value.field(b"events")
    data = value.field(b"data") or (value.items[1] if len(value.items) > 1 else None)
    events = number(told if told is not None else value.items[0])
    if events is None:
        return None
    return _EPOLL_EVENT.pack(events & 0xFFFF_FFFF, _data(data) & U64)


def _data(value: Value | None) -> int:
    """`{u32=5, u64=5}`, or one number."""
    if not isinstance(value, Group):
        return whole(value)
    held = value.field(b"u64")
    return whole(held if held is not None else value.field(b"u32", b"ptr", b"fd"))


def timeout(value: Value | None, parts: Parts) -> None:
    """`{tv_sec=0, tv_nsec=5}`, or strace 4's `{0, 5}`: TIMEOUT."""
    value = before(value)
    raw = seconds(value)
    if raw is not None:
        parts.add(Section.TIMEOUT, raw)


def seconds(value: Value | None) -> bytes | None:
    """A struct timespec or timeval; None where it is none."""
    if not isinstance(value, Group) or value.opener != b"{" or len(value.items) < 2:
        return None
    pair = [number(each) for each in value.items[:2]]
    if pair[0] is None or pair[1] is None:
        return None
    return struct.pack("<QQ", pair[0] & U64, pair[1] & U64)
