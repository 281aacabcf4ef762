"""A file of listings into rows, sections and what could not be read."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import IO, cast

from sockscope.errors import UsageError
from sockscope.sources.gunzip import GZIP_MAGIC
from sockscope.sources.sockets.text import netstat, ss
from sockscope.sources.sockets.text.ends import Ends
from sockscope.sources.sockets.text.table import MOST_ROWS, SocketTable
from sockscope.sources.sockets.text.times import Moment, read_moment
from sockscope.sources.sockets.text.vocabulary import (
    NETIDS,
    NETSTAT_PROTOCOLS,
    OTHER_NETIDS,
    OTHER_NETSTAT_PROTOCOLS,
    STATES,
)
from sockscope.sources.unread import UNREAD_KEPT, UNREAD_LENGTH, UnreadLine

_LONGEST_LINE = 1 << 20
_MOST_BYTES = 4 << 30
_MOST_SECTIONS = 100_000
"""One a second for more than a day."""
_SS_WORDS = frozenset([*STATES, *NETIDS, *OTHER_NETIDS])
_NETSTAT_WORDS = frozenset([*NETSTAT_PROTOCOLS, *OTHER_NETSTAT_PROTOCOLS])
_IDLE = ("Total:", "TCP:", "Transport", "RAW", "UDP", "TCP ", "INET", "FRAG", "INET ")
"""What `ss -s` prints."""


@dataclass(slots=True, kw_only=True)
class Section:
    """Rows that follow one header or one moment.

    Attributes:
        start, stop: rows `[start, stop)`.
        moment: the time that stood before them; None: none did.
        netstat: printed by netstat, not ss.
    """

    start: int
    stop: int = 0
    moment: Moment | None = None
    netstat: bool = False


@dataclass(slots=True, kw_only=True)
class TextFile:
    """What one file held.

    Attributes:
        sections: those with rows, in order.
        unread: the first `UNREAD_KEPT`.
        first_text: its first line that is not empty, for whoever must be told that this is no listing.
        other_count: sockets of kinds that there is no table for (netlink, raw, packet, vsock …).
    """

    path: Path
    sections: list[Section] = field(default_factory=list)
    unread: list[UnreadLine] = field(default_factory=list)
    unread_count: int = 0
    first_text: str = ""
    line_count: int = 0
    other_count: int = 0
    notes: list[str] = field(default_factory=list)


class _Reader:
    def __init__(self, path: Path, table: SocketTable, ends: Ends) -> None:
        self.found = TextFile(path=path)
        self._table = table
        self._ss = ss.SsLines(table, ends)
        self._netstat = netstat.NetstatLines(table, ends)
        self._lacks_state = False
        self._after_ss = False
        self._moment: Moment | None = None
        self._section = Section(start=len(table))

    def read(self, lines: Iterator[str]) -> None:
        found, table = self.found, self._table
        for number, raw in enumerate(lines, 1):
            line = raw.rstrip()
            words = line.split(None, 7)
            if not words:
                self._after_ss = self._after_ss and raw[:1] == "\t"
                continue
            found.first_text = found.first_text or line[:UNREAD_LENGTH]
            if table.full:
                found.notes.append(f"{found.path.name}: only the first {MOST_ROWS} sockets were read, to line {number}")
                break
            if len(found.sections) >= _MOST_SECTIONS:
                found.notes.append(f"{found.path.name}: only the first {_MOST_SECTIONS} listings were read")
                break
            why = self._line(line, words)
            if why:
                found.unread_count += 1
                if len(found.unread) < UNREAD_KEPT:
                    text = line[:UNREAD_LENGTH]
                    found.unread.append(UnreadLine(file=found.path.name, line_number=number, text=text, why=why))
            found.line_count = number
        self._end_section()
        self._late_moment()
        found.other_count = self._ss.other_count + self._netstat.other_count

    def _line(self, line: str, words: list[str]) -> str:
        """Take one line; why it could not be read, or nothing."""
        word = words[0]
        if word in _SS_WORDS and not (word in _NETSTAT_WORDS and len(words) > 1 and words[1][:1].isdigit()):
            self._after_ss = True
            return self._ss.row(line, words)
        if word in _NETSTAT_WORDS:
            self._after_ss = False
            self._section.netstat = True
            return self._netstat.row(line.lstrip(), words)
        if self._after_ss and self._ss.continues(line):
            self._ss.more(line)
            return ""
        if netstat.is_header(line):
            # The table of unix sockets has a header of its own, and is of the same listing.
            self._end_section()
            self._netstat.header(line)
            self._after_ss = False
            return ""
        if ss.is_header(line):
            self._end_section()
            self._lacks_state = ss.lacks_state(line)
            self._after_ss = False
            return ""
        return self._between(line, words)

    def _between(self, line: str, words: list[str]) -> str:
        """A line that is neither row nor header."""
        moment = read_moment(line)
        if moment is not None:
            self._end_section()
            known = self._moment
            self._moment = moment if known is None or moment.zoned or not known.zoned else known
            self._section.moment = self._moment
            self._after_ss = False
            return ""
        if line.startswith(_IDLE):
            return ""
        if (
            netstat.begins(line)
            or "have to be root" in line
            or line.startswith(("(", "$ ", "# ", "Every "))
            or _decoration(line)
        ):
            return ""
        if self._lacks_state and words[0].isdigit():
            return "no column State: leave `state …` away"
        return "not a line of ss or netstat"

    def _end_section(self) -> None:
        section = self._section
        section.stop = len(self._table)
        if section.stop > section.start:
            self.found.sections.append(section)
            self._moment = None
        # A moment counts for the first listing after it; the reader joins what belongs to that.
        self._section = Section(start=len(self._table), moment=self._moment)

    def _late_moment(self) -> None:
        """A script that prints the time after each listing, not before."""
        sections = self.found.sections
        if self._moment is None or not sections or sections[0].moment is not None:
            return
        moments = [section.moment for section in sections[1:]] + [self._moment]
        for section, moment in zip(sections, moments, strict=True):
            section.moment = moment


def _decoration(line: str) -> bool:
    """`-----`, `=== host ===`."""
    return not line[0].isalnum() and len(line.strip("=-_*#~+ ")) < 40 and line[0] in "=-_*#~+"


def read_file(path: Path, table: SocketTable, ends: Ends) -> TextFile:
    """Read one file, gzip too, into the table.

    Raises:
        UsageError: it cannot be opened.
    """
    reader = _Reader(path, table, ends)
    try:
        with _opened(path) as text:
            try:
                reader.read(_lines(text, reader.found))
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                reader.found.notes.append(f"{path.name}: the gzip data end early or are damaged ({error})")
                reader.read(iter(()))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", help_text="name a readable file") from error
    return reader.found


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == GZIP_MAGIC
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        yield TextIOWrapper(stream, "utf-8", errors="replace", newline="\n")


def _lines(text: IO[str], found: TextFile) -> Iterator[str]:
    """Lines, the longest of them shortened; up to a bound, for a small gzip file may hold any amount."""
    left = _MOST_BYTES
    while line := text.readline(_LONGEST_LINE):
        left -= len(line)
        if left < 0:
            found.notes.append(f"{found.path.name}: only its first 4 GiB were read")
            return
        yield line
        while not line.endswith("\n") and len(line) == _LONGEST_LINE:
            line = text.readline(_LONGEST_LINE)
            left -= len(line)
