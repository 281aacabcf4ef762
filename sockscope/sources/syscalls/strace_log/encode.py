"""One call as strace printed it, as the record a live engine would have made of it. Pure.

What a call's arguments are is a table (`signatures`), what is copied beside them another (`sections`): both say of
strace's text what `copy_plan` says of the target's memory.

Source: strace 4.0 to 7.0, src/*.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag
from sockscope.sources.syscalls.strace_log.arguments import NamedFd, NotUnderstood, Parsed, parse
from sockscope.sources.syscalls.strace_log.parts import Parts
from sockscope.sources.syscalls.strace_log.sections import SECTIONS, Shown
from sockscope.sources.syscalls.strace_log.signatures import (
    CALLS,
    NAMES_NO_FD,
    Arguments,
    arguments_of,
    of_interest,
)
from sockscope.sources.syscalls.strace_log.values import result_number

__all__ = ["Arguments", "Encoded", "NamedFd", "NotUnderstood", "encode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One call, ready for an EVENT_DTYPE row but for its times and its thread.

    Attributes:
        args: as the registers would hold them (u64; negative numbers as two's complement). Pointers that strace
            did not print because it printed what they point to are UNSEEN_POINTER.
        ret: the result, or -errno; ERESTART* as the kernel numbers them; 0 for `?`.
        blob: sections as `pack_section` makes them, as the live engines would.
        flags: TRUNCATED where strace cut a string or a list, ENTERED_ONLY where the call has no result.
        named: every descriptor among arguments and result that strace named.
    """

    call: Call
    args: Arguments
    ret: int
    blob: bytes
    flags: EventFlag
    named: tuple[NamedFd, ...]


def encode(name: str, arguments: bytes, result: bytes) -> Encoded | None:
    """The record of one call.

    Args:
        name: the syscall as strace names it.
        arguments: what stands between the parentheses; may be cut where the log ended inside the call.
        result: what follows ` = `, without the time of -T; empty where the call never returned.

    Returns:
        None where the call is not of the traced set, or of no interest to the engines either (private mappings,
        ioctls that are not about sockets).

    Raises:
        NotUnderstood: the text is not what strace prints for this call.
    """
    call = CALLS.get(name)
    if call is None:
        return None
    parsed = parse(arguments)
    ret = result_number(result)
    args = arguments_of(call, parsed.top)
    if not of_interest(call, args):
        return None
    parts = Parts()
    section = SECTIONS.get(call)
    if section is not None:
        section(Shown(call=call, top=parsed.top, args=args, ret=ret, result=result, text=arguments), parts)
    return Encoded(
        call=call,
        args=args,
        ret=ret or 0,
        blob=parts.blob,
        flags=_FLAGS[parts.truncated, ret is None],
        named=_named(call, args, parsed, result),
    )


_FLAGS = {
    (False, False): EventFlag(0),
    (True, False): EventFlag.TRUNCATED,
    (False, True): EventFlag.ENTERED_ONLY,
    (True, True): EventFlag.TRUNCATED | EventFlag.ENTERED_ONLY,
}
_RESULT_NAME = re.compile(rb"\s*+(\d{1,9})<(.*)>")
_NO_NAMES: tuple[NamedFd, ...] = ()
_ONLY_FIRST = frozenset({Call.fcntl, Call.pidfd_getfd})
"""Their further arguments may be process numbers, or another process's descriptors."""
_F_GETOWN = 9


def _named(call: Call, args: Arguments, parsed: Parsed, result: bytes) -> tuple[NamedFd, ...]:
    if call in NAMES_NO_FD or (not parsed.named and b"<" not in result):
        return _NO_NAMES
    named = parsed.named[:1] if call in _ONLY_FIRST else parsed.named
    found = _RESULT_NAME.match(result)
    if found is None or (call is Call.fcntl and args[1] == _F_GETOWN):
        return tuple(named)
    return (*named, NamedFd(fd=int(found[1]), text=found[2]))
