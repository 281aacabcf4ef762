"""From what the user named to the processes to follow, or a clear no."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sockscope.errors import CannotObserveError, UsageError
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.sources.sockets.seed import descendants, tgids_of_port
from sockscope.sources.syscalls.engine import Engine, EngineOptions


def resolve(options: RecordOptions) -> tuple[int, ...]:
    """The running processes to follow: the named ones and all their descendants.

    Raises:
        UsageError: nothing was named, or the port is out of range.
        CannotObserveError: no such process, one that cannot be traced, or nothing listens there.
    """
    if not sys.platform.startswith("linux"):
        raise CannotObserveError("sockscope needs Linux: it reads the kernel's own view of sockets")
    from sockscope.sources.syscalls.ptrace.preflight import check_target, still_there

    roots: Sequence[int]
    if options.port is not None:
        if not 1 <= options.port <= 65535:
            raise UsageError(f"port {options.port} is out of range", help_text="ports go from 1 to 65535")
        roots = tgids_of_port(options.port)
        if not roots:
            raise CannotObserveError(
                f"nothing listens on port {options.port}",
                help_text="sockscope snapshot --state listen shows what does",
            )
        roots = still_there(roots)
    elif options.pids:
        roots = options.pids
        for tgid in roots:
            check_target(tgid)
    else:
        raise UsageError("what shall be watched?", help_text="name it by --port N or --pid PID")
    return tuple(dict.fromkeys([*roots, *descendants(roots)]))


def netns_of(tgid: int | str = "self") -> int | None:
    """The network namespace of a process; None where it is gone or not to be looked at."""
    try:
        return os.stat(f"/proc/{tgid}/ns/net").st_ino
    except OSError:
        return None


def stopped_notes(tgids: Sequence[int]) -> list[str]:
    """A line for each process that somebody has stopped: it serves nobody, and no socket says why."""
    from sockscope.sources.syscalls.ptrace.preflight import is_stopped

    return [
        f"process {tgid} was stopped (SIGSTOP): it does nothing until kill -CONT {tgid}"
        for tgid in tgids
        if is_stopped(tgid)
    ]


def make_engine(options: RecordOptions) -> Engine:
    """The engine that the options ask for.

    Raises:
        CannotObserveError: it is not to be had here.
    """
    if options.engine is EngineChoice.BPF:
        raise CannotObserveError(
            "the bpf engine is not part of this version", help_text="use --engine ptrace, or leave the choice to auto"
        )
    from sockscope.sources.syscalls.ptrace.engine import PtraceEngine

    return PtraceEngine(EngineOptions(payload_bytes=options.payload_bytes, pin=options.pin))
