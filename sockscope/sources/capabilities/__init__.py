"""What this machine allows: each check tries the thing itself and does not judge by version numbers."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor

from sockscope.model.capability import Capability


def probe_all() -> tuple[Capability, ...]:
    """Every check, in the order they are shown. None of them changes anything or takes longer than a moment."""
    from sockscope.sources.capabilities import kernel

    if platform.system() != "Linux":
        # Nothing else can even be asked.
        return (kernel.check_kernel(),)
    from sockscope.sources.capabilities import bpf, network, surroundings, tracing

    # First, while this process has one thread: they fork.
    traced = (
        tracing.check_attach(),
        tracing.check_yama(),
        tracing.check_syscall_info(),
        tracing.check_seccomp(),
        tracing.check_kcmp(),
    )
    with ThreadPoolExecutor(max_workers=1) as pool:
        # The verifier works for a fifth of a second, in the kernel.
        programs = pool.submit(bpf.check_programs)
        rest = (
            network.check_sock_diag(),
            network.check_tcp_info(),
            network.check_owners(),
            network.check_packets(),
            network.check_ring(),
            network.check_other_namespaces(),
            surroundings.check_container(),
            surroundings.check_namespaces(),
            kernel.check_kernel(),
            kernel.check_io_uring(),
            bpf.check_types(),
            bpf.check_library(),
            bpf.check_privilege(),
        )
        optional = (bpf.check_tcp(), bpf.check_uring())
        return (*traced, *rest, programs.result(), *optional)
