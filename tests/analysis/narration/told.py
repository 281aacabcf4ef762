"""One connection's timeline, for tests that look at one."""

from __future__ import annotations

from sockscope.analysis.narration.timeline import Timelines
from sockscope.analysis.session import Session
from sockscope.model.report import TimelineItem


def timeline(session: Session, connection: int, *, limit: int = 200) -> list[TimelineItem]:
    (table,) = Timelines(session).tables([connection], [limit])
    return table.items()
