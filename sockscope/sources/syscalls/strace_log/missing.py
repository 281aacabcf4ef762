"""Which calls a log lacks because its maker left them out."""

from __future__ import annotations

from collections.abc import Set

from sockscope.model.calls import USUAL_GROUPS, CallGroup

_KEPT_BY_NO_FILTER = frozenset(
    {
        "brk", "mprotect", "madvise", "mremap", "futex", "futex_waitv", "nanosleep", "clock_nanosleep",
        "sched_yield", "getrandom", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64",
        "getrlimit", "setrlimit", "prctl", "sysinfo", "uname", "membarrier", "gettid", "getpid", "getppid",
        "getuid", "geteuid", "getgid", "getegid", "clock_gettime", "clock_getres", "gettimeofday", "time",
        "times", "getrusage", "sched_getaffinity", "sched_setaffinity", "getcpu", "umask", "setitimer",
    }
)  # fmt: skip


def is_unfiltered_call(name: str) -> bool:
    """Whether no filter that is about sockets, descriptors, processes, signals or files keeps this call."""
    return name in _KEPT_BY_NO_FILTER


def missing_groups(seen: Set[CallGroup], *, unfiltered: bool, unfollowed_children: bool) -> tuple[CallGroup, ...]:
    """The groups of calls that the program may have made without the log saying so.

    strace does not write down what was asked of it, so a filter (`-e trace=…`) shows only by what never
    comes. A log without, say, any wait may be that of a program which never waits, or of a filter
    without them. What decides is a call that nobody asks for who filters: `brk`, `futex`, `mprotect` and
    their like are in none of strace's classes that concern sockets (%network, %desc, %process, %signal, %file), and
    every program makes them sooner or later. One of them proves that there was no such filter, and then
    what never comes was never called. Calls of those classes prove nothing: fstat and mmap come with
    %desc, rt_sigaction with %signal.

    Without proof each usual group that never comes is missing. That may wrong a short log of a program that makes
    no other calls; a rule that then keeps silent, and says why, does less harm than one that takes a
    filtered close for a close that was forgotten. A group of which one call is there counts as there: who filters
    by single names (`-e trace=accept4,close`) is known to have left out only what has no call at all.

    Args:
        seen: groups of which there is at least one call.
        unfiltered: `is_unfiltered_call` held for at least one call.
        unfollowed_children: a child was made whose calls are not in the log (no -f).
    """
    missing = set() if unfiltered else USUAL_GROUPS - seen
    if unfollowed_children:
        missing = missing | {CallGroup.TASKS}
    return tuple(group for group in CallGroup if group in missing)
