"""The kernel itself."""

from __future__ import annotations

import os
import platform

from sockscope.model.capability import Capability, Status
from sockscope.sources.capabilities.privileges import read_text

_MACHINES = ("x86_64", "aarch64")


def check_kernel() -> Capability:
    system, machine = platform.system(), platform.machine()
    detail = f"{system} {platform.release()}, {machine}, {os.cpu_count()} CPUs"
    if system == "Linux" and machine in _MACHINES:
        return Capability(name="kernel", status=Status.OK, detail=detail, meaning="supported", needed=True)
    return Capability(
        name="kernel",
        status=Status.MISSING,
        detail=detail,
        meaning="live tracing knows x86_64 and aarch64 Linux only; `sockscope analyze` works anywhere",
        needed=True,
    )


def check_io_uring(disabled: str | None = None) -> Capability:
    """Whether programs may use io_uring. Args: disabled: the sysctl's value; None: read it.

    Source: Documentation/admin-guide/sysctl/kernel.rst.
    """
    value = read_text("/proc/sys/kernel/io_uring_disabled") if disabled is None else disabled
    if value == "2":
        meaning = "no program can pass the tracer by"
        return Capability(name="io_uring", status=Status.OK, detail="disabled for all", meaning=meaning)
    detail = {"0": "enabled", "1": "enabled for a group"}.get(value or "", "not restrictable, or not built in")
    return Capability(
        name="io_uring",
        status=Status.OK,
        detail=detail,
        meaning="what a program does through io_uring is not a system call: the bpf engine tells it all the same,"
        " ptrace shows only states and packets of its sockets",
    )
