"""libbpf.so.1 through ctypes: opaque pointers and the stable C API only, so any libbpf 1.x serves.

libbpf 1.x raises RLIMIT_MEMLOCK by itself, and only on kernels that still charge BPF memory to it (before 5.11).

Threads: what libbpf says is kept per thread, so objects may be used by several threads, each object by one at a time.

Source: bpf/libbpf.h, bpf/bpf.h and bpf/btf.h of libbpf 1.0.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import threading
from collections.abc import Iterator
from ctypes import c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p

from sockscope.errors import CannotObserveError
from sockscope.sources.capabilities.privileges import Cap, effective_capabilities, read_text

LIBRARY = "libbpf.so.1"
VMLINUX_BTF = "/sys/kernel/btf/vmlinux"
BTF_KIND_TYPEDEF = 8
LOG_LINES = 60
"""Of libbpf's words and the verifier's, the last so many are kept."""

_FIRST_USER_NAMESPACE = "user:[4026531837]"
"""PROC_USER_INIT_INO, include/linux/proc_ns.h: capabilities of any other namespace do not count for bpf(2)."""
_DEBUG = 2
_VA_LIST_BYTES = 32  # aarch64; x86_64: 24

_PROTOTYPES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "libbpf_set_print": (c_void_p, (c_void_p,)),
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_mem": (c_void_p, (c_void_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_iter": (c_void_p, (c_void_p, c_void_p)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_iter_create": (c_int, (c_int,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__type": (c_int, (c_void_p,)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, ctypes.POINTER(c_size_t))),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, ctypes.POINTER(c_uint32))),
    "btf__load_vmlinux_btf": (c_void_p, ()),
    "btf__find_by_name_kind": (c_int, (c_void_p, c_char_p, c_uint32)),
    "btf__free": (None, (c_void_p,)),
}


class BpfRefusedError(CannotObserveError):
    """libbpf or the kernel refuses (exit 3); `detail` is the end of what libbpf and the verifier said."""


class Libbpf:
    """The library, with what it prints kept instead.

    Attributes:
        c: its functions, by their names; results below 0 are −errno, NULL leaves it in `ctypes.get_errno()`.
    """

    def __init__(self) -> None:
        self.c = ctypes.CDLL(LIBRARY, use_errno=True)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        self._heard = threading.local()
        # A va_list is handed over by its address on x86_64 (an array) and aarch64 (a struct above 16 bytes).
        self._vsnprintf = ctypes.CDLL(None).vsnprintf
        self._vsnprintf.argtypes = (c_void_p, c_size_t, c_char_p, c_void_p)
        prototype = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
        self._callback = prototype(self._print)  # libbpf keeps its address
        self._lock = threading.Lock()
        self._hearing = 0
        self.c.libbpf_set_print(None)

    def _print(self, level: int, text: bytes, arguments: int) -> int:
        lines = getattr(self._heard, "lines", None)
        if level >= _DEBUG or lines is None:
            return 0
        # Read twice, so copied first: what va_copy does on both machines.
        copy = ctypes.create_string_buffer(ctypes.string_at(arguments, _VA_LIST_BYTES), _VA_LIST_BYTES)
        size = self._vsnprintf(None, 0, text, ctypes.addressof(copy))
        if size > 0:
            out = ctypes.create_string_buffer(size + 1)
            self._vsnprintf(out, size + 1, text, arguments)
            lines.extend(out.value.decode("utf-8", "backslashreplace").splitlines())
        return 0

    @contextlib.contextmanager
    def heard(self) -> Iterator[list[str]]:
        """What libbpf says in this thread meanwhile, line by line; otherwise it is mute.

        Dear where other threads run Python: each word needs the GIL, and loading makes some fifty of them.
        """
        before = getattr(self._heard, "lines", None)
        lines: list[str] = []
        self._heard.lines = lines
        self._listen(1)
        try:
            yield lines
        finally:
            self._listen(-1)
            self._heard.lines = before

    def _listen(self, change: int) -> None:
        with self._lock:
            self._hearing += change
            self.c.libbpf_set_print(ctypes.cast(self._callback, c_void_p) if self._hearing else None)


@functools.cache
def library() -> Libbpf:
    """libbpf, loaded once.

    Raises:
        BpfRefusedError: it is not installed, or is not a whole libbpf 1.x.
    """
    try:
        return Libbpf()
    except OSError as error:
        raise BpfRefusedError(f"{LIBRARY} cannot be loaded: {error}", help_text=_INSTALL) from error
    except AttributeError as error:
        raise BpfRefusedError(f"{LIBRARY} is too old: {error}", help_text=_INSTALL) from error


_INSTALL = "install libbpf 1.x: apt-get install libbpf1 (dnf install libbpf, apk add libbpf)"
_PRIVILEGE = "run as root (sudo); in a container: --cap-add BPF --cap-add PERFMON and a seccomp profile that has bpf(2)"
_KERNEL = "`sockscope doctor` says what this kernel offers; --engine ptrace works without"


def refused(what: str, code: int, lines: list[str]) -> BpfRefusedError:
    """The error for a call that failed.

    Args:
        what: what could not be done ("load owners.bpf.o").
        code: errno, positive.
        lines: as `heard` gave them.
    """
    name = errno.errorcode.get(code, str(code))
    program = next((line.split("'")[1] for line in lines if "BPF program load failed" in line and "'" in line), None)
    of = f" (program {program})" if program else ""
    match code:
        case errno.EPERM:
            reason, mend = "bpf(2) is not permitted here", _PRIVILEGE
        case errno.EACCES | errno.EINVAL | errno.E2BIG if program:
            reason, mend = "this kernel's verifier refuses the program", _KERNEL
        case errno.ESRCH | errno.ENOENT | errno.EOPNOTSUPP | errno.ENOSYS:
            reason, mend = "this kernel lacks what the program needs", _KERNEL
        case errno.ENOMEM:
            reason, mend = "no memory for the maps", "free some, or ask for smaller rings"
        case _:
            reason, mend = os.strerror(code), _KERNEL
    return BpfRefusedError(
        f"cannot {what}{of}: {reason} ({name})", help_text=mend, detail="\n".join(lines[-LOG_LINES:])
    )


def libbpf_problem() -> tuple[str, str] | None:
    """What is wrong with libbpf and its mend; None: nothing."""
    try:
        library()
    except BpfRefusedError as error:
        return error.message, error.help_text or _INSTALL
    return None


def btf_problem() -> tuple[str, str] | None:
    """Whether the kernel tells its types; None: it does."""
    if os.access(VMLINUX_BTF, os.R_OK):
        return None
    if not os.path.isdir("/sys/kernel"):
        return "/sys is not mounted", "mount -t sysfs sysfs /sys"
    return f"the kernel tells no types ({VMLINUX_BTF})", "use a kernel built with CONFIG_DEBUG_INFO_BTF"


def privilege_problem() -> tuple[str, str] | None:
    """Whether this process may load tracing programs; None: as far as can be told it may."""
    with contextlib.suppress(OSError):
        if os.readlink("/proc/self/ns/user") != _FIRST_USER_NAMESPACE:
            return "bpf(2) is refused in a user namespace", "run as root of the host, outside rootless containers"
    held = effective_capabilities()
    if not held >> Cap.SYS_ADMIN & 1 and not (held >> Cap.BPF & 1 and held >> Cap.PERFMON & 1):
        return "CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) are missing", _PRIVILEGE
    if "[confidentiality]" in (read_text("/sys/kernel/security/lockdown") or ""):
        return "the kernel is locked down (confidentiality)", "boot with lockdown=integrity"
    return None


def problems() -> list[tuple[str, str]]:
    """All that is in the way, each with its mend; empty: programs can be loaded."""
    found = [libbpf_problem(), btf_problem(), privilege_problem()]
    return [problem for problem in found if problem is not None]
