"""ptrace and what it stands on, tried on a child of our own. Source: ptrace(2), seccomp(2), kcmp(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

from sockscope.model.capability import Capability, Status
from sockscope.sources.capabilities.privileges import Cap, has, read_text
from sockscope.sources.sockets.open_files import KcmpRefusedError, kcmp_files

_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_GET_SYSCALL_INFO = 0x420E
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_AS_ROOT = "sudo sockscope ...   (in a container: docker run --cap-add SYS_PTRACE)"


def check_attach() -> Capability:
    """Whether processes can be seized: our own (tried on a child) and others' (CAP_SYS_PTRACE)."""
    meaning = "following a server's system calls"
    number = _try_ptrace()[0]
    if number:
        return Capability(
            name="ptrace",
            status=Status.MISSING,
            detail=f"PTRACE_SEIZE of a child fails: {os.strerror(number)}",
            meaning=f"no {meaning}: a security policy forbids it",
            mend="docker run --cap-add SYS_PTRACE --security-opt seccomp=unconfined",
            needed=True,
        )
    if has(Cap.SYS_PTRACE):
        detail = "CAP_SYS_PTRACE"
        return Capability(name="ptrace", status=Status.OK, detail=detail, meaning=f"{meaning} of any user", needed=True)
    return Capability(
        name="ptrace",
        status=Status.LIMITED,
        detail="no CAP_SYS_PTRACE",
        meaning=f"{meaning} of your own processes only",
        mend=_AS_ROOT,
        needed=True,
    )


def check_yama(scope: str | None = None) -> Capability:
    """What Yama adds.

    Args:
        scope: content of ptrace_scope; None: read it.

    Source: Documentation/admin-guide/LSM/Yama.rst.
    """
    text = read_text(_YAMA) if scope is None else scope
    privileged = has(Cap.SYS_PTRACE)
    mend = "sudo sysctl kernel.yama.ptrace_scope=0"
    if text in (None, "", "0"):
        detail = "not in this kernel" if not text else "ptrace_scope 0"
        return Capability(name="Yama", status=Status.OK, detail=detail, meaning="adds no restriction")
    if text == "3":
        return Capability(
            name="Yama",
            status=Status.MISSING,
            detail="ptrace_scope 3",
            meaning="nobody may attach until the next boot",
            mend="set kernel.yama.ptrace_scope=0 in /etc/sysctl.d and reboot",
            needed=True,
        )
    if privileged:
        return Capability(
            name="Yama", status=Status.OK, detail=f"ptrace_scope {text}", meaning="does not bind CAP_SYS_PTRACE"
        )
    if text == "1":
        meaning = "only what sockscope itself starts (sockscope run), not running servers"
        return Capability(name="Yama", status=Status.LIMITED, detail="ptrace_scope 1", meaning=meaning, mend=mend)
    return Capability(
        name="Yama",
        status=Status.MISSING,
        detail=f"ptrace_scope {text}",
        meaning="only root may trace",
        mend="sudo sockscope ...",
        needed=True,
    )


def check_syscall_info() -> Capability:
    """PTRACE_GET_SYSCALL_INFO, on the seized child."""
    seized, info = _try_ptrace()
    if not seized and not info:
        return Capability(
            name="syscall info",
            status=Status.OK,
            detail="PTRACE_GET_SYSCALL_INFO",
            meaning="entry and exit are told apart by the kernel",
        )
    return Capability(
        name="syscall info",
        status=Status.MISSING,
        detail=f"PTRACE_GET_SYSCALL_INFO: {os.strerror(seized or info)}",
        meaning="system calls cannot be told reliably",
        mend="a kernel from 5.3 on",
        needed=True,
    )


def check_seccomp() -> Capability:
    """Whether filters can be installed: a NULL program is refused with EFAULT where they can."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    number = ctypes.get_errno()
    if number == errno.EFAULT:
        meaning = "`run` stops its command only at the calls of interest"
        return Capability(name="seccomp filter", status=Status.OK, detail="available", meaning=meaning)
    return Capability(
        name="seccomp filter",
        status=Status.LIMITED,
        detail=f"refused: {os.strerror(number)}",
        meaning="`run` stops its command at every call, which is slower",
        mend="a kernel with CONFIG_SECCOMP_FILTER",
    )


def check_kcmp() -> Capability:
    """Whether shared open files can be told."""
    reading, writing = os.pipe()
    try:
        known = kcmp_files(os.getpid(), reading, os.getpid(), writing) != 0
        detail = "KCMP_FILE"
    except KcmpRefusedError as error:
        known, detail = False, f"KCMP_FILE refused: {os.strerror(error.args[0])}"
    finally:
        os.close(reading)
        os.close(writing)
    if known:
        meaning = "which processes share a descriptor is known from the start"
        return Capability(name="kcmp", status=Status.OK, detail=detail, meaning=meaning)
    return Capability(
        name="kcmp",
        status=Status.LIMITED,
        detail=detail,
        meaning="for pipes and epoll, sharing that is older than the attach is guessed (sockets are still exact)",
        mend="docker run --cap-add SYS_PTRACE; a kernel with CONFIG_KCMP",
    )


def _try_ptrace() -> tuple[int, int]:
    """Seize a child of ours and ask for its syscall info: the errno of each step, 0 where it works."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        if libc.ptrace(_PTRACE_SEIZE, child, None, None) < 0:
            return ctypes.get_errno(), 0
        libc.ptrace(_PTRACE_INTERRUPT, child, None, None)
        os.waitpid(child, 0)
        buffer = ctypes.create_string_buffer(128)
        got = libc.ptrace(_PTRACE_GET_SYSCALL_INFO, child, len(buffer), ctypes.addressof(buffer))
        return 0, ctypes.get_errno() if got < 0 else 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
