"""What the kernel program (csrc/) and this package share: names of programs and maps, and every struct's bytes.

csrc/record.h and csrc/state.h hold the same layouts in C; tests/sources/syscalls/bpf/test_build.py compares them.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from pathlib import Path

import numpy as np

from sockscope.model.calls import Call
from sockscope.model.events import EVENT_DTYPE
from sockscope.sources.syscalls.abi import MAX_NUMBER, Abi
from sockscope.sources.syscalls.copy_plan import (
    FILTERS,
    PLAN_BYTES,
    Filter,
    How,
    Op,
    When,
    pack_plans,
    plans_of,
)

OBJECT = Path(__file__).with_name("_trace.bpf.o")
"""Made by hatch_build.py."""


class Ring(StrEnum):
    """Ring buffers, by size of their records: an event goes into the smallest that holds its blob."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


STRIDES = {Ring.SMALL: 256, Ring.MEDIUM: 2048, Ring.LARGE: 16384}
"""Bytes from one record to the next, the kernel's header included."""

RING_HEADER_BYTES = 8
RING_BUSY = 1 << 31
"""In `length`: not submitted yet; a reader stops there (include/uapi/linux/bpf.h, BPF_RINGBUF_BUSY_BIT)."""
RING_DISCARDED = 1 << 30
"""In `length`: to be skipped (BPF_RINGBUF_DISCARD_BIT)."""


def slot_dtype(ring: Ring) -> np.dtype[np.void]:
    """One slot of a ring: the kernel's header, the event, then `event.blob_bytes` bytes of blob (rest undefined)."""
    blob = STRIDES[ring] - RING_HEADER_BYTES - EVENT_DTYPE.itemsize
    return np.dtype([("length", "<u4"), ("page", "<u4"), ("event", EVENT_DTYPE), ("blob", "u1", (blob,))])


def blob_capacity(ring: Ring) -> int:
    """Blob bytes that a ring's record has room for: 152, 1944, 16280."""
    return STRIDES[ring] - RING_HEADER_BYTES - EVENT_DTYPE.itemsize


ROOTS_MAP = "roots"
"""Hash, u4 tgid (in our pid namespace) → u1: processes whose threads the seeding makes targets."""
PORTS_MAP = "ports"
"""Hash, u2 port (host order) → u1: kernel events are told of sockets with one of these at either end."""
SHARED_MAP = ".bss"
"""Begins with one SHARED_DTYPE; mapped while the engine runs."""


class Program(StrEnum):
    """Programs that must load; each is a tracepoint program unless said otherwise."""

    SYS_ENTER = "on_sys_enter"
    SYS_EXIT = "on_sys_exit"
    FORK = "on_fork"
    EXEC = "on_exec"
    EXIT = "on_exit"
    SIGNAL_DELIVER = "on_signal_deliver"
    SIGNAL_GENERATE = "on_signal_generate"
    WHO = "who"
    """iter/task; run once, after the load: writes `pid_level` (of the process that reads it) into SHARED_MAP."""
    SEED = "seed"
    """iter/task; what it does is said by SHARED_DTYPE's `mode`. Its output is empty."""


OPTIONAL_PROGRAMS: dict[str, tuple[str, ...]] = {
    "on_sock_state": ("inet_sock_set_state",),
    "on_retransmit": ("tcp_retransmit_skb",),
    "on_retransmit_synack": ("tcp_retransmit_synack",),
    "on_reset_sent": ("tcp_send_reset",),
    "on_reset_received": ("tcp_receive_reset",),
    "on_uring_submit": ("io_uring_submit_req",),
    "on_uring_submit_sqe": ("io_uring_submit_sqe",),
    "on_uring_complete": ("io_uring_complete",),
    "on_uring_wake": ("io_uring_task_add",),
    "on_uring_failed": ("io_uring_req_failed",),
}
"""Program → BTF tracepoints it needs; autoload off where one is missing."""

URING_PENDING = "uring_pending"
"""Iterator over the elements of URING_MAP: tells of each request that is under way (ENTERED_ONLY)."""
URING_MAP = "uring_requests"
ITERATORS = frozenset({Program.WHO, Program.SEED, URING_PENDING})
"""Are run, not attached."""


class Mode(IntEnum):
    """What a run of `seed` does with each thread of the machine."""

    SEED = 0
    """Make threads of `roots`, and of children of targets, targets: task_attach. `seeded` grows by each."""
    SEED_SILENT = 1
    """The same; what they call is recorded from their execve on (a launched command)."""
    FINISH = 2
    """Of each target thread: its calls in flight (ENTERED_ONLY), task_detach; it is a target no longer."""


SHARED_DTYPE = np.dtype(
    [
        ("mode", "<u4"),  # Mode; userspace writes it before a run of `seed`
        ("pid_level", "<u4"),  # depth of our pid namespace; `who` writes it
        ("followed", "<i8"),  # target threads alive
        ("seeded", "<u8"),  # threads that `seed` made targets, ever
        ("adopted", "<u8"),  # threads that became targets because they bind or listen on `port`
        ("dropped", "<u8", (3,)),  # records that found their ring full: small, medium, large
        ("not_followed", "<u8"),  # threads and processes that could not become targets: no memory
        ("foreign", "<u8"),  # processes with 32-bit calls
        ("uring_lost", "<u8"),  # io_uring requests whose submission could not be remembered
        ("uring_fixed", "<u8"),  # io_uring requests about registered files: no descriptor, so left out
        ("reserved", "<u8", (3,)),
    ]
)
"""112 bytes. Programs add atomically; nothing is ever reset."""


class Kind(IntEnum):
    """How the hot path treats a syscall number; derived from its plan."""

    NONE = 0  # not traced
    CONTROL = 1  # restart_syscall, rt_sigreturn: seen, not recorded
    PLAIN = 2  # nothing to copy
    PAYLOAD = 3  # one payload (and an address, where its pointer is not NULL: then as GENERAL)
    READY = 4  # epoll_event x ret
    GENERAL = 5  # by its plan
    VECTOR = 6  # an iovec array: total and a payload


QUICK_OUTPUT = 1
"""PAYLOAD, VECTOR: the memory holds what is wanted only after success."""
QUICK_ADDRESS = 2
"""PAYLOAD: args[4] may point to an address."""
QUICK_ENTRY = 4
"""The plan has copies made at entry."""

QUICK_DTYPE = np.dtype([("call", "<u2"), ("kind", "u1"), ("flags", "u1")])

CONFIG_DTYPE = np.dtype(
    [
        ("payload_bytes", "<u4"),
        ("port", "<u2"),  # bind hook; 0: none
        ("epoll_event_bytes", "<u2"),
        ("nr_restart", "<u2"),
        ("nr_sigreturn", "<u2"),
        ("nr_execve", "<u2"),
        ("nr_execveat", "<u2"),
        ("nr_bind", "<u2"),
        ("nr_listen", "<u2"),
        ("reserved", "<u2", (2,)),
        ("quick", QUICK_DTYPE, (MAX_NUMBER,)),
        ("plans", f"V{PLAN_BYTES}", (MAX_NUMBER,)),
    ]
)

PAYLOAD_MAX = 8192
"""More than this of one read or write is not copied (a large record's room, less its other sections)."""


def _quick_of(ops: tuple[Op, ...], call: Call) -> tuple[Kind, int]:
    flags = QUICK_ENTRY if any(o.when is When.ENTRY for o in ops) else 0
    if FILTERS.get(call, Filter.KEEP) is not Filter.KEEP:
        return Kind.GENERAL, flags
    if not ops:
        return Kind.PLAIN, flags
    first = ops[0]
    output = QUICK_OUTPUT if first.when is When.SUCCESS else 0
    if first.how is How.PAYLOAD and first.ptr == 1 and first.len == 2:
        if len(ops) == 1:
            return Kind.PAYLOAD, output
        if len(ops) == 2 and ops[1].ptr == 4:
            return Kind.PAYLOAD, output | QUICK_ADDRESS
    if len(ops) == 1 and first.how is How.IOV and first.ptr == 1 and first.len == 2:
        return Kind.VECTOR, output
    if len(ops) == 1 and first.how is How.RET and first.ptr == 1:
        return Kind.READY, flags
    return Kind.GENERAL, flags


def pack_config(abi: Abi, *, payload_bytes: int, port: int | None = None) -> bytes:
    """The program's configuration: one CONFIG_DTYPE.

    Args:
        abi: of the running kernel.
        payload_bytes: how much of each read or write is copied; beyond PAYLOAD_MAX: that much.
        port: processes that bind it become targets.
    """
    config = np.zeros((), CONFIG_DTYPE)
    config["payload_bytes"] = min(payload_bytes, PAYLOAD_MAX)
    config["port"] = port or 0
    config["epoll_event_bytes"] = abi.epoll_event_bytes
    config["nr_restart"] = abi.restart_syscall
    config["nr_sigreturn"] = abi.rt_sigreturn
    for name, call in (
        ("nr_execve", Call.execve),
        ("nr_execveat", Call.execveat),
        ("nr_bind", Call.bind),
        ("nr_listen", Call.listen),
    ):
        config[name] = abi.numbers[call]
    plans = plans_of(abi)
    for number, call in abi.calls.items():
        kind, flags = _quick_of(plans.get(call, ()), call)
        config["quick"][number] = (call, kind, flags)
    for number in (abi.restart_syscall, abi.rt_sigreturn):
        config["quick"][number] = (0, Kind.CONTROL, 0)
    config["plans"] = np.frombuffer(pack_plans(abi), f"V{PLAN_BYTES}")
    return config.tobytes()
