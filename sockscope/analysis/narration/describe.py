"""One event in strace's notation, exact and complete.

    accept4(3, {sa_family=AF_INET, sin_port=htons(40112), sin_addr="127.0.0.1"}, SOCK_CLOEXEC) = 7

What it means in plain words is `describe_words.words`.
"""

from __future__ import annotations

from sockscope.analysis.narration import describe_values as v
from sockscope.analysis.narration.describe_calls import ARGUMENTS
from sockscope.analysis.narration.describe_view import View
from sockscope.analysis.narration.describe_words import words
from sockscope.analysis.narration.kernel_story import event_words
from sockscope.analysis.narration.payload import SHOWN_BYTES
from sockscope.model import constants as c
from sockscope.model.calls import KERNEL_EVENTS, WAITS, Call
from sockscope.model.events import EventFlag, Events, Section
from sockscope.model.signals import exit_words, signal_name

_NO_ENTRY, _TRACER_EINTR = int(EventFlag.NO_ENTRY), int(EventFlag.TRACER_EINTR)
_NO_RETURN = (Call.exit, Call.exit_group)

__all__ = ["describe", "describe_view", "words"]


def describe(events: Events, event: int, *, payload_bytes: int = SHOWN_BYTES) -> str:
    """One event as strace would print it; task and kernel events in words.

    A call that has not returned ends in ` <unfinished ...>`; one whose entry was not seen begins
    with `<... ` as strace's resumed lines do, with the arguments the exit still knew.

    Args:
        payload_bytes: how much of a payload is shown.
    """
    return describe_view(View.of(events, event), payload_bytes=payload_bytes)


def describe_view(view: View, *, payload_bytes: int = SHOWN_BYTES) -> str:
    """`describe` for an event already taken out of its table."""
    if view.call in KERNEL_EVENTS:
        return event_words(view.call, view.int_arg(1), view.int_arg(2))[1]
    if view.is_task:
        return _task(view)
    arguments = ARGUMENTS.get(view.call, _raw_arguments)(view, payload_bytes)
    title = view.call.name if view.call else f"syscall_{view.number}"
    if not view.returned:
        # These never return; the others were cut off by the end of the session.
        return f"{title}({arguments}) = ?" if view.call in _NO_RETURN else f"{title}({arguments} <unfinished ...>"
    if view.flags & _NO_ENTRY:
        return f"<... {title} resumed>({arguments}) = {_result(view)}"
    return f"{title}({arguments}) = {_result(view)}"


def _raw_arguments(view: View, _: int) -> str:
    return ", ".join(f"{argument:#x}" for argument in view.args)


def _result(view: View) -> str:
    text = v.result(view.ret)
    if view.errno:
        return text + (" (the attach itself interrupted it)" if view.flags & _TRACER_EINTR else "")
    if view.call in (Call.mmap, Call.shmat):
        return v.pointer(view.ret & 0xFFFFFFFFFFFFFFFF)
    if view.call == Call.fcntl:
        return _fcntl_result(view, text)
    if view.call in WAITS:
        return _wait_result(view, text)
    return text


def _fcntl_result(view: View, text: str) -> str:
    command = view.int_arg(1)
    if command == c.F_GETFL:
        access = c.OPEN_MODES[view.ret & 3]
        rest = view.ret & ~3
        return f"{view.ret:#x} (flags {access}{'|' + v.flags(rest, c.OPEN_FLAGS) if rest else ''})"
    if command == c.F_GETFD and view.ret:
        return f"{view.ret:#x} (flags {v.flags(view.ret, c.FD_FLAGS)})"
    return text


def _wait_result(view: View, text: str) -> str:
    if view.call in (Call.poll, Call.ppoll):
        if view.ret == 0:
            return f"{text} (timeout)"
        ready = [
            f"{{fd={fd}, revents={v.flags(revents, c.POLL_EVENTS)}}}"
            for fd, _, revents in v.poll_entries(view.sections.get(Section.POLLFDS, b""))
            if revents
        ]
        return f"{text} ([{', '.join(ready)}])" if ready else text
    if view.call in (Call.select, Call.pselect6):
        if view.ret == 0:
            return f"{text} (timeout)"
        sets = v.fd_sets(view.sections.get(Section.FDSETS, b""), view.int_arg(0))
        shown = [
            f"{title} [{' '.join(map(str, fds))}]" for title, fds in zip(("in", "out", "ex"), sets, strict=True) if fds
        ]
        return f"{text} ({', '.join(shown)})" if shown else text
    return text


def _task(view: View) -> str:
    first, second, third = view.int_arg(0), view.int_arg(1), view.args[2]
    match view.call:
        case Call.task_new:
            if third & c.CLONE_THREAD or (second == view.tgid and first != second):
                return f"new thread {first}"
            return f"new process {second or first}"
        case Call.task_exec:
            path = view.sections.get(Section.PATH, b"").decode("utf-8", "backslashreplace")
            former = f" (by its thread {first})" if first not in (0, view.tid) else ""
            return f"exec {path or '?'}{former}"
        case Call.task_exit:
            return exit_words(first, exited="exit status")
        case Call.task_signal:
            return f"{signal_name(first)} delivered{_signal_origin(first, second, view.int_arg(2))}"
        case Call.task_stop:
            return f"stopped by {signal_name(first)}"
        case Call.task_attach:
            return f"thread {view.tid} under trace"
        case Call.task_detach:
            return f"thread {view.tid} left alive"
        case _:
            return f"task event {view.number}({_raw_arguments(view, 0)})"


def _signal_origin(number: int, code: int, pid: int) -> str:
    if number == 17 and code in c.CHILD_CODES:
        return f" (child {pid} {c.CHILD_CODES[code]})"
    if code in (0, -1, -6):
        return f" (from pid {pid})"
    if code == 0x80:
        return " (from the kernel)"
    if code in c.SIGNAL_CODES:
        return f" ({c.SIGNAL_CODES[code]})"
    # Positive codes are the kernel's own, peculiar to each signal (a fault, POLL_IN, ...).
    return f" (si_code {code})"
