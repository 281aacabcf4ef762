"""What one connection went through on the wire, for reports: made when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class WireSide:
    """What one side sent.

    Attributes:
        counts: segments by the names of FLOW_FACT_DTYPE: `retransmissions`, `zero_windows`, ….
        stall_ns: the longest time that it held an ACK back while the other's data waited; 0: never.
        rtt_ns: (smallest, median, largest) time from its data to their ACK; None: not known.
    """

    counts: Mapping[str, int]
    stall_ns: int
    rtt_ns: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFacts:
    """Of one connection that has packets.

    Attributes:
        local, peer: by who sent it.
        handshake_ns: SYN to the ACK that ends the handshake; None: not seen.
        one_sided: only one side's packets were captured.
        reset_by: `local` or `peer`, the first RST's sender; empty: nobody.
        half_close_ns: data went on so long after one side's FIN; None: it did not.
    """

    local: WireSide
    peer: WireSide
    handshake_ns: int | None
    one_sided: bool
    began_before: bool
    port_reused: bool
    simultaneous_open: bool
    simultaneous_close: bool
    reset_by: str
    half_close_ns: int | None


class WireTold(Protocol):
    """Facts made when asked for."""

    def __call__(self, connection: int) -> WireFacts | None:
        """None where the connection has no packets."""
        ...


def no_wire(connection: int) -> WireFacts | None:
    """Where nobody tells any."""
    return None
