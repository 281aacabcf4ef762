"""What the main process and a tracer say to each other: one JSON message a datagram (SOCK_SEQPACKET).

Events do not pass here; they lie in the shared buffer and a `Filled` points at them.
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass

MESSAGE_MAX_BYTES = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """First, to the tracer. The packed copy plans lie at the start of the buffer.

    Attributes:
        cpu: pin tracer and tracees there; None: leave affinity alone.
        numbers: syscalls that a launched command stops at.
    """

    segment_count: int
    segment_bytes: int
    record_bytes: int
    record_max: int
    plan_bytes: int
    payload_bytes: int
    restart_syscall: int
    rt_sigreturn: int
    execve: int
    cpu: int | None
    numbers: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Follow these processes: first of all, or more of them while others are traced.

    Attributes:
        lenient: those that cannot be traced are passed over, and their affinity is left alone.
    """

    tgids: list[int]
    lenient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """`command[0]` is a path."""

    path: str
    command: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """A launched command may run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """The segment was read and may be written again. -1: the sign of life was seen."""

    segment: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Detach (or end the launched command) and finish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Every thread is under trace.

    Attributes:
        process_count: processes under trace; fewer than asked for where some have ended.
        tgid: the launched command's.
    """

    process_count: int
    tgid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    message: str
    help_text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """Records to read. `segment` -1: none, only a sign of life.

    Attributes:
        complete_ns: CLOCK_MONOTONIC; all later records ended after it.
        dropped_count, foreign_count, unread_count: totals so far: events while the buffer was full, 32-bit
            processes let go, stops that the kernel would not explain.
    """

    segment: int
    record_count: int
    blob_bytes: int
    complete_ns: int
    dropped_count: int
    foreign_count: int
    unread_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Last, from the tracer; the detaching follows at once, the end of the stream when it is done.

    Attributes:
        status: the launched command's wait status; None where none ended.
    """

    status: int | None


Message = Setup | Attach | Launch | Go | Free | Stop | Ready | Refused | Filled | Ended
_TYPES: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Setup, Attach, Launch, Go, Free, Stop, Ready, Refused, Filled, Ended)
}


def send(channel: socket.socket, message: Message) -> bool:
    """Send one; False where the other side is gone."""
    try:
        channel.send(json.dumps([type(message).__name__, asdict(message)]).encode())
    except (BrokenPipeError, ConnectionResetError, OSError):
        return False
    return True


def receive(channel: socket.socket) -> Message | None:
    """The next one; None at the end of the stream.

    Raises:
        BlockingIOError: nothing there now (non-blocking channel).
    """
    try:
        data = channel.recv(MESSAGE_MAX_BYTES)
    except ConnectionResetError:
        # The other side ended with messages of ours unread. Told once, before what it sent last.
        data = channel.recv(MESSAGE_MAX_BYTES)
    if not data:
        return None
    name, fields = json.loads(data)
    return _TYPES[name](**fields)
