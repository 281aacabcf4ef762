"""What was read of each process when it came under watch, for the history nobody witnessed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class FileKind(IntEnum):
    OTHER = 0
    SOCKET = 1
    EPOLL = 2
    PIPE = 3
    EVENTFD = 4
    TIMERFD = 5
    SIGNALFD = 6
    SHARED_MEMORY = 7
    IO_URING = 8
    PIDFD = 9


SEED_FD_DTYPE = np.dtype(
    [
        ("time_ns", "<i8"),
        ("tgid", "<i4"),
        ("fd", "<i4"),
        ("kind", "u1"),  # FileKind
        ("cloexec", "u1"),
        ("nonblock", "u1"),
        ("inode", "<u8"),  # socket inode; 0 for anon inodes
        ("open_file", "<u4"),  # same number: same open file description (kcmp KCMP_FILE); unique per seed
    ]
)

SEED_EPOLL_DTYPE = np.dtype(
    [
        ("tgid", "<i4"),
        ("epoll_fd", "<i4"),
        ("fd", "<i4"),  # tfd: the number at registration
        ("events", "<u4"),  # EPOLL* bits
        ("data", "<u8"),
        ("inode", "<u8"),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedProcess:
    """One process as found (or None fields where /proc would not say)."""

    tgid: int
    ppid: int
    tids: tuple[int, ...]
    comm: str
    exe: str
    cmdline: tuple[str, ...]
    netns: int
    started_ns: int | None = None
    """CLOCK_MONOTONIC of its start."""
    ns_tgid: int | None = None
    """The number the process knows itself by (NSpid), where it is another."""
    shares_files_with: int | None = None
    """Another tgid whose files table this is (CLONE_FILES across processes; kcmp KCMP_FILES)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """The target as found: most of it at attach, a process that came under watch later at that moment.

    Attributes:
        processes: each target process that was not seen to be born.
        fds: SEED_FD_DTYPE, every descriptor of every target process.
        epolls: SEED_EPOLL_DTYPE, every interest of every epoll instance (proc_pid_fdinfo(5)).
    """

    processes: tuple[SeedProcess, ...]
    fds: npt.NDArray[np.void]
    epolls: npt.NDArray[np.void]

    def plus(self, later: Seed) -> Seed:
        """This one and what was found later; a process that is in both stays as it was found first.

        Which descriptors share an open file is known within each; for sockets the inode tells it across both.
        """
        known = [process.tgid for process in self.processes]
        fds = later.fds[~np.isin(later.fds["tgid"], known)].copy()
        fds["open_file"] += self.fds["open_file"].max(initial=0)
        return Seed(
            processes=(*self.processes, *(p for p in later.processes if p.tgid not in known)),
            fds=np.concatenate([self.fds, fds]),
            epolls=np.concatenate([self.epolls, later.epolls[~np.isin(later.epolls["tgid"], known)]]),
        )

    @classmethod
    def empty(cls) -> Seed:
        return cls(processes=(), fds=np.zeros(0, SEED_FD_DTYPE), epolls=np.zeros(0, SEED_EPOLL_DTYPE))
