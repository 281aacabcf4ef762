"""Why a process cannot be watched by whatever engine, said before it is touched.

Source: proc_pid_status(5), proc_pid_stat(5).
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sockscope.errors import CannotObserveError, TargetGoneError, UsageError
from sockscope.sources.syscalls.abi import Machine

PF_KTHREAD = 0x0020_0000
"""include/linux/sched.h"""
ELF_CLASS_32 = 1


def check_machine() -> Machine:
    """The architecture, where this machine's processes can be traced.

    Raises:
        CannotObserveError: not Linux, or neither x86_64 nor aarch64.
    """
    if sys.platform != "linux":
        raise CannotObserveError(
            f"tracing needs Linux, this is {sys.platform}",
            help_text="sockscope analyze works here, on recordings and captures",
        )
    machine = platform.machine()
    if machine not in set(Machine):
        raise CannotObserveError(f"tracing is not made for {machine}", help_text="x86_64 and aarch64 are")
    return Machine(machine)


def check_target(tgid: int) -> None:
    """Return if the process can be followed.

    Raises:
        CannotObserveError: why not, and what to do.
    """
    check_machine()
    status = read_status(tgid)
    if int(status["Tgid"]) != tgid:
        raise CannotObserveError(
            f"{tgid} is a thread of process {status['Tgid']}", help_text=f"name the process: {status['Tgid']}"
        )
    name = f"process {tgid} ({status['Name']})"
    if status["State"][:1] in "ZX":
        raise TargetGoneError(
            f"{name} is a zombie: it has ended and waits for its parent, process {status['PPid']}",
            help_text="there is nothing left to trace; look at the parent",
        )
    if _is_kernel_thread(tgid):
        raise CannotObserveError(f"{name} is a kernel thread", help_text="only programs can be traced")
    if tgid in _own_line():
        raise CannotObserveError(
            f"{name} is sockscope itself or started it", help_text="name the server's process, not this one's"
        )
    _check_class(tgid, name)


def _is_kernel_thread(tgid: int) -> bool:
    """By its flags: process 2 of a container is as good as any other."""
    try:
        stat = Path(f"/proc/{tgid}/stat").read_text(errors="backslashreplace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The name, in parentheses, may hold anything.
    return bool(int(stat.rpartition(")")[2].split()[6]) & PF_KTHREAD)


def still_there(tgids: Sequence[int], check: Callable[[int], None] = check_target) -> list[int]:
    """Those that have not ended: workers come and go while a server is looked at.

    Args:
        check: raises where a process cannot be followed.

    Raises:
        CannotObserveError: one of them cannot be traced.
        TargetGoneError: all have ended.
    """
    alive: list[int] = []
    gone: TargetGoneError | None = None
    for tgid in tgids:
        try:
            check(tgid)
            alive.append(tgid)
        except TargetGoneError as error:
            gone = gone or error
    if not alive and gone is not None:
        raise gone
    return alive


def is_stopped(tgid: int) -> bool:
    """By SIGSTOP or the like: it does nothing until SIGCONT."""
    try:
        return read_status(tgid)["State"].startswith("T")
    except TargetGoneError:
        return False


def read_status(pid: int) -> Mapping[str, str]:
    """/proc/PID/status, key → text.

    Raises:
        CannotObserveError: no such process.
    """
    try:
        # A negative or zero number is no process either, and "/proc/-1" is no file.
        text = Path(f"/proc/{pid}/status").read_text(errors="backslashreplace")
    except (FileNotFoundError, ProcessLookupError):
        raise TargetGoneError(
            f"there is no process {pid}", help_text="it may have ended; sockscope diagnose --port finds it by its port"
        ) from None
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key: value.strip() for key, value in pairs}


def check_command(program: str) -> str:
    """The path of a command to launch.

    Raises:
        UsageError: not found, or not executable.
    """
    found = _which(program)
    if found is not None:
        return found
    if os.sep in program and os.path.isdir(program):
        raise UsageError(f"{program} is a folder", help_text="name the program in it")
    if os.sep in program and os.path.exists(program):
        raise UsageError(f"command cannot be executed: {program}", help_text=f"chmod +x {program}")
    raise UsageError(f"command not found: {program}", help_text="check its name and PATH, or give its full path")


def _which(program: str) -> str | None:
    import shutil

    return shutil.which(program) if program else None


def _own_line() -> set[int]:
    """This process and everyone that started it."""
    line: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in line:
        line.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            break
    return line


def gone_error(tgid: int, comm: str = "") -> TargetGoneError:
    """For a target that ended while it was being attached to."""
    name = f"{tgid} ({comm})" if comm else f"{tgid}"
    return TargetGoneError(f"process {name} ended during the attach", help_text="start it again and retry")


def _check_class(tgid: int, name: str) -> None:
    try:
        with open(f"/proc/{tgid}/exe", "rb") as file:
            head = file.read(5)
    except OSError:
        # Deleted in another mount namespace, say; the loop looks at the registers too.
        return
    if head[:4] == b"\x7fELF" and head[4:5] == bytes([ELF_CLASS_32]):
        raise CannotObserveError(
            f"{name} is a 32-bit program, which sockscope cannot trace", help_text="trace a 64-bit build of it"
        )
