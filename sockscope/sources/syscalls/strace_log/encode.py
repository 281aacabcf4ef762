"""One call as strace printed it, as the record a live engine would have made of it. Pure.

Source: strace 4.0 to 7.0, src/*.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from sockscope.model.calls import Call
from sockscope.model.events import EventFlag

Arguments = tuple[int, int, int, int, int, int]


class NotUnderstood(Exception):  # noqa: N818  (an answer, not an error of the program)
    """The text is no call that strace prints, or lacks what a record must have; the reason is its argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFd:
    """A descriptor that strace named (-y, -yy).

    Attributes:
        fd: its number.
        text: what stands between the angle brackets, as printed: `TCP:[127.0.0.1:80->127.0.0.1:5555]`.
    """

    fd: int
    text: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One call, ready for an EVENT_DTYPE row but for its times and its thread.

    Attributes:
        args: as the registers would hold them (u64; negative numbers as two's complement). Pointers that strace
            did not print because it printed what they point to are 0.
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
    if name not in Call.__members__:
        return None
    raise NotUnderstood("not built yet")
