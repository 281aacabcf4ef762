"""What reading strace logs gives: the event table, and what is known of the log itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sockscope.model.events import Events
from sockscope.model.info import SyscallCoverage
from sockscope.model.seed import Seed
from sockscope.sources.unread import UnreadLine


class LogClock(StrEnum):
    """What the times of a log are."""

    DATED = "dated"
    """-ttt: CLOCK_REALTIME."""
    TIME_OF_DAY = "time of day"
    """-t, -tt: since midnight (local time) of the day on which the log begins."""
    RELATIVE = "relative"
    """-r alone: since the first line."""
    NONE = "none"
    """No times: only the order is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StraceLog:
    """One or several strace logs, read.

    Attributes:
        events: times in the log's own clock, ns; with `LogClock.NONE` steps of 1 µs that give the order alone. Events
            with the same text share their blob bytes. Addresses that only -yy tells are getsockname and getpeername
            events flagged `EventFlag.SEEDED`: no calls of the program, and not counted.
        seed: what -y and -yy say of descriptors that were open before the log begins, and the processes there then.
        coverage: engine "strace"; which groups of calls are missing, and how fine the times are.
        line_count: of all files. call_count: syscalls, also those that are of no interest.
        unread: the first `UNREAD_KEPT` lines that were not understood. unread_count: all of them.
        notes: what the user should know, a line each.
        span_ns: from the first line to the last, whatever they say: so long somebody watched at least.
    """

    events: Events
    seed: Seed
    clock: LogClock
    coverage: SyscallCoverage
    line_count: int
    call_count: int
    unread: tuple[UnreadLine, ...]
    unread_count: int
    notes: tuple[str, ...]
    span_ns: tuple[int, int] | None = None
