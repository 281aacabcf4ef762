"""What /proc says of the target beside its descriptors: processes, their network namespaces, shared memory.

Sampled through the session (processes and namespaces about once a second, segments at the start and at the end), so
that a late attach knows what nobody witnessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Relation(IntEnum):
    """What a sampled process is to the target."""

    TARGET = 0
    CHILD = 1
    """Of a target process, and not traced: a zombie found, a helper that came before the watching."""
    INIT = 2
    """PID 1 of a target's pid namespace, where that is not the host's, and no target itself."""
    PEER = 3
    """At the other end of a target's unix connection, looked at once."""


class SegmentKind(IntEnum):
    SYSTEM_V = 1  # shmget(2)
    POSIX = 2  # shm_open(3): a file in /dev/shm
    SEMAPHORE = 3  # sem_open(3): /dev/shm/sem.NAME


PROCESS_FACT_DTYPE = np.dtype(
    [
        ("time_ns", "<i8"),  # CLOCK_MONOTONIC
        ("tgid", "<i4"),
        ("ppid", "<i4"),
        ("ns_tgid", "<i4"),  # the number it knows itself by (last of NSpid); tgid where there is one namespace
        ("init_tgid", "<i4"),  # PID 1 of its pid namespace in our numbering; 0: the host's, or not found
        ("relation", "u1"),  # Relation
        ("state", "S1"),  # proc_pid_stat(5): R S D Z T t X I
        ("thread_count", "<u4"),
        ("sig_caught", "<u8"),  # bit n-1: signal n (SigCgt of proc_pid_status(5))
        ("sig_ignored", "<u8"),
        ("sig_blocked", "<u8"),
        ("nofile", "<u8"),  # soft RLIMIT_NOFILE
        ("cpu_ns", "<u8"),  # user + system time used so far
        ("comm", "S16"),
    ]
)
"""One row a process a sample."""

NETNS_FACT_DTYPE = np.dtype(
    [
        ("time_ns", "<i8"),  # CLOCK_MONOTONIC
        ("netns", "<u8"),  # inode of the network namespace
        ("listen_overflows", "<u8"),  # TcpExt ListenOverflows: of the whole namespace, not of one listener
        ("listen_drops", "<u8"),
        ("syncookies_sent", "<u8"),
        ("retrans_segs", "<u8"),  # Tcp RetransSegs
        ("somaxconn", "<u4"),
    ]
)
"""One row a network namespace a sample. Counters count from the namespace's birth: look at differences."""

SEGMENT_FACT_DTYPE = np.dtype(
    [
        ("time_ns", "<i8"),  # CLOCK_MONOTONIC
        ("kind", "u1"),  # SegmentKind
        ("id", "<u8"),  # shmid, or the file's inode
        ("tgid", "<i4"),  # a process that maps it, other than the target's too; -1: the segment itself, one row each
        ("creator", "<i4"),  # System V: cpid in our numbering; -1 where unknown
        ("size_bytes", "<u8"),
        ("attach_count", "<i4"),  # nattch; -1 where unknown (POSIX)
        ("changed_realtime_ns", "<i8"),  # System V: ctime; file: mtime
        ("value", "<i8"),  # of a semaphore; -1 where it cannot be read
        ("removed", "u1"),  # marked for removal, or unlinked
        ("path", "S108"),  # /dev/shm/NAME; empty for System V
    ]
)


def _none(dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    return np.zeros(0, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All samples of a session.

    Attributes:
        processes: PROCESS_FACT_DTYPE, in order of time.
        namespaces: NETNS_FACT_DTYPE, in order of time.
        segments: SEGMENT_FACT_DTYPE, in order of time.
    """

    processes: npt.NDArray[np.void] = field(default_factory=lambda: _none(PROCESS_FACT_DTYPE))
    namespaces: npt.NDArray[np.void] = field(default_factory=lambda: _none(NETNS_FACT_DTYPE))
    segments: npt.NDArray[np.void] = field(default_factory=lambda: _none(SEGMENT_FACT_DTYPE))
