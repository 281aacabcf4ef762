"""What the kernel itself told of a connection's socket, exact in time; only some engines can hear it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sockscope.model.tcp import TcpState

KERNEL_EVENT_DTYPE = np.dtype(
    [
        ("time_ns", "<i8"),  # CLOCK_MONOTONIC
        ("event", "<i8"),  # row in the event table
        ("cookie", "<u8"),  # 0: the socket had none yet
        ("local", "u1", (16,)),  # IPv6, or IPv4 v4-mapped; zeros where the kernel had no address yet
        ("peer", "u1", (16,)),
        ("local_port", "<u2"),  # host order
        ("peer_port", "<u2"),
        ("call", "<u2"),  # one of sockscope.model.calls.KERNEL_EVENTS
        ("old", "u1"),  # TcpState before; of other events than sock_state the state at that moment
        ("new", "u1"),  # TcpState after; of other events than sock_state 0
    ]
)
"""One event of the kernel, decoded."""

KERNEL_REF = 1 << 48
"""Added to an event id where evidence and timeline items point at a kernel event: their small numbers are socket
rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """The socket went from one state to another. `time_ns`: CLOCK_MONOTONIC."""

    time_ns: int
    before: TcpState
    after: TcpState


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """An RST; `sent`: by the target's side."""

    time_ns: int
    sent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStory:
    """All that the kernel told of one connection, in time."""

    state_changes: tuple[StateChange, ...] = ()
    retransmit_count: int = 0
    resets: tuple[Reset, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCoverage:
    """How much the kernel told; all zero: the engine could not hear it, or nothing happened.

    Attributes:
        unassigned_count: of all three, those about sockets that are no connection of the target.
    """

    state_change_count: int = 0
    retransmit_count: int = 0
    reset_count: int = 0
    unassigned_count: int = 0

    @property
    def count(self) -> int:
        return self.state_change_count + self.retransmit_count + self.reset_count


class KernelStories(Protocol):
    """Stories made when asked for: ten thousand of them are never all wanted."""

    def __call__(self, connection: int) -> KernelStory:
        """What was told of one connection (an id)."""
        ...


def untold(connection: int) -> KernelStory:
    """The story where nobody heard the kernel."""
    return KernelStory()
