"""Packets taken apart for the reader, few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DissectedPacket:
    """One packet of a connection, layer by layer.

    Attributes:
        row: of the packet table.
        time_ns: CLOCK_MONOTONIC, as in the timeline.
        from_target: the target sent it.
        wire_bytes, captured_bytes: its length on the wire, and how much of it was kept.
        lines: one a layer, outermost first; not escaped.
    """

    row: int
    time_ns: int
    from_target: bool
    wire_bytes: int
    captured_bytes: int
    lines: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DissectedConnection:
    """The first packets of a connection, and how many more it has."""

    packets: Sequence[DissectedPacket]
    left_out_count: int
