"""What this machine allows: each check tries the thing itself and does not judge by version numbers."""

from __future__ import annotations

import platform

from sockscope.model.capability import Capability


def probe_all() -> tuple[Capability, ...]:
    """Every check, in the order they are shown. None of them changes anything or takes longer than a moment."""
    from sockscope.sources.capabilities import kernel

    if platform.system() != "Linux":
        # Nothing else can even be asked.
        return (kernel.check_kernel(),)
    from sockscope.sources.capabilities import bpf, network, surroundings, tracing

    return (
        tracing.check_attach(),
        tracing.check_yama(),
        tracing.check_syscall_info(),
        tracing.check_seccomp(),
        tracing.check_kcmp(),
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
        bpf.check_programs(),
        bpf.check_tcp(),
        bpf.check_uring(),
    )
