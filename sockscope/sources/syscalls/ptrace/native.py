"""The compiled loop (`csrc/`), through ctypes. One per process: its state is the library's."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from sockscope.errors import CannotObserveError

LIBRARY = Path(__file__).with_name("_loop.so")
TICK_MS = 50
"""How often the loop comes back to Python though nothing asks for it."""


class Reason(IntEnum):
    """Why the loop came back (csrc/loop.c RUN_*)."""

    TICK = 0
    FULL = 1
    STOP = 2
    END = 3


class Used(NamedTuple):
    """Counters of the loop. The first two are of the present buffer, the others totals."""

    record_count: int
    blob_bytes: int
    event_count: int
    dropped_count: int
    foreign_count: int
    unread_count: int
    task_count: int


class Native:
    """The library's functions with Python's types. ptrace belongs to the thread that attaches: use one thread."""

    def __init__(self) -> None:
        if not LIBRARY.is_file():
            raise CannotObserveError(
                "the ptrace engine's loop is not compiled",
                help_text="install sockscope with pip (in a checkout: pip install -e .)",
            )
        self._lib = ctypes.CDLL(str(LIBRARY), use_errno=True)
        self._used = (ctypes.c_uint64 * 7)()

    def init(
        self,
        plans: bytes,
        *,
        payload_bytes: int,
        guard_fd: int,
        restart_syscall: int,
        rt_sigreturn: int,
        execve: int,
    ) -> None:
        """Take the copy plans; start the tick; SIGTERM and SIGHUP from now on end `run` with STOP."""
        self._lib.ss_init(plans, len(plans), payload_bytes, guard_fd, restart_syscall, rt_sigreturn, execve, TICK_MS)

    def set_buffer(self, records: int, record_max: int, blob: int, blob_max: int, *, dropping: bool = False) -> None:
        """Write to these addresses from now on. dropping: count events instead."""
        self._lib.ss_set_buffer(ctypes.c_void_p(records), record_max, ctypes.c_void_p(blob), blob_max, int(dropping))

    def used(self) -> Used:
        self._lib.ss_used(self._used)
        return Used(*self._used)

    def seize(self, tid: int, tgid: int, mask: int, *, launched: bool = False) -> int:
        """PTRACE_SEIZE; 0 or -errno. `mask`: number of its saved affinity mask; -1: none."""
        return int(self._lib.ss_seize(tid, tgid, mask, int(launched)))

    def interrupt(self, tid: int) -> int:
        """PTRACE_INTERRUPT; 0 or -errno."""
        return int(self._lib.ss_interrupt(tid))

    def run(self) -> Reason:
        """Trace until there is a reason to come back."""
        return Reason(self._lib.ss_run())

    def finish(self) -> bool:
        """Write the calls still in the kernel and the detaches. False: the buffer is full, call again."""
        return int(self._lib.ss_finish()) == 0

    def tasks(self) -> list[tuple[int, int]]:
        """(tid, tgid) of every task under trace."""
        room = max(1, self.used().task_count)
        pairs = (ctypes.c_int32 * (2 * room))()
        count = int(self._lib.ss_tasks(pairs, room))
        return [(pairs[2 * i], pairs[2 * i + 1]) for i in range(count)]

    def root_status(self) -> int | None:
        """Wait status of the launched command; None while it runs."""
        status = int(self._lib.ss_root_status())
        return None if status < 0 else status

    def install_filter(self, numbers: list[int]) -> int:
        """The seccomp filter of a launched command, in the child; 0 or -errno."""
        table = (ctypes.c_uint32 * len(numbers))(*numbers)
        return int(self._lib.ss_install_filter(table, len(numbers)))


def address_of(buffer: memoryview) -> int:
    """The address of a writable buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
