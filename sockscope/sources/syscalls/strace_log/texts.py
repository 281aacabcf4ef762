"""Strings as strace prints them, back to bytes. Pure.

Source: strace src/util.c, string_quote.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_LETTERS: Final = {
    b"n": b"\n",
    b"t": b"\t",
    b"r": b"\r",
    b"v": b"\v",
    b"f": b"\f",
    b"a": b"\a",
    b"b": b"\b",
    b"e": b"\x1b",
}


class Text(NamedTuple):
    """A string.

    Attributes:
        raw: what stands between the quotes, escapes and all.
        cut: strace printed no more of it (`"..."...`), or the log ends within it.
        abstract: `@` stands before it: a unix socket's name, which begins with a NUL.
    """

    raw: bytes
    cut: bool
    abstract: bool = False

    @property
    def data(self) -> bytes:
        """The bytes that it stands for."""
        raw = self.raw
        if b"\\" not in raw:
            return raw
        if raw[:2] == b"\\x" and len(raw) % 4 == 0 and raw.count(b"\\x") * 4 == len(raw):
            try:
                return bytes.fromhex(raw.replace(b"\\x", b"").decode("ascii"))  # -xx
            except (ValueError, UnicodeDecodeError):
                pass
        return _ESCAPE.sub(_unescaped, raw)


def _unescaped(found: re.Match[bytes]) -> bytes:
    octal, sixteen, letter = found.groups()
    if octal is not None:
        return bytes((int(octal, 8) & 0xFF,))
    if sixteen is not None:
        return bytes((int(sixteen, 16),))
    return _LETTERS.get(letter, letter)
