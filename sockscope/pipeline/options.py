"""What a session is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EngineChoice(StrEnum):
    AUTO = "auto"
    BPF = "bpf"
    PTRACE = "ptrace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Which findings make the flight recorder write.

    Attributes:
        bar: from this severity on.
        select, ignore: rules, as for a report.
    """

    bar: int
    select: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """One of `pids`, `port`, `command` names the target.

    Attributes:
        duration_s: None: until stopped, or the target's end.
        payload_bytes: of each read and write; also of each packet.
        pin: put tracer and tracee on one CPU.
        keep_s: flight recorder: hold the last so many seconds in memory, write them when asked to; None: write all.
        alarm: with `keep_s`: what makes it write by itself; None: nothing does.
        redact: mask what looks like credentials before anything is written.
    """

    pids: tuple[int, ...] = ()
    port: int | None = None
    command: tuple[str, ...] = ()
    duration_s: float | None = None
    engine: EngineChoice = EngineChoice.AUTO
    payload_bytes: int = 64
    pin: bool = True
    keep_s: float | None = None
    alarm: Alarm | None = None
    redact: bool = True
    packets: bool = True
    sockets: bool = True
