"""Sections of files into snapshots, and their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.tcp import TcpState
from sockscope.sources.sockets.text.lines import Section, TextFile

STEP_NS = 1_000
"""Between snapshots of unknown time: enough to put them in order, too little to conclude anything from."""


@dataclass(slots=True, kw_only=True)
class Listing:
    """One snapshot.

    Attributes:
        sections: its tables (TCP, then unix, say).
        time_ns: CLOCK_REALTIME. known: it stood in the text. zoned: with its time zone.
    """

    sections: list[Section]
    time_ns: int = 0
    known: bool = False
    zoned: bool = True


def listings_of(files: Sequence[TextFile], rows: npt.NDArray[np.void]) -> list[Listing]:
    """Every snapshot, in order of time; no two at the same."""
    found = [listing for file in files for listing in _of_file(file, rows)]
    found.sort(key=lambda one: one.time_ns)
    last = -1
    for listing in found:
        listing.time_ns = max(listing.time_ns, last + 1)
        last = listing.time_ns
    return found


def _of_file(file: TextFile, rows: npt.NDArray[np.void]) -> list[Listing]:
    listings: list[Listing] = []
    shown: set[int] = set()
    for section in file.sections:
        kinds = _kinds(rows[section.start : section.stop])
        # A table of what was shown already begins the next snapshot; one of something else goes on with this.
        if not listings or section.moment is not None or kinds & shown:
            listings.append(Listing(sections=[]))
            shown = set()
            if section.moment is not None:
                listings[-1].time_ns, listings[-1].known = section.moment.time_ns, True
                listings[-1].zoned = section.moment.zoned
        listings[-1].sections.append(section)
        shown |= kinds
    _guess_times(file, listings)
    return listings


def _kinds(rows: npt.NDArray[np.void]) -> set[int]:
    """Which tables the rows are of: protocol, family, listening or not."""
    key = rows["protocol"].astype(np.int64) << 16 | rows["family"].astype(np.int64) << 8
    return set(np.unique(key | (rows["state"] == TcpState.LISTEN)).tolist())


def _guess_times(file: TextFile, listings: list[Listing]) -> None:
    """A snapshot without a time comes after the one before it; what has none after it ends with the file."""
    after: int | None = None
    if listings and not any(listing.known for listing in listings):
        after = file.path.stat().st_mtime_ns + STEP_NS
    for listing in reversed(listings):
        if listing.known:
            after = listing.time_ns
        elif after is not None:
            after = listing.time_ns = max(0, after - STEP_NS)
    before: int | None = None
    for listing in listings:
        if not listing.known and not listing.time_ns and before is not None:
            listing.time_ns = before + STEP_NS
        before = listing.time_ns
