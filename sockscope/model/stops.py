"""How a server was stopped: what came of a SIGTERM, SIGINT or SIGQUIT."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sockscope.model.ids import NO_ID

A_GROUP = 0
"""In place of a receiver: all processes of a group."""


class Disposition(StrEnum):
    """What a process does at the signal, as /proc said before it came (proc_pid_status(5) SigCgt, SigIgn, SigBlk)."""

    UNKNOWN = "unknown"
    DEFAULT = "default"
    HANDLER = "handler"
    IGNORED = "ignored"
    BLOCKED = "blocked"
    """Fetched by signalfd(2) or sigwait(3), if at all."""
    UNHEARD = "unheard"
    """PID 1 of a pid namespace, no handler: the kernel drops it."""


class StopAct(StrEnum):
    """What happened in a step."""

    SIGNALLED = "signalled"
    """A signal came; `signal`, `other`: its sender."""
    SENT = "sent"
    """It sent `signal` to `other` (`A_GROUP`; NO_ID: to one that is not among them); of several the first."""
    CLOSED = "closed"
    """It closed sockets: `fds`; listeners or connections."""
    SHUT = "shut"
    """It ended its half (shutdown(2) SHUT_WR or SHUT_RDWR), or made a listener stop listening."""
    ACCEPTED = "accepted"
    ANSWERED = "answered"
    """It finished answers to what had been read before the signal."""
    FETCHED = "fetched"
    """It waited for `other`, which had ended; of several the first."""
    ENDED = "ended"
    """With `status`; with it went the sockets that nobody had closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopStep:
    """One thing that a process did, or several of a kind in a row.

    Attributes:
        time_ns, last_ns: CLOCK_MONOTONIC, of the first and the last of them.
        count: how many.
        fds: the descriptors, the first few.
        address: of the listener.
        status: as wait(2) gives it.
        listener_count, connection_count: of ENDED: what its end closed.
    """

    time_ns: int
    last_ns: int
    tgid: int
    act: StopAct
    count: int = 1
    signal: int = 0
    other: int = NO_ID
    fds: tuple[int, ...] = ()
    address: str = ""
    is_listener: bool = False
    status: int | None = None
    listener_count: int = 0
    connection_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StopProcess:
    """One process that the stop concerned: the one that got the signal, or one below it.

    Attributes:
        ns_tgid: the number it knows itself by; `tgid` where that is the same.
        parent: its parent, NO_ID where that is not among them.
        signalled_ns: when the first signal came; None: none did.
        ended_ns, status: None: it still ran at the end of the session.
        waited_by, waited_ns: who fetched it (wait4, waitid), and when; NO_ID and None: nobody was seen to.
    """

    tgid: int
    ns_tgid: int
    comm: str
    parent: int = NO_ID
    disposition: Disposition = Disposition.UNKNOWN
    signalled_ns: int | None = None
    ended_ns: int | None = None
    status: int | None = None
    waited_by: int = NO_ID
    waited_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopClients:
    """What became of the clients' connections.

    Attributes:
        open_count: open when the signal came.
        running_count: of these, with a request read and no whole answer.
        answered_count: of these, answered after the signal.
        cut_count: of these, closed without an answer.
        fin_count, reset_count: whom the target then sent a FIN, or an RST (each connection counts once, as RST where
            it got both).
        still_open_count: still open at the end of the session.
        accepted_count: accepted after the signal.
        refused_count: tried to connect after the last listener was closed and got RST; None: no packets.
    """

    open_count: int = 0
    running_count: int = 0
    answered_count: int = 0
    cut_count: int = 0
    fin_count: int = 0
    reset_count: int = 0
    still_open_count: int = 0
    accepted_count: int = 0
    refused_count: int | None = None

    @property
    def untold_count(self) -> int:
        """Closed, and what the client saw of it was not seen."""
        return max(0, self.open_count - self.fin_count - self.reset_count - self.still_open_count)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAudit:
    """A stop, from the signal to the last process's end.

    Attributes:
        signal: the number.
        sender: who sent it, as the receiver's pid namespace numbers it; 0: from outside, or the kernel.
        tgid: who got it; where several did, the one above the others.
        processes: it first, then those below it.
        steps: in order of time.
        left_out_count: steps that did not find room.
        listeners_first: the listeners were closed before any connection was; None: not both were closed by the program.
        ended_ns: when `tgid` ended; None: it did not.
    """

    signal: int
    time_ns: int
    sender: int
    tgid: int
    processes: tuple[StopProcess, ...]
    steps: tuple[StopStep, ...]
    clients: StopClients
    left_out_count: int = 0
    listeners_first: bool | None = None
    ended_ns: int | None = None

    @property
    def process(self) -> StopProcess:
        """The one that got the signal."""
        return self.processes[0]

    @property
    def last_ended_ns(self) -> int | None:
        """When the last of them was gone; None: some still run."""
        ends = [one.ended_ns for one in self.processes]
        return max((end for end in ends if end is not None), default=None) if None not in ends else None
