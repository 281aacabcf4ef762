"""Interned strings and track descriptors of a Perfetto trace: written once, named by number afterwards.

Source: protos/perfetto/trace/interned_data/interned_data.proto, track_event/track_descriptor.proto of Perfetto v55.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sockscope.reports.escape import safe
from sockscope.reports.perfetto_wire import nested, number, packet

CATEGORIES, EVENT_NAMES, NOTE_NAMES, NOTE_STRINGS = 1, 2, 3, 29
"""Fields of InternedData."""

_AT_ONCE = 4096
_INT32 = 1 << 31


class Interned:
    """One kind of interned strings; ids begin with 1."""

    def __init__(self, field_number: int) -> None:
        self._field = field_number
        self._ids: dict[str, int] = {}

    def id(self, text: str) -> int:
        return self._ids.setdefault(text, len(self._ids) + 1)

    def packets(self) -> Iterator[bytes]:
        """What is in it by now; asked once, when all is."""
        entries = [nested(self._field, number(1, iid) + nested(2, safe(text))) for text, iid in self._ids.items()]
        for begin in range(0, len(entries), _AT_ONCE):
            yield packet(nested(12, b"".join(entries[begin : begin + _AT_ONCE])))


@dataclass(slots=True)
class Names:
    """All kinds together."""

    categories: Interned = field(default_factory=lambda: Interned(CATEGORIES))
    events: Interned = field(default_factory=lambda: Interned(EVENT_NAMES))
    notes: Interned = field(default_factory=lambda: Interned(NOTE_NAMES))
    strings: Interned = field(default_factory=lambda: Interned(NOTE_STRINGS))

    def packets(self) -> Iterator[bytes]:
        for each in (self.categories, self.events, self.notes, self.strings):
            yield from each.packets()


class Tracks:
    """Hands out tracks; each is described before anything lies on it."""

    def __init__(self) -> None:
        self._count = 0
        self._packets: list[bytes] = []

    def _describe(self, body: bytes, parent: int, rank: int) -> int:
        self._count += 1
        body = number(1, self._count) + body
        if parent:
            body += number(5, parent)
        if rank:
            body += number(12, rank)
        self._packets.append(packet(nested(60, body)))
        return self._count

    def plain(self, name: str, *, parent: int = 0, rank: int = 0, about: str = "", ordered: bool = False) -> int:
        """A track of its own; `ordered`: its children stand in order of their ranks."""
        body = nested(2, safe(name))
        if about:
            body += nested(14, safe(about))
        if ordered:
            body += number(11, 3)
        return self._describe(body, parent, rank)

    def counter(self, name: str) -> int:
        return self._describe(nested(2, safe(name)) + nested(8, b""), 0, 0)

    def process(self, pid: int, name: str, cmdline: Sequence[str]) -> int:
        if not 0 < pid < _INT32:
            return self.plain(f"{name}[{pid}]")
        words = b"".join(nested(2, safe(word)) for word in cmdline)
        return self._describe(nested(3, number(1, pid) + words + nested(6, safe(name))), 0, 0)

    def thread(self, pid: int, tid: int, name: str, *, parent: int) -> int:
        """A thread of a process that has a track."""
        if not (0 < pid < _INT32 and 0 < tid < _INT32):
            return self.plain(f"{name}[{tid}]", parent=parent)
        return self._describe(nested(4, number(1, pid) + number(2, tid) + nested(5, safe(name))), 0, 0)

    def packets(self) -> Iterator[bytes]:
        """Descriptors of the tracks handed out since this was last asked."""
        made, self._packets = self._packets, []
        yield from made
