"""Which calls a log lacks because its maker left them out."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.calls import FIRST_TASK_EVENT, GROUP_OF, USUAL_GROUPS, Call, CallGroup

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What a log shows of whether it is all that the program did.

    Attributes:
        seen: groups of which there is at least one call.
        unfiltered: `is_unfiltered_call` held for at least one call.
        unfollowed: a child was made that has no line in the log (no -f).
        made_count: descriptors that accept, socket and their like gave.
        given_again: one of these numbers came twice in a process, and nothing closed it.
        receives: bytes were asked for by calls of %network, even if none came. sends: they went out so.
        would_block: a call failed with EAGAIN: who asks so has to wait somewhere.
    """

    seen: frozenset[CallGroup]
    unfiltered: bool
    unfollowed: bool
    made_count: int
    given_again: bool
    receives: bool
    sends: bool
    would_block: bool

    @classmethod
    def of(cls, parts: Iterable[npt.NDArray[np.void]], *, unfiltered: bool, unfollowed: bool) -> Signs:
        """Look at the events, EVENT_DTYPE pieces with their processes filled in."""
        calls, made = set[int](), list[npt.NDArray[np.int64]]()
        closes, receives, sends, would_block = 0, False, False, False
        for part in parts:
            call, ret = part["call"], part["ret"]
            calls.update(np.unique(call).tolist())
            new = np.isin(call, _MAKE) & (ret >= 0)
            made.append(part["tgid"][new].astype(np.int64) << 32 | ret[new])
            closes += int(np.count_nonzero(np.isin(call, _CLOSE)))
            receives |= bool(np.isin(call, _RECEIVE).any())
            sends |= bool((np.isin(call, _SEND) & (ret > 0)).any())
            would_block |= bool((ret == -errno.EAGAIN).any())
        numbers = np.concatenate(made) if made else np.zeros(0, np.int64)
        return cls(
            seen=frozenset(GROUP_OF[Call(number)] for number in calls if 0 < number < FIRST_TASK_EVENT),
            unfiltered=unfiltered,
            unfollowed=unfollowed,
            made_count=len(numbers),
            given_again=not closes and len(np.unique(numbers)) < len(numbers),
            receives=receives,
            sends=sends,
            would_block=would_block,
        )


_MAKE = (Call.accept, Call.accept4, Call.socket)
_CLOSE = (Call.close, Call.close_range)
_RECEIVE = (Call.recvfrom, Call.recvmsg, Call.recvmmsg)
_SEND = (Call.sendto, Call.sendmsg, Call.sendmmsg)
_TELLING_COUNT = 3


def missing_groups(signs: Signs) -> tuple[CallGroup, ...]:
    """The groups of calls that the program may have made without the log saying so.

    strace does not write down what was asked of it, so a filter (`-e trace=…`) shows only by what never
    comes. A log without, say, any wait may be that of a program which never waits, or of a filter
    without them. What decides is a call that nobody asks for who filters: `brk`, `futex`, `mprotect` and
    their like are in none of strace's classes that concern sockets (%network, %desc, %process, %signal, %file), and
    every program makes them sooner or later. One of them proves that there was no such filter, and then
    what never comes was never called. Calls of those classes prove nothing: fstat and mmap come with
    %desc, rt_sigaction with %signal.

    Without proof, a log of nothing but socket calls is what `-e trace=%network` makes, the filter that most people
    use: whatever else never comes is missing, but for reads and writes where bytes both come in and go out by socket
    calls. Where there are calls of other groups, each group that never comes
    is asked for signs: numbers given out again that nobody closed show that closes are missing, and several that
    never come again that they are not (a server that leaks closes nothing); who reads and writes by socket
    calls needs no read and no write; only who meets EAGAIN has to wait. A rule that keeps silent where this is too
    careful, and says why, does less harm than one that takes a filtered close for a close that was forgotten.
    """
    missing = set[CallGroup]()
    if not signs.unfiltered:
        missing = set(USUAL_GROUPS - signs.seen)
        if signs.seen & USUAL_GROUPS - {CallGroup.NETWORK}:
            if not signs.given_again and signs.made_count >= _TELLING_COUNT:
                missing.discard(CallGroup.DESCRIPTORS)
            if not signs.would_block:
                missing.discard(CallGroup.WAITS)
        if signs.receives and signs.sends:
            missing.discard(CallGroup.TRANSFERS)
        if signs.given_again:
            missing.add(CallGroup.DESCRIPTORS)
    if signs.unfollowed:
        missing.add(CallGroup.TASKS)
    return tuple(group for group in CallGroup if group in missing)
