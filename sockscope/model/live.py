"""What the live view shows: one line an event, as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LineKind(StrEnum):
    CONNECTION = "connection"  # a call on a connection, its accept included
    SOCKET = "socket"  # a call on a listener, or on a socket that is not connected
    WAIT = "wait"
    TASK = "task"  # threads and processes: begun, ended, signalled
    KERNEL = "kernel"  # what the kernel did to a connection, whoever ran then: tgid and tid are 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveLine:
    """One event of the target.

    Attributes:
        time_ns: CLOCK_MONOTONIC, when it began.
        duration_ns: 0 for instants.
        comm: of the process.
        connection: the peer, `127.0.0.1:40112`; empty where the event belongs to none or the peer is unknown.
        text: in strace's notation; holds text of the target, to be escaped before it is shown.
        words: what it means in plain words, or empty. To be escaped too.
        repeated: how many times the same came again since it was last told; 0 for a first time.
        period_ns: of the repetition; 0 where `repeated` is 0.
        failed: the call returned an error.
    """

    time_ns: int
    duration_ns: int
    tgid: int
    tid: int
    comm: str
    connection: str
    text: str
    words: str
    kind: LineKind
    repeated: int = 0
    period_ns: int = 0
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveBatch:
    """Lines in order of time, and how many events there was no room for.

    Attributes:
        known: what was known before the first event, in words; to be escaped.
    """

    lines: tuple[LiveLine, ...] = ()
    left_out_count: int = 0
    known: tuple[str, ...] = ()
