"""Connections and timelines as columns for the page's script: compact, and bounded in bytes.

Every text is an index into one list of distinct strings. Of the connections that the page shows, timelines are
kept for those with findings, then for the others in order until the budget is spent; the page says for how many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from json.encoder import encode_basestring_ascii
from operator import sub
from typing import TypeAlias, TypedDict

from sockscope.model.findings import Evidence, Source
from sockscope.model.report import ConnectionRow, Lane, Report, TimelineItem, TimelineTable
from sockscope.reports import format as words
from sockscope.reports.escape import safe
from sockscope.reports.html_choice import Choice
from sockscope.reports.html_groups import state_counts
from sockscope.reports.shortened import short_addresses

TIMELINE_BUDGET_BYTES = 10_000_000
"""Of the page's 15 MB; a shown connection's row takes about 200 bytes beside it."""
TIMELINE_COUNT = 10_000
FINDING_LIMIT = 400
"""Items kept of a connection with findings."""
OTHER_LIMIT = 80
LANES = {Lane.WIRE: 0, Lane.KERNEL: 1, Lane.SYSCALL: 2}

Columns: TypeAlias = dict[str, list[int]]
Timeline: TypeAlias = str
"""Eight columns, written in JSON at once: time since the item before (ns; the first since the session's start),
duration (ns, -1 open), lane, actor, name, text, words (string indexes), and bits: 1 failed, 2 evidence, 4 primary
evidence, 8 told by the kernel at that moment (other states are as of a snapshot), 16 not a state but a mark in the
state lane."""


LIVES = 1000
"""Connections whose story is in the page: few open more."""


class PageData(TypedDict):
    """What the page's script reads.

    `total`: connections in the session, of which `connections` holds those that are shown; `findings`: per shown one
    the indexes into `rules`, and `groups`: its group (empty where all are shown); `marked`: connections of each
    finding, `states`: in each state, shown or not; `lives`: connection id → its story in a few sentences, of those
    with a timeline, the most wanted first.
    """

    version: int
    duration: int
    rules: list[str]
    titles: list[str]
    severities: list[str]
    marked: list[int]
    states: dict[str, int]
    total: int
    groups: list[int]
    connections: Columns
    findings: list[list[int]]
    timelines: dict[int, Timeline]
    lives: dict[int, int]
    strings: list[str]


class Strings:
    """Distinct strings in order of first use, made safe to show; counts the bytes they will take."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.json_bytes = 0
        self._index: dict[str, int] = {}
        self._digits: dict[str, str] = {}

    def __call__(self, text: str) -> int:
        index = self._index.get(text)
        if index is None:
            index = self._index[text] = len(self.texts)
            self._digits[text] = str(index)
            shown = safe(text)
            self.texts.append(shown)
            # `<`, `>` and `&` grow from one byte to six when made inert.
            self.json_bytes += len(encode_basestring_ascii(shown)) + 1 + 5 * sum(map(shown.count, "<>&"))
        return index

    def each(self, texts: Sequence[str]) -> str:
        """The same of several, as a list in JSON."""
        try:
            return f"[{','.join(map(self._digits.__getitem__, texts))}]"
        except KeyError:
            for text in texts:
                self(text)
            return f"[{','.join(map(self._digits.__getitem__, texts))}]"


def page_data(report: Report, choice: Choice) -> tuple[PageData, int]:
    """What the page's script reads, and for how many of the chosen connections the timeline is in it."""
    strings = Strings()
    timelines = _timelines(report, choice.rows, strings)
    told = {number: report.stories(number) for number in list(timelines)[:LIVES]}
    lives = {number: strings(text) for number, text in told.items() if text}
    comms = {process.tgid: process.comm for process in report.processes}
    rows = choice.rows
    return {
        "version": 2,
        "duration": max(0, report.info.ended_ns - report.info.started_ns),
        "rules": [finding.rule for finding in report.findings],
        "titles": [safe(finding.title) for finding in report.findings],
        "severities": [finding.severity.label for finding in report.findings],
        "marked": [len(set(finding.connections)) for finding in report.findings],
        "states": state_counts(report),
        "total": len(report.connections),
        "groups": list(choice.groups),
        "connections": _connections(rows, report, strings, comms),
        "findings": [list(row.finding_indexes) for row in rows],
        "timelines": timelines,
        "lives": lives,
        "strings": strings.texts,
    }, len(timelines)


def _connections(rows: Sequence[ConnectionRow], report: Report, strings: Strings, comms: dict[int, str]) -> Columns:
    columns: Columns = {}
    start = report.info.started_ns

    def add(**values: int) -> None:
        for name, value in values.items():
            columns.setdefault(name, []).append(value)

    for row in rows:
        c = row.connection
        held = ", ".join(words.holder_name(comms.get(tgid, "?"), tgid, fd) for tgid, fd in c.owners)
        add(
            id=c.id,
            protocol=strings(c.protocol.value),
            role=strings(c.role.value),
            local=strings(words.address(c.local)),
            peer=strings(words.far_end(row)),
            state=strings(words.state_name(c)),
            first=c.first_ns - start,
            last=c.last_ns - start,
            read=c.read_bytes,
            written=c.written_bytes,
            recv_q=c.recv_q,
            send_q=c.send_q,
            never_accepted=int(c.never_accepted),
            held=strings("nobody: not accepted" if c.never_accepted else held),
            processes=strings(", ".join(words.process_name(comms.get(t, "?"), t) for t in row.processes)),
            events=row.event_count,
            packets=row.packet_count,
            summary=strings(row.summary),
            wire=strings(row.wire),
        )
    return columns


def _timelines(report: Report, rows: Sequence[ConnectionRow], strings: Strings) -> dict[int, Timeline]:
    """Connection id → timeline, the most wanted first, until the budget is spent."""
    kept: dict[int, Timeline] = {}
    spent = 0
    primaries = {(f.evidence[0].source, f.evidence[0].ref) for f in report.findings if f.evidence}
    wanted = _most_wanted(report, rows)[:TIMELINE_COUNT]
    limits = [FINDING_LIMIT if row.finding_indexes else OTHER_LIMIT for row in wanted]
    tables = report.timeline_tables([row.connection.id for row in wanted], limits)
    for row, table in zip(wanted, tables, strict=True):
        findings = [report.findings[i] for i in row.finding_indexes]
        facts = [fact for finding in findings for fact in finding.evidence]
        own = [fact for finding in findings if finding.worst == row.connection.id for fact in finding.evidence]
        if own:
            table = TimelineTable.of_items(_with_evidence(table.items(), own))
        timeline = _timeline(table, facts, primaries, report.info.started_ns, strings)
        spent += len(timeline) + 12
        kept[row.connection.id] = timeline
        if spent + strings.json_bytes > TIMELINE_BUDGET_BYTES:
            break
    return kept


def _most_wanted(report: Report, rows: Sequence[ConnectionRow]) -> list[ConnectionRow]:
    worst = {finding.worst for finding in report.findings} | {server.slowest.connection for server in report.latency}
    return sorted(rows, key=lambda row: (row.connection.id not in worst, not row.finding_indexes))


def _with_evidence(items: Sequence[TimelineItem], facts: Sequence[Evidence]) -> list[TimelineItem]:
    """The calls that prove a finding without being on the connection (a wait, a signal), put in their places."""
    placed = set(words.evidence_marks(items, facts).values())
    added = []
    for index, fact in enumerate(facts):
        actor, text = words.actor_and_text(fact)
        if index in placed or fact.source is not Source.SYSCALL or not actor:
            continue
        added.append(
            TimelineItem(
                time_ns=fact.time_ns,
                duration_ns=0,
                lane=Lane.SYSCALL,
                actor=actor,
                name=re.split(r"[( ]", text, maxsplit=1)[0],
                text=text,
                ref=fact.ref,
            )
        )
    return sorted([*items, *added], key=lambda item: item.time_ns)


def _timeline(
    table: TimelineTable,
    facts: Sequence[Evidence],
    primaries: Set[tuple[Source, int]],
    started_ns: int,
    strings: Strings,
) -> Timeline:
    before = [started_ns, *table.time_ns]
    said = list(table.words)
    bits = [f | 8 * e | 16 * m for f, e, m in zip(table.failed, table.exact, table.is_mark, strict=True)]
    if not {fact.ref for fact in facts if fact.ref >= 0}.isdisjoint(table.ref):
        items = table.items()
        for index, number in words.evidence_marks(items, facts).items():
            fact = facts[number]
            said[index] = words.meaning(items[index], fact)
            bits[index] |= 2 | (4 if (fact.source, fact.ref) in primaries else 0)
    columns = (
        _numbers(map(sub, table.time_ns, before)),
        _numbers(table.duration_ns),
        _numbers(map(LANES.__getitem__, table.lane)),
        strings.each(table.actor),
        strings.each(table.name),
        strings.each(list(map(short_addresses, table.text))),
        strings.each(said),
        _numbers(bits),
    )
    return f"[{','.join(columns)}]"


def _numbers(values: Iterable[int]) -> str:
    """A list in JSON."""
    return f"[{','.join(map(str, values))}]"
