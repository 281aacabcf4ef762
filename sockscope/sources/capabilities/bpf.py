"""What the bpf engine stands on, each part tried. Without any of it tracing goes by ptrace. Source: bpf(2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from sockscope.model.capability import Capability, Status
from sockscope.sources.bpf.libbpf import BpfRefusedError, btf_problem, libbpf_problem, privilege_problem
from sockscope.sources.bpf.objects import KernelTypes
from sockscope.sources.syscalls.bpf.prerequisites import unavailable

_WITHOUT = "without it tracing goes by ptrace, which slows the target down more"

Facts = Mapping[str, frozenset[str]]
"""What is told → the tracepoints of which one must be there (their names changed)."""

TCP_FACTS: Facts = MappingProxyType(
    {
        "state changes": frozenset({"inet_sock_set_state"}),
        "retransmissions": frozenset({"tcp_retransmit_skb"}),
        "resets sent": frozenset({"tcp_send_reset"}),
        "resets received": frozenset({"tcp_receive_reset"}),
    }
)
URING_FACTS: Facts = MappingProxyType(
    {
        "requests": frozenset({"io_uring_submit_req", "io_uring_submit_sqe"}),
        "completions": frozenset({"io_uring_complete"}),
    }
)


def check_types() -> Capability:
    """BTF: the kernel's own types."""
    return _part(
        "bpf: BTF", btf_problem(), "the kernel tells its types", "programs fit this kernel without its headers"
    )


def check_library() -> Capability:
    return _part("bpf: libbpf", libbpf_problem(), "libbpf.so.1", "loads programs into the kernel")


def check_privilege() -> Capability:
    return _part("bpf: privileges", privilege_problem(), "CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN", "may load them")


def check_programs() -> Capability:
    """Ring buffer, tracepoints and verifier: the programs are loaded, and unloaded again."""
    meaning = "a server's system calls are followed without stopping it"
    return _part("bpf: programs", unavailable(), "verified and loaded", meaning)


def check_tcp(present: Collection[str] | None = None) -> Capability:
    """What the kernel does to TCP sockets by itself. Args: present: tracepoints that are there; None: ask."""
    return _facts("bpf: TCP events", TCP_FACTS, present, "the kernel's own doings are seen as they happen")


def check_uring(present: Collection[str] | None = None) -> Capability:
    """What goes through an io_uring. Args: present: tracepoints that are there; None: ask."""
    return _facts("bpf: io_uring", URING_FACTS, present, "what goes through an io_uring is told like system calls")


def _part(name: str, problem: tuple[str, str] | None, detail: str, meaning: str) -> Capability:
    if problem is None:
        return Capability(name=name, status=Status.OK, detail=detail, meaning=meaning)
    reason, mend = problem
    return Capability(name=name, status=Status.LIMITED, detail=reason, meaning=_WITHOUT, mend=mend)


def _facts(name: str, facts: Facts, present: Collection[str] | None, meaning: str) -> Capability:
    if present is None:
        try:
            with KernelTypes() as types:
                present = {each for names in facts.values() for each in names if types.has_tracepoint(each)}
        except BpfRefusedError as error:
            return Capability(name=name, status=Status.LIMITED, detail=error.message, meaning=f"not: {meaning}")
    missing = [fact for fact, names in facts.items() if names.isdisjoint(present)]
    if not missing:
        return Capability(name=name, status=Status.OK, detail=", ".join(facts), meaning=meaning)
    return Capability(
        name=name,
        status=Status.LIMITED,
        detail=f"this kernel has no tracepoint for {', '.join(missing)}",
        meaning="the rest is told" if len(missing) < len(facts) else f"not: {meaning}",
    )
