"""Which connections the page shows one by one: all up to a bound, beyond it those with findings and a sample.

Everything the page shows takes bytes, time to write and time to open. Of a large session it therefore shows
some thousands, says how they were drawn, and sums all of them up in groups (`html_groups`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sockscope.model.report import ConnectionRow, Report
from sockscope.reports import format as words
from sockscope.reports.html_groups import Grouped, group_rows

WHOLE_COUNT = 20_000
"""Up to so many connections are all shown."""
FINDING_ROOM = 4_000
"""Rows that findings share."""
MOST_OF_A_FINDING = 400
FEWEST_OF_A_FINDING = 10
EXTREME_COUNT = 150
EACH_GROUP = 3
SPREAD_COUNT = 500

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the page shows of the report's connections.

    Attributes:
        rows: in the order of the table.
        groups: of each of `rows` the index into `grouped.groups`; empty where all are shown.
        grouped: all connections summed; None where all are shown.
        drawn: how the rows were chosen, a sentence each; empty where all are shown.
    """

    rows: tuple[ConnectionRow, ...]
    groups: tuple[int, ...] = ()
    grouped: Grouped | None = None
    drawn: tuple[str, ...] = ()


def choose(report: Report) -> Choice:
    """Choose the rows; the same report gives the same ones."""
    if len(report.connections) <= WHOLE_COUNT:
        return Choice(rows=tuple(sorted(report.connections, key=words.idle_pair)))
    grouped = group_rows(report)
    faulty, of_findings = _of_findings(report)
    others, sample = _sample(report)
    chosen = np.unique(np.concatenate([faulty, others, _some_of_each(grouped.of_row)]))
    order = sorted(chosen.tolist(), key=lambda at: words.idle_pair(report.connections[at]))
    return Choice(
        rows=tuple(report.connections[at] for at in order),
        groups=tuple(grouped.of_row[order].tolist()),
        grouped=grouped,
        drawn=tuple(
            sentence for sentence in (of_findings, sample, f"Of each group at least {EACH_GROUP}.") if sentence
        ),
    )


def _of_findings(report: Report) -> tuple[Rows, str]:
    """Of each finding the worst, those that lasted longest and some from end to end; and the slowest exchanges'."""
    row_of = {row.connection.id: at for at, row in enumerate(report.connections)}
    slowest = [row_of[id_] for id_ in (server.slowest.connection for server in report.latency) if id_ in row_of]
    chosen = [np.array(slowest, np.int64)]
    room = FINDING_ROOM // max(1, len(report.findings))
    room = min(MOST_OF_A_FINDING, max(FEWEST_OF_A_FINDING, room))
    cut = False
    for finding in report.findings:
        ids = finding.connections if finding.worst is None else (finding.worst, *finding.connections)
        rows = np.array([row_of[id_] for id_ in ids if id_ in row_of], np.int64)
        if len(rows) > room:
            cut = True
            first, others = rows[:1], rows[1:][rows[1:] != rows[0]]
            by_length = others[_most(_lasted(report, others), len(others))]
            longest, others = by_length[: room // 2], np.sort(by_length[room // 2 :])
            rows = np.concatenate([first, longest, others[_spread(len(others), room - 1 - len(longest))]])
        chosen.append(rows)
    if not any(finding.connections for finding in report.findings):
        told = ""
    elif cut:
        told = f"Of each finding up to {room}: the worst, those that lasted longest, and some evenly from the others."
    else:
        told = "All connections with findings."
    return np.unique(np.concatenate(chosen)), told


def _sample(report: Report) -> tuple[Rows, str]:
    """Of the connections without findings: the extremes, and every n-th."""
    rows = report.connections
    sound = np.flatnonzero(np.array([not row.finding_indexes for row in rows], np.bool_))
    if not len(sound):
        return sound, ""
    moved = np.array([rows[at].connection.read_bytes + rows[at].connection.written_bytes for at in sound.tolist()])
    first = np.array([rows[at].connection.first_ns for at in sound.tolist()], np.int64)
    step = -(-len(sound) // SPREAD_COUNT)
    chosen = [
        sound[_most(_lasted(report, sound), EXTREME_COUNT)],
        sound[_most(moved, EXTREME_COUNT)],
        sound[_most(-first, EXTREME_COUNT)],
        sound[::step],
    ]
    nth = f"every {words.ordinal(step)}" if step > 1 else "all the rest"
    told = (
        f"Of those without findings the {EXTREME_COUNT} that lasted longest, the {EXTREME_COUNT} that moved most "
        f"bytes, the {EXTREME_COUNT} that began first, and {nth}."
    )
    return np.unique(np.concatenate(chosen)), told


def _lasted(report: Report, rows: Rows) -> Rows:
    connections = [report.connections[at].connection for at in rows.tolist()]
    return np.array([one.last_ns - one.first_ns for one in connections], np.int64)


def _most(values: npt.NDArray[np.signedinteger], count: int) -> Rows:
    """Where the largest are; of equals the first."""
    return np.argsort(-values, kind="stable")[:count]


def _spread(length: int, count: int) -> Rows:
    """At most `count` different places from 0 to length - 1, evenly."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))


def _some_of_each(group: Rows) -> Rows:
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    some: Rows = order[rank < EACH_GROUP]
    return some
