"""What the tests of single calls share: a line of strace as its record, and sections by name."""

from __future__ import annotations

import re

from sockscope.model.events import Section, unpack_sections
from sockscope.sources.syscalls.strace_log.encode import Encoded, encode

_LINE = re.compile(r"(\w+)\((.*)\) += (.*)", re.DOTALL)


def of(line: str) -> Encoded:
    """The record of a line as strace prints it, without process and time."""
    encoded = maybe(line)
    assert encoded is not None, line
    return encoded


def maybe(line: str) -> Encoded | None:
    found = _LINE.fullmatch(line)
    assert found is not None, line
    return encode(found[1], found[2].encode("latin-1"), found[3].encode("latin-1"))


def sections(encoded: Encoded) -> dict[Section, bytes]:
    return {Section(kind): data for kind, _, data in unpack_sections(encoded.blob)}


def section(line: str, kind: Section) -> bytes | None:
    return sections(of(line)).get(kind)
