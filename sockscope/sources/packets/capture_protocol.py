"""What the capture's two processes say to each other: one JSON object a line, one reply a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class Operation(StrEnum):
    START = "start"
    PORTS = "ports"
    COVERAGE = "coverage"
    CUT = "cut"
    """Write what has come, begin a new segment."""
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Main process to helper.

    Attributes:
        operation: what to do.
        ports: START and PORTS: all ports to capture.
        interfaces: START: where; empty: by `addresses`.
        addresses: START: (packed hex, port) of the target's local addresses.
        path: START: the pcapng file, absolute; with `keep_s` the folder of its segments.
        keep_s: START: keep only the packets of the last so many seconds; 0: all.
        snap_bytes, netns_pid: START.
        redact: START: mask what looks like credentials.
    """

    operation: Operation
    ports: Sequence[int] = ()
    interfaces: Sequence[str] = ()
    addresses: Sequence[tuple[str, int]] = ()
    path: str = ""
    snap_bytes: int = 0
    netns_pid: int | None = None
    redact: bool = False
    keep_s: float = 0.0

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Request:
        said = json.loads(line)
        said["operation"] = Operation(said["operation"])
        said["addresses"] = [(str(packed), int(port)) for packed, port in said["addresses"]]
        return cls(**said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Helper to main process: counts so far, or why it cannot.

    Attributes:
        seen_count: packets written. lost_count: packets the kernel or a full disk dropped.
        interfaces: those captured on. notes: what the user should know, one line each.
        error, help_text: set where the capture cannot start.
    """

    seen_count: int = 0
    lost_count: int = 0
    interfaces: Sequence[str] = ()
    notes: Sequence[str] = ()
    error: str = ""
    help_text: str = ""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Reply:
        return cls(**json.loads(line))
