"""In plain words what a call changes of a socket or descriptor: options, flags, what epoll watches."""

from __future__ import annotations

import struct

from sockscope.analysis.narration import describe_values as v
from sockscope.analysis.narration.describe_view import View
from sockscope.model import constants as c
from sockscope.model.calls import Call
from sockscope.model.events import Section

_EPOLL_CTL_DEL, _EPOLL_CTL_MOD = 2, 3
_EPOLLEXCLUSIVE = 1 << 28

_OPTIONS = {
    "SO_REUSEADDR": "TIME_WAIT sockets will not keep the address from being bound",
    "SO_REUSEPORT": "several sockets may listen on the same port",
    "SO_KEEPALIVE": "the kernel asks a silent peer from time to time whether it is still there",
    "SO_PASSCRED": "messages will say which process and user sent them",
    "TCP_NODELAY": "small segments go out at once",
    "TCP_DEFER_ACCEPT": "clients are told of once they have sent something",
}
"""Switched on."""


def fcntl(view: View) -> str:
    """Of fcntl."""
    title = c.FCNTL_COMMANDS.get(view.int_arg(1), "")
    if title.startswith("F_DUPFD"):
        return f"{view.ret} now names the same open file as {view.int_arg(0)}"
    if title == "F_SETFL":
        return "calls on it will not block" if view.args[2] & 0o4000 else "calls on it may block"
    if title == "F_SETFD":
        return "closed at exec" if view.args[2] & 1 else "stays open across exec"
    return ""


def option(view: View) -> str:
    """Of getsockopt and setsockopt."""
    raw = view.sections.get(Section.OPTION, b"")
    title = v.option_name(view.int_arg(1), view.int_arg(2))
    number = struct.unpack("<i", raw)[0] if len(raw) == 4 else None
    if view.call == Call.getsockopt:
        if title == "SO_PEERCRED" and len(raw) >= 12:
            pid, uid, gid = struct.unpack_from("<iII", raw)
            return f"who connected was process {pid} of user {uid}, group {gid}"
        if title == "SO_ACCEPTCONN" and number is not None:
            return "it listens" if number else "it does not listen"
        if title != "SO_ERROR" or number is None:
            return ""
        return "no error pending" if number == 0 else f"the pending error is {v.errno_name(number)}"
    if title == "SO_LINGER" and len(raw) >= 8:
        onoff, linger = struct.unpack_from("<ii", raw)
        if not onoff:
            return "close will not wait"
        return (
            "close will reset the connection (RST)"
            if linger == 0
            else f"close waits up to {linger} s for the rest to go"
        )
    return _OPTIONS.get(title, "") if number else ""


def epoll_ctl(view: View) -> str:
    """Of epoll_ctl."""
    fd = view.int_arg(2)
    if view.int_arg(1) == _EPOLL_CTL_DEL:
        return f"epoll no longer tells of descriptor {fd}"
    entries = v.epoll_entries(view.sections.get(Section.EPOLL_EVENTS), view.sections.get(Section.EPOLL_EVENTS_ALIGNED))
    if not entries:
        return ""
    bits = entries[0][0]
    wanted = [text for bit, text in ((0x1, "has something to read"), (0x4, "has room to write")) if bits & bit]
    edge = ", once a change (edge-triggered)" if bits & c.EPOLLET else ""
    edge += ", and of several that wait wakes one (EPOLLEXCLUSIVE)" if bits & _EPOLLEXCLUSIVE else ""
    now = "from now on " if view.int_arg(1) == _EPOLL_CTL_MOD else ""
    return f"{now}epoll_wait tells when descriptor {fd} {' or '.join(wanted) or 'has an error'}{edge}"
