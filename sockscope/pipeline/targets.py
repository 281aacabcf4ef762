"""From what the user named to the processes to follow, or a clear no."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sockscope.errors import CannotObserveError, UsageError
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.sources.sockets.seed import descendants, tgids_of_port
from sockscope.sources.syscalls.engine import Engine, EngineOptions
from sockscope.sources.syscalls.preflight import check_target, is_stopped, still_there


def resolve(options: RecordOptions) -> tuple[int, ...]:
    """The running processes to follow: the named ones and all their descendants.

    Raises:
        UsageError: nothing was named, or the port is out of range.
        CannotObserveError: no such process, one that no engine can follow, or nothing listens there.
    """
    if not sys.platform.startswith("linux"):
        raise CannotObserveError("sockscope needs Linux: it reads the kernel's own view of sockets")
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


def _check_readable(tgid: int) -> None:
    """What was open before the attach must be read, whatever follows what comes after.

    Raises:
        CannotObserveError: the process is another user's, or protected, and CAP_SYS_PTRACE is missing.
    """
    try:
        os.readlink(f"/proc/{tgid}/exe")
    except PermissionError:
        root = os.geteuid() == 0
        raise CannotObserveError(
            f"no permission to look into process {tgid}" + (": root here lacks CAP_SYS_PTRACE" if root else ""),
            help_text="start the container with --cap-add SYS_PTRACE" if root else "run sockscope with sudo",
        ) from None
    except OSError:
        # It has just ended, which the engine will say.
        return


def netns_of(tgid: int | str = "self") -> int | None:
    """The network namespace of a process; None where it is gone or not to be looked at."""
    try:
        return os.stat(f"/proc/{tgid}/ns/net").st_ino
    except OSError:
        return None


def stopped_notes(tgids: Sequence[int]) -> list[str]:
    """A line for each process that somebody has stopped: it serves nobody, and no socket says why."""
    return [
        f"process {tgid} was stopped (SIGSTOP): it does nothing until kill -CONT {tgid}"
        for tgid in tgids
        if is_stopped(tgid)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An engine, ready to attach or launch.

    Attributes:
        note: why it is not the better one, in one line; empty where there is nothing to say.
    """

    engine: Engine
    note: str = ""


def choose_engine(options: RecordOptions, tgids: Sequence[int] = ()) -> Chosen:
    """bpf where its programs load here, else (unless bpf was asked for) ptrace.

    Args:
        tgids: the running processes that it is for.

    Raises:
        CannotObserveError: the engine asked for is not to be had here, or one of the processes cannot be followed.
    """
    for tgid in tgids:
        _check_readable(tgid)
    wanted = EngineOptions(payload_bytes=options.payload_bytes, pin=options.pin, port=options.port)
    note = ""
    if options.engine is not EngineChoice.PTRACE:
        try:
            return Chosen(engine=_bpf(wanted))
        except CannotObserveError as error:
            if options.engine is EngineChoice.BPF:
                raise CannotObserveError(
                    f"bpf cannot be used here: {error.message}",
                    help_text=error.help_text or _BPF_MEND,
                    detail=error.detail,
                ) from error
            note = " ".join(f"engine ptrace: bpf cannot be used here: {error.message}; {error.help_text}".split())
    from sockscope.sources.syscalls.ptrace import preflight
    from sockscope.sources.syscalls.ptrace.engine import PtraceEngine

    if tgids:
        # Who else traces it, and what Yama allows, are this engine's own matters.
        preflight.still_there(tgids)
    return Chosen(engine=PtraceEngine(wanted), note=note)


def make_engine(options: RecordOptions) -> Engine:
    """The engine that the options ask for.

    Raises:
        CannotObserveError: it is not to be had here.
    """
    return choose_engine(options).engine


_BPF_MEND = "sockscope doctor says what is missing; --engine ptrace works without"


def _bpf(wanted: EngineOptions) -> Engine:
    """The bpf engine, its programs loaded.

    Raises:
        CannotObserveError: they cannot be, and why.
    """
    from sockscope.sources.bpf.libbpf import problems
    from sockscope.sources.syscalls.bpf.engine import BpfEngine

    for reason, mend in problems():
        raise CannotObserveError(reason, help_text=mend)
    engine = BpfEngine(wanted)
    try:
        engine.prepare()
    except KeyError as error:
        # In a checkout: sources were pulled, nothing was built since.
        engine.close()
        raise CannotObserveError(
            f"its compiled programs are of another version ({error.args[0]})",
            help_text="install sockscope anew with pip (in a checkout: pip install -e .)",
        ) from error
    except BaseException:
        engine.close()
        raise
    return engine
