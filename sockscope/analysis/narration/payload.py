"""Payload bytes as text: strace's escapes, readable text, or a line of hex."""

from __future__ import annotations

import re
from typing import Final

SHOWN_BYTES: Final = 64
HEX_BYTES: Final = 16

_NAMED: Final = {0x07: "\\a", 0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0B: "\\v", 0x0C: "\\f", 0x0D: "\\r"}
_PLAIN: Final = tuple(
    _NAMED.get(byte)
    or ('\\"' if byte == 0x22 else "\\\\" if byte == 0x5C else chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:o}")
    for byte in range(256)
)
_BEFORE_DIGIT: Final = tuple(f"\\{byte:03o}" if text == f"\\{byte:o}" else text for byte, text in enumerate(_PLAIN))

_ESCAPED: Final = re.compile(r"[^ !#-\[\]-~]")


def quote(data: bytes, *, more: bool = False, limit: int = SHOWN_BYTES) -> str:
    """A C string literal as strace prints it; `...` follows where bytes are left out.

    Args:
        data: what was copied.
        more: the call moved more than `data`.
        limit: bytes shown at most.

    Source: strace(1), option -s; octal escapes are as short as the next character allows.
    """
    shown = _ESCAPED.sub(_escape, data[:limit].decode("latin-1"))
    return f'"{shown}"...' if more or len(data) > limit else f'"{shown}"'


def _escape(found: re.Match[str]) -> str:
    after = found.string[found.end() : found.end() + 1]
    return (_BEFORE_DIGIT if "0" <= after <= "7" else _PLAIN)[ord(found[0])]


def is_text(data: bytes) -> bool:
    """Whether a person could read it: UTF-8 (a character cut at the end allowed), few control characters."""
    for cut in range(min(4, len(data) + 1)):
        try:
            text = data[: len(data) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        odd = sum(1 for letter in text if letter < " " and letter not in "\r\n\t")
        return bool(text) and odd * 10 <= len(text)
    return False


def hex_line(data: bytes, limit: int = HEX_BYTES) -> str:
    """`16 03 01 02 00 …`."""
    return data[:limit].hex(" ") + (" …" if len(data) > limit else "")


def payload_words(data: bytes, total: int, limit: int = 40) -> str:
    """A payload for people: its size, and its first line where it is text, its first bytes in hex where not.

    Args:
        data: the prefix that was copied; may be empty.
        total: bytes moved in all.
    """
    size = f"{total} byte" if total == 1 else f"{total} bytes"
    if not data:
        return size
    if is_text(data):
        # A line break at the very end is not worth showing.
        line = data.rstrip(b"\r\n").split(b"\n", 1)[0].rstrip(b"\r") or data
        rest = total - len(line)
        return f"{size}: {quote(line, more=rest > 2 or data[len(line) :].strip() != b'', limit=limit)}"
    return f"{size}: {hex_line(data)}" + (" …" if total > len(data) and len(data) <= HEX_BYTES else "")


def plain(data: bytes) -> str:
    """Bytes as one line of text without quotes; what cannot be printed is escaped."""
    return (
        data.decode("ascii") if data.isascii() and data.decode("ascii").isprintable() else quote(data, limit=4096)[1:-1]
    )
