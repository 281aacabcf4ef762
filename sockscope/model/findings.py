"""What a rule says, and what a rule is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from sockscope.model.calls import USUAL_GROUPS, CallGroup


class Severity(IntEnum):
    """Ordered: INFO < WARNING < ERROR."""

    INFO = 1
    WARNING = 2
    ERROR = 3

    @property
    def label(self) -> str:
        return self.name.lower()


class Confidence(StrEnum):
    CERTAIN = "certain"
    LIKELY = "likely"
    POSSIBLE = "possible"


class Source(StrEnum):
    SYSCALL = "syscall"
    PACKET = "packet"
    SOCKET = "socket"
    PROC = "proc"


class Need(StrEnum):
    """Evidence without which a rule must say "skipped"."""

    SYSCALLS = "syscalls"
    PACKETS = "packets"
    SOCKETS = "sockets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One fact. `ref` is the event id, packet row or socket row in its table; -1 for none."""

    source: Source
    time_ns: int
    text: str
    ref: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that keeps an open file alive."""

    tgid: int
    comm: str
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequence:
    """What follows from a finding's fault, and would be a finding of its own without it."""

    rule: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A fault, grouping every connection that shares its cause.

    The first evidence is the primary one. `worst` is the connection whose timeline to show.
    """

    rule: str
    severity: Severity
    confidence: Confidence
    title: str
    tgid: int
    comm: str
    explanation: str
    remedy: str
    fd: int | None = None
    holder: Holder | None = None
    connections: tuple[int, ...] = ()
    count: int = 1
    worst: int | None = None
    evidence: tuple[Evidence, ...] = ()
    consequences: tuple[Consequence, ...] = ()
    """Set by the run, from rules that follow this one; rules leave it empty."""
    own_cause: bool = False
    """Told by itself in any case: what its rule follows is in the same process, and does not explain it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A rule that could not judge, and why."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a rule module declares as `RULE`.

    Attributes:
        slug: names the fault; never changes.
        severity: the usual one (a finding may carry a lower).
        summary: one line for `sockscope rules`.
        needs: evidence that must be there.
        yields_to: slugs of more specific rules; connections they explain are not reported again.
        follows: slugs of rules whose fault, in the same process, is the cause of this one's: its findings are then
            told as consequences of theirs. For faults of a whole process, which no connection joins.
        groups: calls it must have seen, or seen to be missing; it is skipped where a log was filtered of any.
        times: it judges by how long something took or lasted; it is skipped where times are coarse or unknown.
        bears_loss: right even where events or packets it needs were lost (it judges only what was
            seen); others are skipped then.
    """

    slug: str
    severity: Severity
    summary: str
    needs: frozenset[Need] = field(default_factory=lambda: frozenset({Need.SYSCALLS}))
    yields_to: frozenset[str] = frozenset()
    follows: frozenset[str] = frozenset()
    groups: frozenset[CallGroup] = USUAL_GROUPS
    times: bool = True
    bears_loss: bool = False
