"""The kernel and optional engines."""

from __future__ import annotations

import ctypes
import os
import platform

from sockscope.model.capability import Capability, Status
from sockscope.sources.capabilities.privileges import Cap, has, read_text

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
        meaning="what a program does through io_uring is not a system call: its sockets show states and packets only",
    )


def check_bpf() -> Capability:
    """What the optional bpf engine will want: BTF, libbpf, CAP_BPF and CAP_PERFMON."""
    wanting = []
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        wanting.append(("no BTF", "a kernel with CONFIG_DEBUG_INFO_BTF"))
    if not _has_libbpf():
        wanting.append(("no libbpf.so.1", "sudo apt-get install libbpf1"))
    if not (has(Cap.SYS_ADMIN) or (has(Cap.BPF) and has(Cap.PERFMON))):
        wanting.append(("no CAP_BPF and CAP_PERFMON", "sudo sockscope ..."))
    note = "the bpf engine is not part of this version; tracing goes by ptrace"
    if not wanting:
        detail = "BTF, libbpf.so.1 and CAP_BPF are there"
        return Capability(name="bpf (optional)", status=Status.OK, detail=detail, meaning=note)
    return Capability(
        name="bpf (optional)",
        status=Status.LIMITED,
        detail=", ".join(what for what, _ in wanting),
        meaning=note,
        mend="; ".join(mend for _, mend in wanting),
    )


def _has_libbpf() -> bool:
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return False
    return True
