"""The lines that tell of a task rather than of a call: signals, stops, ends.

Source: strace 4.0 to 6.13, `print_signalled`, `print_exited`, `print_stopped` in strace.c.
"""

from __future__ import annotations

import re
import signal

from sockscope.model.calls import Call
from sockscope.model.constants import SIGNAL_CODES
from sockscope.model.events import EventFlag
from sockscope.sources.syscalls.strace_log.encode import Encoded, NotUnderstood
from sockscope.sources.syscalls.strace_log.values import U64

_EXITED = re.compile(rb"\+\+\+ exited with (\d{1,3}) \+\+\+$")
_KILLED = re.compile(rb"\+\+\+ killed by (SIG\w+)( \(core dumped\))? \+\+\+$")
_STOPPED = re.compile(rb"--- stopped by (SIG\w+) ---$")
_SIGNALLED = re.compile(rb"--- (SIG\w+) (?:\{(.*)\}|\(.*\) @ .*) ---$", re.DOTALL)
_SIGNALLED_4_6 = re.compile(rb"--- \{(si_signo=(SIG\w+).*)\} \(.*\) ---$", re.DOTALL)
_CODE = re.compile(rb"si_code=(-?\w+)")
_SENDER = re.compile(rb"si_pid=(\d{1,10})")
_NAMED_CODES = {name: number for number, name in SIGNAL_CODES.items()} | {
    name: number
    for family in (
        "CLD_EXITED CLD_KILLED CLD_DUMPED CLD_TRAPPED CLD_STOPPED CLD_CONTINUED",
        "SEGV_MAPERR SEGV_ACCERR SEGV_BNDERR SEGV_PKUERR",
        "POLL_IN POLL_OUT POLL_MSG POLL_ERR POLL_PRI POLL_HUP",
        "BUS_ADRALN BUS_ADRERR BUS_OBJERR",
        "FPE_INTDIV FPE_INTOVF FPE_FLTDIV",
        "ILL_ILLOPC ILL_ILLOPN ILL_ILLADR ILL_ILLTRP",
        "TRAP_BRKPT TRAP_TRACE TRAP_BRANCH TRAP_HWBKPT",
    )
    for number, name in enumerate(family.split(), 1)
}
_SI_KERNEL = 0x80
_CORE_DUMPED = 0x80
LONGEST_BYTES = 2048
"""Some of the patterns take the square of the length."""


def encode_task_line(text: bytes) -> Encoded:
    """`+++ … +++` and `--- … ---` as the task event that a live engine would have told.

    Raises:
        NotUnderstood: it is none of those that strace prints.
    """
    if len(text) > LONGEST_BYTES:
        raise NotUnderstood("too long for a signal or an end")
    match = _EXITED.match(text)
    if match:
        return _event(Call.task_exit, (int(match[1]) & 0xFF) << 8)
    match = _KILLED.match(text)
    if match:
        return _event(Call.task_exit, signal_number(match[1]) | (_CORE_DUMPED if match[2] else 0))
    match = _STOPPED.match(text)
    if match:
        return _event(Call.task_stop, signal_number(match[1]))
    match = _SIGNALLED.match(text)
    name, facts = (match[1], match[2] or b"") if match else (b"", b"")
    if not match:
        match = _SIGNALLED_4_6.match(text)
        if not match:
            raise NotUnderstood("neither a signal nor an end as strace prints them")
        name, facts = match[2], match[1]
    code = _CODE.search(facts)
    sender = _SENDER.search(facts)
    return _event(
        Call.task_signal,
        signal_number(name),
        _code_number(code[1]) if code else _SI_KERNEL,
        int(sender[1]) & 0xFFFF_FFFF if sender else 0,
    )


def signal_number(name: bytes) -> int:
    """A signal by the name that strace prints (`SIGTERM`, `SIGRT_1`).

    Raises:
        NotUnderstood: there is no such signal.
    """
    text = name.decode("ascii", "replace")
    if text in signal.Signals.__members__ and text not in ("SIGRTMIN", "SIGRTMAX"):
        return int(signal.Signals[text])
    match = re.match(r"SIG(?:RT_?(\d{1,2})|RTMIN)$|SIG_(\d{1,2})$", text)
    if match is None:
        raise NotUnderstood(f"no signal is called {text}")
    if match[2]:
        return int(match[2])
    return 32 + int(match[1] or 0)  # strace counts from the kernel's SIGRTMIN, below glibc's


def _code_number(name: bytes) -> int:
    text = name.decode("ascii", "replace")
    if text in _NAMED_CODES:
        return _NAMED_CODES[text] & U64
    try:
        return int(text, 0) & U64
    except ValueError:
        return _SI_KERNEL


def _event(call: Call, *args: int) -> Encoded:
    full = (*args, 0, 0, 0, 0, 0, 0)[:6]
    return Encoded(
        call=call,
        args=(full[0], full[1], full[2], full[3], full[4], full[5]),
        ret=0,
        blob=b"",
        flags=EventFlag(0),
        named=(),
    )
