"""What every report is made from: the analysis summed up, nothing that needs the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from operator import attrgetter
from typing import Protocol as TypingProtocol
from typing import TypeAlias

from sockscope.model.connections import Connection
from sockscope.model.descriptors import Process
from sockscope.model.findings import Finding, Rule, Skip
from sockscope.model.info import SessionInfo
from sockscope.model.kernel import KernelCoverage, KernelStories, untold
from sockscope.model.latency import ServerLatency
from sockscope.model.stops import StopAudit
from sockscope.model.wire_facts import WireTold, no_wire


class Lane(StrEnum):
    """Where a timeline item happened."""

    WIRE = "wire"
    KERNEL = "kernel"
    SYSCALL = "syscall"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineItem:
    """One line of a connection's story.

    Attributes:
        time_ns: CLOCK_MONOTONIC start.
        duration_ns: 0 for instants; -1 still going at the end.
        lane: wire, kernel, or syscall.
        actor: `comm[tgid]` or `comm[tgid/tid]` for syscalls, `->`/`<-`/`--` for wire and kernel
            (`->`: the target sends).
        name: syscall, TCP flags, or new state: `recvfrom`, `FIN,ACK`, `CLOSE_WAIT`.
        text: the whole line, decoded: `recvfrom(7, "GET / HTTP/1.1\\r\\n"..., 1024) = 78`.
        words: what it means in plain words, or empty: `request GET / (78 bytes)`.
        ref: event id, packet row or socket row; of a kernel event `KERNEL_REF` and its event id.
        failed: the call returned an error.
        exact: in the kernel's lane: the kernel told it at that moment; other items there are what a snapshot showed.
        is_mark: in the kernel's lane: something that happened to the socket (RST, retransmission), not a state.
    """

    time_ns: int
    duration_ns: int
    lane: Lane
    actor: str
    name: str
    text: str
    words: str = ""
    ref: int = -1
    failed: bool = False
    exact: bool = False
    is_mark: bool = False


TimelineRow: TypeAlias = tuple[int, int, Lane, str, str, str, str, int, bool, bool, bool]
"""The fields of a `TimelineItem` in their order."""


@dataclass(frozen=True, slots=True)
class TimelineTable:
    """A timeline as columns, for who reads thousands of them; of the items, what the fields of the same names say."""

    time_ns: Sequence[int] = ()
    duration_ns: Sequence[int] = ()
    lane: Sequence[Lane] = ()
    actor: Sequence[str] = ()
    name: Sequence[str] = ()
    text: Sequence[str] = ()
    words: Sequence[str] = ()
    ref: Sequence[int] = ()
    failed: Sequence[bool] = ()
    exact: Sequence[bool] = ()
    is_mark: Sequence[bool] = ()

    @classmethod
    def of_rows(cls, rows: Iterable[TimelineRow]) -> TimelineTable:
        return cls(*zip(*rows, strict=True))

    @classmethod
    def of_items(cls, items: Iterable[TimelineItem]) -> TimelineTable:
        return cls.of_rows(_row_of(item) for item in items)

    def items(self) -> list[TimelineItem]:
        """The same as objects."""
        columns = [getattr(self, name) for name in _FIELDS]
        return [TimelineItem(**dict(zip(_FIELDS, row, strict=True))) for row in zip(*columns, strict=True)]


_FIELDS = tuple(field.name for field in fields(TimelineItem))
_row_of: Callable[[TimelineItem], TimelineRow] = attrgetter(*_FIELDS)


class TimelineTables(TypingProtocol):
    """Timelines made when asked for: of many connections together, as what they share is worked out once."""

    def __call__(self, connections: Sequence[int], limits: Sequence[int]) -> Iterator[TimelineTable]:
        """One after another, made some hundreds at a time: ten thousand of them are never all wanted.

        Each is in order of time; over its limit, the middle is left out and one item says how much.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRow:
    """A connection and what reports show beside it."""

    connection: Connection
    processes: tuple[int, ...]
    """tgids that touched it, in order."""
    event_count: int
    packet_count: int
    finding_indexes: tuple[int, ...]
    summary: str
    """In words: `GET /index.html → 200, 615 bytes`, or empty."""
    far: str = ""
    """Of a unix connection the other end in words, `python[812], client of /run/app.sock`: no address says it."""
    uring_count: int = 0
    """How many of its events went through an io_uring."""
    wire: str = ""
    """What its packets went through, in words: `2 retransmissions (1 fast), 1 zero window; round trip 0.4 ms`;
    empty where nothing was out of the ordinary."""


def no_story(connection: int) -> str:
    """Where nobody tells one."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    info: SessionInfo
    processes: tuple[Process, ...]
    connections: tuple[ConnectionRow, ...]
    findings: tuple[Finding, ...]
    """Worst first."""
    skipped: tuple[Skip, ...]
    rules: tuple[Rule, ...]
    """Those that ran."""
    timeline_tables: TimelineTables
    unassigned: dict[str, int]
    """Reason → events that belong to no connection."""
    idle_words: tuple[str, ...] = ()
    """What each process does at rest: `python3[812]: poll every 500 ms`."""
    stories: Callable[[int], str] = no_story
    """A connection's life in a few sentences, made when asked for; empty where there is nothing to tell."""
    architecture: tuple[str, ...] = ()
    """What the server is, one line a fact: `nginx[13] and nginx[14] share one listener on 0.0.0.0:80 (fd 6), …`."""
    latency: tuple[ServerLatency, ...] = ()
    """Where the time of each server's answers went, the server that answered most first."""
    stops: tuple[StopAudit, ...] = ()
    """Each time that a server was asked to end, in order of time."""
    kernel: KernelCoverage = field(default_factory=KernelCoverage)
    kernel_stories: KernelStories = untold
    wire_facts: WireTold = no_wire
    """What a connection's packets went through, in numbers."""

    def timelines(self, connection: int, *, limit: int = 200) -> list[TimelineItem]:
        """One connection's timeline, as objects."""
        (table,) = self.timeline_tables([connection], [limit])
        return table.items()
