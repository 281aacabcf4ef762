"""What is known of a session as a whole: target, clocks, coverage."""

from __future__ import annotations

from dataclasses import dataclass, field

from sockscope.model.calls import CallGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was asked to be watched; `files`: or the evidence that was asked to be read, by name."""

    command: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyscallCoverage:
    engine: str = ""
    """Empty: no syscalls were recorded."""
    event_count: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    """Cause → events lost; empty or all zero: nothing lost."""
    pinned: bool = False
    """Tracer and tracee were put on one CPU during the session."""
    missing_groups: tuple[CallGroup, ...] = ()
    """Calls that the evidence does not hold, though the program may well have made them (`strace -e`)."""
    resolution_ns: int = 1
    """How fine the times are; 0: there are none, and those in the table give only the order."""

    @property
    def lost_count(self) -> int:
        return sum(self.lost.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketCoverage:
    available: bool = False
    seen_count: int = 0
    lost_count: int = 0
    interfaces: tuple[str, ...] = ()
    gap: str = ""
    """What shows that the capture did not see all that went over the wire; empty: nothing does."""

    @property
    def whole(self) -> bool:
        """What is not among the packets did not happen, as far as one can tell."""
        return not self.lost_count and not self.gap


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketCoverage:
    """How much the socket table tells. Listings of others (ss, netstat) may lack what our own snapshots have.

    Attributes:
        has_inodes: an inode of 0 is what the kernel said; else those of a text without the column are stand-ins.
        has_owners: who holds the sockets was asked for.
        has_timers: a timer of 0 is what the kernel said.
        has_limits: the Send-Q of a listener is its backlog.
        whole: every snapshot shows the same kinds of sockets in all their states: what is missing from one has gone.
        times_known: false where a time was guessed, and so is how long anything lasted.
    """

    snapshot_count: int = 0
    has_inodes: bool = True
    has_owners: bool = True
    has_timers: bool = True
    has_limits: bool = True
    whole: bool = True
    times_known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """How the clock of one piece of evidence was laid beside the session's.

    Attributes:
        source: what was moved: a file's name, `packets`, `socket snapshots`.
        offset_ns: what was added to its times to get those of what it was laid beside.
        uncertainty_ns: the true offset lies within ± this; -1: nothing tells, it was taken as it stands.
        basis: what it rests on, in words: `312 handshakes and 4 104 transfers`.
        packets: it is a capture's; else that of socket snapshots.
        beside: the capture that it was laid beside, and that tells what both saw; empty: the rest of the evidence.
    """

    source: str
    offset_ns: int
    uncertainty_ns: int
    basis: str
    packets: bool = True
    beside: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """The facts of the session that are not in a table.

    Attributes:
        started_realtime_ns: CLOCK_REALTIME when watching began.
        started_ns, ended_ns: CLOCK_MONOTONIC.
        clock_samples: (monotonic_ns, realtime_ns) pairs through the session.
        notes: things the user should know ("no CAP_NET_RAW: no packets"), one line each.
        complete: False for a recording cut off before its end.
        alignments: of evidence without a common clock; empty for a recording.
    """

    target: Target
    started_realtime_ns: int
    started_ns: int
    ended_ns: int
    host: str = ""
    kernel: str = ""
    machine: str = ""
    clock_samples: tuple[tuple[int, int], ...] = ()
    clock_skew_ns: int = 0
    syscalls: SyscallCoverage = field(default_factory=SyscallCoverage)
    packets: PacketCoverage = field(default_factory=PacketCoverage)
    sockets: SocketCoverage = field(default_factory=SocketCoverage)
    notes: tuple[str, ...] = ()
    complete: bool = True
    alignments: tuple[Alignment, ...] = ()

    @property
    def apart_ns(self) -> int | None:
        """Within this, which came first of a packet and a call is not known; None: they were not laid side by side."""
        laid = [one.uncertainty_ns for one in self.alignments if one.packets and not one.beside]
        if any(one < 0 for one in laid):
            return None
        return max([abs(self.clock_skew_ns), *laid])
