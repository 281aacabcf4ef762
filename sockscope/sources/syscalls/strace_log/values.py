"""Words as numbers: constants by their names, sums of flags, pointers, results. Pure.

The names are those of `sockscope.model.constants`, turned round once; here are only the other names that strace has
for the same.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sockscope.model import constants
from sockscope.model.constants import RESTARTS
from sockscope.model.events import UNSEEN_POINTER
from sockscope.sources.syscalls.strace_log.arguments import Change, Group, Value

U64: Final = 0xFFFF_FFFF_FFFF_FFFF
MAX_DIGITS: Final = 24
"""No 64-bit number has more, in any base that strace prints; int() of a long one takes quadratic time."""

_OTHER_NAMES: Final[Mapping[str, str]] = {
    "SO_RCVTIMEO_OLD": "SO_RCVTIMEO",
    "SO_SNDTIMEO_OLD": "SO_SNDTIMEO",
    "SO_TIMESTAMP_OLD": "SO_TIMESTAMP",
    "SO_TIMESTAMPNS_OLD": "SO_TIMESTAMPNS",
    "SO_TIMESTAMPING_OLD": "SO_TIMESTAMPING",
    "SO_GET_FILTER": "SO_ATTACH_FILTER",
    "SCM_TIMESTAMP": "SO_TIMESTAMP",
    "SCM_TIMESTAMPNS": "SO_TIMESTAMPNS",
    "SCM_TIMESTAMPING": "SO_TIMESTAMPING",
    "SO_TIMESTAMP_NEW": "SO_TIMESTAMP",
    "AF_LOCAL": "AF_UNIX",
    "AF_FILE": "AF_UNIX",
    "AF_ROUTE": "AF_NETLINK",
    "MAP_ANON": "MAP_ANONYMOUS",
    "FASYNC": "O_ASYNC",
    "O_NDELAY": "O_NONBLOCK",
    "WUNTRACED": "WSTOPPED",
    "TIOCINQ": "FIONREAD",
    "SIOCINQ": "FIONREAD",
    "SIOCOUTQ": "TIOCOUTQ",
}
"""Older names, and those of headers that name a number twice."""

_ZEROS: Final = ("IPC_PRIVATE", "MAP_FILE", "PROT_NONE")

_ERROR_NAMES: Final = {
    **{name: number for number, name in errno.errorcode.items()},
    "EWOULDBLOCK": errno.EAGAIN,
    "ENOTSUP": errno.EOPNOTSUPP,
    "EDEADLOCK": errno.EDEADLK,
    **{name: number for number, (name, _) in RESTARTS.items()},
}


def _numbers() -> dict[bytes, int]:
    tables = {name: held for name, held in vars(constants).items() if name.isupper()}
    found: dict[str, int] = {name: held for name, held in tables.items() if isinstance(held, int)}
    for held in tables.values():
        if isinstance(held, Mapping):
            found.update({name: key for key, name in held.items() if isinstance(name, str) and " " not in name})
    found.update({each.name: int(each) for each in signal.Signals})
    found.update(_ERROR_NAMES)
    found.update({other: found[name] for other, name in _OTHER_NAMES.items()})
    found.update({"NULL": 0, "ON": 1, "OFF": 0, "UINT_MAX": 0xFFFF_FFFF, "~0U": 0xFFFF_FFFF})
    found.update(dict.fromkeys(_ZEROS, 0))
    return {name.encode(): number for name, number in found.items()}


NUMBERS: Final[Mapping[bytes, int]] = MappingProxyType(_numbers())
"""Every constant's value under its name."""


def word_number(word: bytes) -> int | None:
    """A word's number: decimal, hex, octal (a leading 0), a constant, or a sum `A|B|0x8000`.

    Of a sum, what is not known counts nothing; None where nothing of it is known.
    """
    known = NUMBERS.get(word)
    if known is not None:
        return known
    if word.isdigit() and len(word) <= MAX_DIGITS:
        if word[0] != 0x30 or len(word) == 1:
            return int(word)
        return _octal(word)
    if b"|" in word:
        parts = [word_number(part) for part in word.split(b"|", 64)[:64] if b"|" not in part]
        total = 0
        for part in parts:
            total |= part or 0
        return total if any(part is not None for part in parts) else None
    return _odd_number(word)


def _octal(word: bytes) -> int:
    try:
        return int(word, 8)
    except ValueError:
        return int(word)


def _odd_number(word: bytes) -> int | None:
    if len(word) <= MAX_DIGITS:
        try:
            return int(word, 16) if word[:2] == b"0x" else int(word)
        except ValueError:
            pass
    if word[:3] == b"PF_":
        return NUMBERS.get(b"AF_" + word[3:])
    if word[:6] == b"SIGRT_" and word[6:].isdigit() and len(word) < 9:
        return 32 + int(word[6:])
    if word[:4] == b"SIG_" or b" " not in word:
        return None
    # `SNDCTL_TMR_TIMEBASE or TCGETS`, `0x1 <odd`
    parts = word.split(b" ", 8)
    return next((found for part in parts if b" " not in part and (found := word_number(part)) is not None), None)


def number(value: Value | None) -> int | None:
    """The number of any value: also `[16]`, `[128 => 16]` (the later), `htons(80)`; None where it has none."""
    if isinstance(value, bytes):
        return word_number(value)
    for _ in range(4):
        if isinstance(value, bytes):
            return word_number(value)
        if isinstance(value, Change):
            value = value.after
        elif isinstance(value, Group) and len(value.items) == 1 and value.opener != b"{":
            value = value.items[0]
        else:
            return None
    return None


def whole(value: Value | None) -> int:
    """The number, or 0."""
    return number(value) or 0


def signed32(value: int) -> int:
    """The lower 32 bits as an int of C."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def pointer(value: Value | None) -> int:
    """An address; `UNSEEN_POINTER` where strace printed what lies there instead."""
    if value is None:
        return 0
    if isinstance(value, bytes):
        found = word_number(value)
        return UNSEEN_POINTER if found is None else found
    return UNSEEN_POINTER


def after(value: Value | None) -> Value | None:
    """What the call made of it."""
    return value.after if isinstance(value, Change) else value


def before(value: Value | None) -> Value | None:
    """What the call was given."""
    return value.before if isinstance(value, Change) else value


_RESULT = re.compile(rb"\s*+(?:(?!0x)(-?\d{1,20})|(0x[0-9a-f]{1,16})|(\?))")
_ERROR = re.compile(rb"\s*+(?:-1|\?)\s++(?:(E[A-Z0-9_]++)|\(errno (\d{1,4})\))")


def result_number(result: bytes) -> int | None:
    """`3`, `0x7f..`, `-1 EAGAIN (...)`, `? ERESTARTSYS (...)`; None for `?` and for nothing.

    Returns:
        the result, or -errno; -errno of an unknown name is -1 (EPERM), as the call did fail.
    """
    failed = _ERROR.match(result)
    if failed:
        if failed[1] is None:
            return -int(failed[2])
        return -_ERROR_NAMES.get(failed[1].decode("ascii"), 1)
    found = _RESULT.match(result)
    if found is None or found[3]:
        return None
    value = int(found[2], 16) if found[2] else int(found[1])
    value &= U64
    return value - (1 << 64) if value >> 63 else value
