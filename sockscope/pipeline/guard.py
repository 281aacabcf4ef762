"""A bug in one part of a report costs the user that part, not the findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sockscope.analysis.narration.kernel_story import Stories
from sockscope.analysis.narration.story import Life
from sockscope.analysis.narration.timeline import Timelines
from sockscope.analysis.narration.wire_words import WireTeller
from sockscope.analysis.session import Session
from sockscope.model.kernel import KernelStory
from sockscope.model.report import Lane, TimelineItem, TimelineTable
from sockscope.model.wire_facts import WireFacts

T = TypeVar("T")


def _words(part: str, error: Exception) -> str:
    return f"internal error in {part}: {type(error).__name__}: {error}"


class Guard:
    """Makes the parts of a report, each apart.

    Attributes:
        notes: what went wrong, for the report: `internal error in latency: IndexError: …`.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def part(self, name: str, make: Callable[[], T], empty: T) -> T:
        """What `make` returns; `empty`, and a note, where it fails."""
        try:
            return make()
        except Exception as error:  # noqa: BLE001 - see above
            self.notes.append(_words(name, error))
            return empty


class GuardedParts:
    """What is told of one connection when asked, too late for a note: what went wrong is said in its place."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._timelines: Timelines | None = None
        self._wire: WireTeller | None = None
        self._life: Life | None = None

    def timeline_tables(self, connections: Sequence[int], limits: Sequence[int]) -> Iterator[TimelineTable]:
        """A `model.report.TimelineTables`."""
        told_count = 0
        try:
            self._timelines = self._timelines or Timelines(self._session)
            for table in self._timelines.tables(connections, limits):
                yield table
                told_count += 1
        except Exception as error:  # noqa: BLE001 - see above
            if len(connections) == 1:
                yield self._untold(connections[0], error)
                return
            # It may fail for one of them only: each alone, who fails says so.
            for number, limit in zip(connections[told_count:], limits[told_count:], strict=True):
                yield from self.timeline_tables([number], [limit])

    def _untold(self, connection: int, error: Exception) -> TimelineTable:
        said, began_ns = _words("the timeline", error), self._session.connections[connection].first_ns
        item = TimelineItem(time_ns=began_ns, duration_ns=0, lane=Lane.KERNEL, actor="--", name="…", text=said)
        return TimelineTable.of_items([item])

    def story(self, connection: int) -> str:
        """A connection's life in a few sentences."""
        try:
            self._life = self._life or Life(self._session)
            return self._life(connection)
        except Exception as error:  # noqa: BLE001 - see above
            return _words("the story", error)

    def kernel_story(self, connection: int) -> KernelStory:
        """A `model.kernel.KernelStories`; empty where it fails, beside totals that are not."""
        try:
            return Stories(self._session)(connection)
        except Exception:  # noqa: BLE001 - see above
            return KernelStory()

    def wire(self, connection: int) -> WireFacts | None:
        """A `model.wire_facts.WireTold`; None where it fails."""
        try:
            self._wire = self._wire or WireTeller(self._session)
            return self._wire(connection)
        except Exception:  # noqa: BLE001 - see above
            return None
