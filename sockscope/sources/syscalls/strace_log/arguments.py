"""The arguments of one call, as strace wrote them, taken apart: a tree of words, strings and groups. Pure.

What a word means (`AF_INET`, `0x80000`) is for `values` to say; here only the punctuation is read. One pass, no
recursion; whatever the bytes are, the time is linear in them.

Source: strace 4.0 to 7.0, src/util.c, src/xlat.c, src/print_fields.h.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from sockscope.sources.syscalls.strace_log.texts import Text

MAX_BYTES: Final = 4 << 20
"""Of one call's arguments: more is not what strace prints, whatever its -s."""
MAX_DEPTH: Final = 24
"""Of groups in groups: sendmmsg's control messages are seven deep."""

MAX_WORD: Final = 4096
"""Words that nothing separates are joined up to here."""

CUT: Final = b"..."
"""An item that says that there were more."""


class NotUnderstood(Exception):
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


class Group(NamedTuple):
    """`[...]`, `{...}` or `head(...)`, also `head [...]`.

    Attributes:
        opener: `[`, `{` or `(`.
        head: what stands before it: `htons`.
        items: one for each value; `CUT` where strace left out some.
        names: the field name of each item, or empty.
    """

    opener: bytes
    head: bytes
    items: list[Value]
    names: list[bytes]

    def field(self, *names: bytes) -> Value | None:
        """The first item under one of these names, or None."""
        for name in names:
            if name in self.names:
                return self.items[self.names.index(name)]
        return None


class Change(NamedTuple):
    """`before => after`, or `before->after`: what the call made of it."""

    before: Value
    after: Value


Value: TypeAlias = bytes | Text | Group | Change
"""bytes: a word (a number, a constant, a sum of flags, a pointer)."""


class Parsed(NamedTuple):
    """Attributes:
    top: the arguments, a group without brackets; at the end of a cut log its last groups may lack items.
    named: the descriptors that strace named, in the order of the text.
    """

    top: Group
    named: list[NamedFd]


_NAME = rb'<(?:[^<>\-]|-(?:>(?=[\[\d*@"]))?+|<[^<>]*+>)*+>'
"""A path, or `TCP:[a->b]`, or `/dev/null<char 1:3>`: an arrow does not close it."""

_TOKEN = re.compile(
    rb"""(?:,\s*+)?+
    (?:(?P<field>[A-Za-z_][\w.]*+(?:\(\d++\))?+)=(?![=>]))?+
    (?: @?"(?P<string>(?:[^"\\]++|\\.)*+)(?:(?P<end>")(?P<more>\.\.\.)?+)?+
    | (?P<word>-?+[^\s,"{}()\[\]<>=/\-]++)(?:(?P<call>\()|(?P<name>"""
    + _NAME
    + rb""")(?:\(deleted\))?+)?+
    | (?P<open>[{\[(])
    | (?P<close>[}\])])
    | (?P<arrow>\s*+(?:=>|->)\s*+)
    | (?P<space>(?:\s++|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?+)++)
    | (?P<other>[^,])
    | (?P<nothing>(?=,)|\Z)
    )
    """,
    re.VERBOSE | re.DOTALL,
)
"""A value with the comma and the field name before it: as few tokens as can be, for they are what takes the time."""
_COMMA: Final = 0x2C

_PLAIN = re.compile(rb"[\w|, +.~-]*+\Z")
"""Words and commas alone: most calls."""

_PROCESS_FIELDS: Final = frozenset({b"pid", b"si_pid", b"l_pid"})
"""Their numbers are named too (-Y), but are no descriptors."""


def parse(text: bytes) -> Parsed:
    """Take the arguments apart.

    Raises:
        NotUnderstood: too long, too deep, or a bracket closes what was never opened.
    """
    if len(text) > MAX_BYTES:
        raise NotUnderstood(f"a call of {len(text)} bytes")
    if _PLAIN.match(text):
        words: list[Value] = list(text.rstrip(b", ").split(b", ")) if text else []
        return Parsed(Group(b"", b"", words, [b""] * len(words)), [])
    return _tree(text)


def _tree(text: bytes) -> Parsed:
    named: list[NamedFd] = []
    top = Group(b"", b"", [], [])
    stack: list[Group] = []
    group, items, names = top, top.items, top.names
    size = len(text)
    fresh = True  # the next value is a new item
    arrow = False
    held = b""  # a field whose value is still to come
    value: Value
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        start = token.start()
        if start < size and text[start] == _COMMA:
            fresh, arrow = True, False
        field = token["field"] or held
        held = b""
        if kind == "word":
            value = token["word"]
        elif kind == "end" or kind == "string" or kind == "more":
            value = Text(token["string"], kind != "end", b"@" in text[start : token.start("string")])
        elif kind == "call":
            value = Group(b"(", token["word"], [], [])
        elif kind == "open":
            value = Group(token["open"], b"", [], [])
        elif kind == "close":
            if not stack:
                raise NotUnderstood("a bracket closes what was never opened")
            group = stack.pop()
            items, names = group.items, group.names
            fresh = False
            continue
        elif kind == "name":
            value = word = token["word"]
            if word.isdigit() and len(word) < 10 and field not in _PROCESS_FIELDS:
                named.append(NamedFd(fd=int(word), text=token["name"][1:-1]))
        elif kind == "arrow":
            arrow, held = bool(items), field
            continue
        elif kind == "space":
            # [3 4]: a set of descriptors; elsewhere a space separates nothing.
            fresh, held = fresh or group.opener == b"[", field
            continue
        elif kind == "other":
            value = token["other"]
        else:
            continue
        if arrow:
            items[-1] = Change(items[-1], value)
            arrow = False
        elif fresh and not (items and isinstance(value, bytes) and value[:1] == b"|"):
            items.append(value)
            names.append(field)
        elif isinstance(value, bytes) and items:
            last = items[-1]
            if isinstance(last, bytes) and len(last) < MAX_WORD:
                # `0x1 /* SOCK_STREAM */|0x80000`: one sum.
                items[-1] = last + value if value[:1] == b"|" else last + b" " + value
        elif isinstance(value, Group) and items:
            last = items[-1]
            if isinstance(last, bytes):
                # `in [3]`, `left {...}`, `~[...]`
                items[-1] = value = Group(value.opener, last, value.items, value.names)
        fresh = False
        if isinstance(value, Group):
            if len(stack) >= MAX_DEPTH:
                raise NotUnderstood("brackets nested too deep")
            stack.append(group)
            group, items, names = value, value.items, value.names
            fresh = True
    return Parsed(top, named)
