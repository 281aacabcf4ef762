"""Packets of several files in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sockscope.model.columns import picked
from sockscope.sources.packets.pcapng import Interface

_MOST_INTERFACES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file, read.

    Attributes:
        name: of the file, or its path. records: shape (n,), PACKET_DTYPE, in file order.
        interfaces: what its `interface` column indexes. damage, notes: a line each.
        whole: it says of no packet that it was dropped, and lost none from its middle.
    """

    name: str
    records: npt.NDArray[np.void]
    interfaces: list[Interface]
    damage: list[str]
    notes: list[str]
    whole: bool


def merge(parts: Sequence[Part]) -> tuple[npt.NDArray[np.void], list[Interface]]:
    """All rows, in order of time where there are several files; and what their `interface` column then indexes.

    Args:
        parts: one at least; the `interface` column of their records is renumbered in place.
    """
    if len(parts) == 1:
        return parts[0].records, parts[0].interfaces
    spans = [_span(part.records) for part in parts]
    order = sorted(range(len(parts)), key=lambda number: spans[number])
    interfaces: list[Interface] = []
    last_ns: list[int] = []
    for number in order:
        part, (first, last) = parts[number], spans[number]
        numbers = _numbers(part.interfaces, interfaces, last_ns, first)
        part.records["interface"] = np.array([*numbers, 0], np.uint16)[part.records["interface"]]
        for each in numbers:
            last_ns[each] = max(last_ns[each], last)
    rows = [parts[number].records for number in order if len(parts[number].records)]
    records = np.concatenate(rows) if rows else parts[0].records
    following = [spans[number] for number in order if len(parts[number].records)]
    if any(earlier[1] > later[0] for earlier, later in pairwise(following)):
        records = picked(records, np.argsort(records["time_ns"], kind="stable"))
    return records, interfaces


def _span(records: npt.NDArray[np.void]) -> tuple[int, int]:
    times = records["time_ns"]
    return (int(times.min()), int(times.max())) if len(times) else (0, 0)


def _numbers(own: Sequence[Interface], interfaces: list[Interface], last_ns: list[int], first: int) -> list[int]:
    """What a file's interfaces are numbered in all: pieces of one capture follow one another in time."""
    taken: set[int] = set()
    numbers = []
    for interface in own:
        same = (
            number
            for number, known in enumerate(interfaces)
            if number not in taken
            and last_ns[number] <= first
            and (known.name, known.link) == (interface.name, interface.link)
        )
        number = next(same, len(interfaces))
        if number == len(interfaces):
            if number == _MOST_INTERFACES:
                number -= 1
            else:
                interfaces.append(interface)
                last_ns.append(first)
        taken.add(number)
        numbers.append(number)
    return numbers
