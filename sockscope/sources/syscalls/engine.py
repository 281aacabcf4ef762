"""The contract every syscall engine keeps.

An engine follows root processes (or a command it starts) with all their threads and descendants,
delivers batches of events, counts what it loses, and leaves the target exactly as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sockscope.model.events import Events
from sockscope.model.info import SyscallCoverage


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What is the same for every engine.

    Attributes:
        payload_bytes: how much of each read or write is copied (0: none).
        pin: put tracer and tracee on one CPU and restore the masks at the end.
        port: processes that bind this port are targets from then on, where the engine can tell (ptrace can't).
    """

    payload_bytes: int = 64
    pin: bool = True
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events, in no order promised beyond: all later batches hold only events that ended after `complete_ns`."""

    events: Events
    complete_ns: int
    """CLOCK_MONOTONIC up to which every traced event has been delivered."""


class Engine(Protocol):
    """Use: `attach` or `launch`, iterate `batches()` in the same thread, `stop()` from any, `close()` always.

    `attach` and `launch` return once every root thread is under trace. SockscopeError says why not.
    """

    name: str

    def attach(self, tgids: Sequence[int]) -> None:
        """Follow running processes, all their threads, and all that they start from now on.

        Existing descendants are the caller's to name (pipeline finds them by psutil).
        """
        ...

    def launch(self, command: Sequence[str]) -> int:
        """Start a command under trace; its tgid. It runs once `batches()` is iterated."""
        ...

    def adopt(self, tgids: Sequence[int]) -> None:
        """Follow more running processes, as `attach` does; for the thread that iterates `batches()`.

        Those that are gone, cannot be traced, or are followed already are passed over. Each thread that comes under
        trace is told by a task_attach event.
        """
        ...

    def add_ports(self, ports: Sequence[int]) -> None:
        """The target serves or calls these ports: tell what the kernel does to their sockets (kernel events), where
        the engine can."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Yield batches at least every 100 ms (empty ones too) until `stop()` or the target's end.

        With `EngineOptions.port` set it goes on without targets until `stop()`: another process may come to serve it.
        """
        ...

    def stop(self) -> None:
        """Ask for a clean detach; callable from a signal handler or another thread. `batches` then drains and ends."""
        ...

    def close(self) -> None:
        """Detach if still attached, end helper processes, restore affinity. Safe to call twice."""
        ...

    def coverage(self) -> SyscallCoverage:
        """What was seen and lost so far."""
        ...

    def exit_status(self) -> int | None:
        """Wait status of a launched command, once it has ended."""
        ...
