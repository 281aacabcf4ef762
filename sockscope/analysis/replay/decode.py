"""Blob sections read in bulk, and the few structures that replay needs out of them."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from sockscope.model.event_rows import HEADER_BYTES, find_sections
from sockscope.model.events import Events, Section
from sockscope.model.sockaddr import Address, decode_sockaddr

SOL_SOCKET = 1
SCM_RIGHTS = 1


def has_section(events: Events, rows: npt.NDArray[np.int64], kind: Section) -> npt.NDArray[np.bool_]:
    """Which of these events (shape (k,), rows) carry a section of this kind that holds something: shape (k,)."""
    return find_sections(events, rows, kind)[0] >= 0


_HEADER = struct.Struct("<BBHI")
_EPOLL_EVENT = struct.Struct("<IQ")
_EPOLL_EVENT_ALIGNED = struct.Struct("<I4xQ")


def section_of(blob: bytes | memoryview, kind: Section) -> bytes | None:
    """The first section of this kind in one event's blob, or None."""
    # The same walk as unpack_sections, without a generator and a copy for each section passed by.
    at, size = 0, len(blob)
    while at + HEADER_BYTES <= size:
        found, errno, _, length = _HEADER.unpack_from(blob, at)
        at += HEADER_BYTES
        if at + length > size:
            return None
        if found == kind and (length or not errno):
            return bytes(blob[at : at + length])
        at += length
    return None


def rights_fds(control: bytes) -> list[int]:
    """Descriptor numbers of every SCM_RIGHTS message in a raw msg_control.

    Source: cmsg(3), unix(7); struct cmsghdr is size_t len, int level, int type on 64-bit.
    """
    fds: list[int] = []
    at = 0
    while at + 16 <= len(control):
        length, level, kind = struct.unpack_from("<Qii", control, at)
        if length < 16:
            break
        data = control[at + 16 : at + length]
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            count = len(data) // 4
            fds.extend(struct.unpack_from(f"<{count}i", data))
        at += (length + 7) & ~7
    return fds


def fd_pair(blob: bytes | memoryview) -> tuple[int, int] | None:
    """What socketpair or pipe gave back."""
    data = section_of(blob, Section.FD_PAIR)
    if data is None or len(data) < 8:
        return None
    first, second = struct.unpack_from("<ii", data)
    return first, second


def epoll_event(blob: bytes | memoryview) -> tuple[int, int]:
    """(events, data) of epoll_ctl's struct epoll_event; (0, 0) where it was not copied."""
    data = section_of(blob, Section.EPOLL_EVENTS)
    if data is not None and len(data) >= 12:
        events, value = _EPOLL_EVENT.unpack_from(data)
        return events, value
    data = section_of(blob, Section.EPOLL_EVENTS_ALIGNED)
    if data is not None and len(data) >= 16:
        events, value = _EPOLL_EVENT_ALIGNED.unpack_from(data)
        return events, value
    return 0, 0


def socket_address(blob: bytes | memoryview) -> Address | None:
    """The address that the call passed or returned."""
    data = section_of(blob, Section.SOCKADDR)
    return decode_sockaddr(data) if data is not None else None


def text_of(blob: bytes | memoryview, kind: Section) -> str:
    """A PATH or COMM section as text, or empty."""
    data = section_of(blob, kind)
    return data.rstrip(b"\0").decode("utf-8", "backslashreplace") if data else ""


def message_bytes(blob: bytes | memoryview) -> int:
    """Sum of the message lengths that sendmmsg or recvmmsg reported."""
    data = section_of(blob, Section.MMSG_LENS) or b""
    return sum(struct.unpack_from(f"<{len(data) // 4}I", data))
