"""Why the bpf engine cannot be used here, found out by trying.

The pipeline asks `unavailable()` to choose an engine, or calls `BpfEngine.prepare()`, which raises CannotObserveError
(`message` the reason, `help_text` the mend) before anybody is followed, and so loads the programs once only.
"""

from __future__ import annotations

from sockscope.errors import CannotObserveError
from sockscope.sources.bpf.libbpf import problems
from sockscope.sources.syscalls import preflight
from sockscope.sources.syscalls.abi import abi_of
from sockscope.sources.syscalls.bpf import layout
from sockscope.sources.syscalls.bpf.programs import Programs

TRIAL_RING_BYTES = 1 << 16
_MEND = "sockscope doctor says what is missing; --engine ptrace works without"


def unavailable() -> tuple[str, str] | None:
    """The reason in one line and its mend; None: the kernel verifies and loads the programs (0.2 to 0.4 s)."""
    for problem in problems():
        return problem
    try:
        Programs(
            abi_of(preflight.check_machine()),
            payload_bytes=64,
            port=None,
            ring_bytes=dict.fromkeys(layout.Ring, TRIAL_RING_BYTES),
        ).close()
    except CannotObserveError as error:
        return error.message, error.help_text or _MEND
    return None
