"""Why a process cannot be traced, beyond what holds for every engine.

Source: ptrace(2) "Ptrace access mode checking", Documentation/admin-guide/LSM/Yama.rst.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sockscope.errors import CannotObserveError, TargetGoneError
from sockscope.sources.syscalls import preflight
from sockscope.sources.syscalls.preflight import check_command, check_machine, gone_error, is_stopped, read_status

__all__ = [
    "check_command",
    "check_machine",
    "check_target",
    "check_untraced",
    "gone_error",
    "is_stopped",
    "permission_error",
    "read_status",
    "still_there",
]

YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
TRACER_MODULE = b"sockscope.sources.syscalls.ptrace.tracer"
"""In the command line of every tracer process (engine.py)."""
CAP_SYS_PTRACE = 1 << 19


def check_target(tgid: int) -> None:
    """Return if the process can be traced.

    Raises:
        CannotObserveError: why not, and what to do.
    """
    preflight.check_target(tgid)
    status = read_status(tgid)
    check_untraced(tgid, status)
    _check_access(tgid, f"process {tgid} ({status['Name']})", status)


def still_there(tgids: Sequence[int]) -> list[int]:
    """Those that have not ended and can be traced.

    Raises:
        CannotObserveError: one of them cannot be traced.
        TargetGoneError: all have ended.
    """
    return preflight.still_there(tgids, check_target)


def check_untraced(tgid: int, status: Mapping[str, str]) -> None:
    """Raises CannotObserveError, naming the tracer, where there is one."""
    tracer = int(status.get("TracerPid", "0"))
    if not tracer:
        return
    comm, tracer = _tracer_name(tracer)
    raise CannotObserveError(
        f"process {tgid} ({status['Name']}) is already traced by process {tracer} ({comm})",
        help_text=f"a process has one tracer: end {comm} ({tracer}) first",
    )


def _tracer_name(tracer: int) -> tuple[str, int]:
    """What to call it, and whom to end. Of another sockscope that is not the helper but who started it."""
    try:
        if TRACER_MODULE in Path(f"/proc/{tracer}/cmdline").read_bytes():
            return "sockscope", int(read_status(tracer)["PPid"])
        return Path(f"/proc/{tracer}/comm").read_text().strip(), tracer
    except (OSError, TargetGoneError):
        return "?", tracer


def permission_error(tgid: int) -> CannotObserveError:
    """Why the kernel says EPERM for this process, and the mend."""
    status = read_status(tgid)
    name = f"process {tgid} ({status['Name']})"
    own = read_status(os.getpid())
    capable = bool(int(own.get("CapEff", "0"), 16) & CAP_SYS_PTRACE)
    owners = set(status.get("Uid", "").split()[:3])
    scope = _yama_scope()
    if scope == 3:
        return CannotObserveError(
            f"no permission to trace {name}: Yama forbids tracing on this machine (ptrace_scope=3)",
            help_text="set kernel.yama.ptrace_scope to 1 in /etc/sysctl.d and restart the machine",
        )
    if capable:
        return CannotObserveError(
            f"no permission to trace {name} though this process has CAP_SYS_PTRACE",
            help_text="a security module or a container's seccomp profile forbids it: docker run --cap-add SYS_PTRACE",
        )
    if os.geteuid() == 0:
        return CannotObserveError(
            f"no permission to trace {name}: root here lacks CAP_SYS_PTRACE",
            help_text="start the container with --cap-add SYS_PTRACE",
        )
    if owners != {str(os.geteuid())}:
        return CannotObserveError(
            f"no permission to trace {name}: it belongs to user id {'/'.join(sorted(owners))}",
            help_text="run sockscope with sudo",
        )
    if scope:
        return CannotObserveError(
            f"no permission to trace {name}: Yama allows it to root only (ptrace_scope={scope})",
            help_text="run sockscope with sudo, or: sudo sysctl kernel.yama.ptrace_scope=0",
        )
    return CannotObserveError(
        f"no permission to trace {name}: it is protected (set-user-id, or not dumpable)",
        help_text="run sockscope with sudo",
    )


def _yama_scope() -> int:
    try:
        return int(YAMA.read_text())
    except (OSError, ValueError):
        return 0


def _check_access(tgid: int, name: str, status: Mapping[str, str]) -> None:
    """Opening its memory asks the kernel the same question as attaching, and changes nothing."""
    try:
        os.close(os.open(f"/proc/{tgid}/mem", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        raise permission_error(tgid) from None
    except (FileNotFoundError, ProcessLookupError):
        raise gone_error(tgid, status["Name"]) from None
