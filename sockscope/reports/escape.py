"""Text that came from the target, made safe to show: no control sequence of its reaches a terminal."""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f"  # C0 and DEL: ESC begins every control sequence
    "\x80-\x9f"  # C1: 0x9B alone is CSI for some terminals
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidi marks, overrides and isolates (UAX #9)
    "\u2028\u2029"  # line and paragraph separators
    "\ufeff"  # invisible
    "\ud800-\udfff"  # lone surrogates cannot be written at all
    "]"
)
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def safe(text: str) -> str:
    r"""The text on one line, with control characters, bidi overrides and lone surrogates as `\x1b`, `\u202e`.

    All else is left alone, so the result may still hold markup of rich or HTML: those are escaped
    where they are made.
    """
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    code = ord(letter)
    return _NAMED.get(letter) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
