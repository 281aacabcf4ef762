"""The interleaved timeline of a connection: the telling part of a finding's worst one, or the whole of any."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from sockscope.model.findings import Evidence, Finding
from sockscope.model.report import ConnectionRow, Lane, Report, TimelineItem
from sockscope.reports import format as words
from sockscope.reports.escape import safe
from sockscope.reports.shortened import short

SHORT_LINES = 25
"""Printed lines of a timeline that is not verbose; the evidence itself is always whole."""
FULL_LIMIT = 200
LANE_STYLES = {Lane.WIRE: "cyan", Lane.KERNEL: "yellow", Lane.SYSCALL: "magenta"}
LANE_NAMES = {Lane.WIRE: "wire", Lane.KERNEL: "state", Lane.SYSCALL: ""}
ACTOR_COLUMNS = 26
GAP = 2
BLOCK_LINES = 200
LEAST_TEXT_COLUMNS = 12
_REMARK = re.compile(r"(?s)(.+)  \(([^()]+)\)")
"""Evidence as rules write it: the fact, and in brackets what it shows."""
_AGAIN = re.compile(r'(?:^|; )(?:(?:sent|read) )?\d+ bytes?: "(?:[^"\\]|\\.)*"(?:\.\.\.)?$')
_BIRTHS = ("accept(", "accept4(", "connect(")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One line: an item, or evidence that is on no item. `mark`: the evidence's index, -1 for none."""

    time_ns: int
    lane: Lane | None
    actor: str
    text: str
    meaning: str = ""
    failed: bool = False
    mark: int = -1
    plain: bool = False
    """A bare acknowledgement: nobody misses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Widths that hold for every line of a timeline."""

    mark: int
    time: int
    actor: int
    text: int


def story(
    report: Report, finding: Finding, *, console: Console, width: int, verbose: bool, ascii_only: bool
) -> list[RenderableType] | None:
    """Heading and timeline of a finding's worst connection; None where there is nothing to tell."""
    items: Sequence[TimelineItem] = ()
    row = _row_of(report, finding.worst)
    if finding.worst is not None:
        items = report.timelines(finding.worst, limit=FULL_LIMIT)
    entries = _entries(items, finding.evidence, finding.evidence, brief=not verbose)
    if not entries:
        return None
    left_out = ""
    columns = _columns(entries, report, width, ascii_only)
    shown = set(range(len(entries)))
    if not verbose:
        began = row.connection.first_ns if row is not None else entries[0].time_ns
        waits = [e for e in entries if e.time_ns < began and e.mark < 0 and not e.failed]
        bare = [e for e in entries if e.plain and e.mark < 0 and e.time_ns >= began]
        dull = {id(e) for e in (*waits, *bare)}
        entries = [e for e in entries if id(e) not in dull]
        shown = _telling(entries, columns)
        left_out = _left_out(len(waits), len(bare))
    out: list[RenderableType] = [_heading(finding, row, ascii_only)]
    out += _blocks(report, entries, shown, columns, console, ascii_only)
    if left_out:
        out.append(Text(left_out, "dim"))
    return out


def whole(report: Report, row: ConnectionRow, *, limit: int, console: Console, ascii_only: bool) -> Iterator[Text]:
    """All of one connection's timeline, what the findings say of it marked."""
    connection = row.connection.id
    items = report.timelines(connection, limit=limit)
    findings = [report.findings[i] for i in row.finding_indexes]
    marking = [fact for finding in findings for fact in finding.evidence]
    # Evidence beside the timeline belongs to the connection that the finding shows.
    own = [fact for finding in findings if finding.worst == connection for fact in finding.evidence]
    entries = _entries(items, marking, own, brief=False)
    columns = _columns(entries, report, console.width, ascii_only)
    yield from _blocks(report, entries, set(range(len(entries))), columns, console, ascii_only)


def ends_of(row: ConnectionRow, *, ascii_only: bool) -> str:
    """`#7 127.0.0.1:80 ← 127.0.0.1:40112`, safe to show."""
    connection = row.connection
    near, far = safe(words.address(connection.local)), safe(words.far_end(row))
    return f"#{connection.id} {near} {words.arrow(connection.role, ascii_only=ascii_only)} {far}"


def _left_out(waits: int, bare: int) -> str:
    parts = [words.counted(bare, "bare acknowledgement")] if bare else []
    parts += [words.counted(waits, "event") + " from before it began"] if waits else []
    return f"left out: {' and '.join(parts)}; --verbose shows all" if parts else ""


def _heading(finding: Finding, row: ConnectionRow | None, ascii_only: bool) -> Text:
    text = Text()
    if row is None:
        text.append("Evidence", "bold")
    else:
        text.append("Evidence" if len(finding.connections) < 2 else "Evidence, of the worst", "bold")
        text.append(f"  {ends_of(row, ascii_only=ascii_only)}  {words.state_name(row.connection)}")
        if row.wire:
            text.append(f"\nOn the wire: {safe(row.wire)}", "cyan")
    return text


def _row_of(report: Report, connection: int | None) -> ConnectionRow | None:
    if connection is None:
        return None
    if connection < len(report.connections) and report.connections[connection].connection.id == connection:
        return report.connections[connection]
    return next((row for row in report.connections if row.connection.id == connection), None)


def _entries(
    items: Sequence[TimelineItem], marking: Sequence[Evidence], own: Sequence[Evidence], *, brief: bool
) -> list[_Entry]:
    """Items, marked where evidence points at them, and the own evidence that is on none of them, in time.

    `brief`: words that only say again what the line shows are left out.
    """
    marks = words.evidence_marks(items, marking)
    entries = [
        _Entry(
            time_ns=item.time_ns,
            lane=item.lane,
            actor=item.actor,
            text=item.text,
            meaning=_said(words.meaning(item, marking[marks[index]] if index in marks else None), brief=brief),
            failed=item.failed,
            mark=marks.get(index, -1),
            plain=item.lane is Lane.WIRE and item.name == "ACK" and not item.words,
        )
        for index, item in enumerate(items)
    ]
    placed = {id(marking[mark]) for mark in marks.values()}
    for index, fact in enumerate(marking):
        if id(fact) in placed or not any(fact is one for one in own):
            continue
        actor, text = words.actor_and_text(fact)
        remark = _REMARK.fullmatch(text)
        entries.append(
            _Entry(
                time_ns=fact.time_ns,
                lane=words.SOURCE_LANES.get(fact.source),
                actor=actor,
                text=remark[1] if remark else text,
                meaning=remark[2] if remark else "",
                mark=index,
            )
        )
    return sorted(entries, key=lambda entry: entry.time_ns)


def _said(meaning: str, *, brief: bool) -> str:
    return _AGAIN.sub("", meaning) if brief else meaning


def _telling(entries: Sequence[_Entry], columns: _Columns) -> set[int]:
    """What to show when space is short: the evidence, what stands beside it, what failed, both ends."""
    marked = [i for i, e in enumerate(entries) if e.mark >= 0]
    first = [i for i in marked if entries[i].mark == 0]
    born = [i for i, e in enumerate(entries) if e.text.startswith(_BIRTHS)][:1]
    failed = [i for i, e in enumerate(entries) if e.failed]
    count = len(entries)
    ends = [i for pair in zip(range(count), reversed(range(count)), strict=True) for i in pair]
    told = [i for i, e in enumerate(entries) if e.meaning]
    near = [i + step for step in (-1, 1) for i in marked] + [i + step for step in (-2, 2) for i in first]
    beside = [i + step for step in (-1, 1) for i in first]
    wanted: set[int] = set()
    used = 0
    for index in [*marked, *born, *beside, *failed[-3:], *ends[:2], *near, *failed, *told, *ends]:
        if not 0 <= index < count or index in wanted:
            continue
        # The evidence is never left out.
        lines = _line_count(entries[index], columns)
        if entries[index].mark < 0 and used + lines > SHORT_LINES:
            break
        wanted.add(index)
        used += lines
    # A gap line takes as much room as the line it hides.
    return wanted | {
        i for i in range(1, count - 1) if i - 1 in wanted and i + 1 in wanted and _line_count(entries[i], columns) == 1
    }


def _line_count(entry: _Entry, columns: _Columns) -> int:
    text, meaning = cell_len(short(entry.text)), cell_len(entry.meaning)
    if text + meaning + 3 <= columns.text:
        return 1
    return -(-text // columns.text) + -(-(meaning + 2) // columns.text if meaning else 0)


def _columns(entries: Sequence[_Entry], report: Report, width: int, ascii_only: bool) -> _Columns:
    time = max((len(words.since_start(e.time_ns, report.info)) for e in entries), default=0)
    mark = 2 if ascii_only else 1
    left = width - mark - time - 3 * GAP
    actor = min(max((_actor(e, ascii_only).cell_len for e in entries), default=0), ACTOR_COLUMNS, max(left // 3, 6))
    return _Columns(mark=mark, time=time, actor=actor, text=max(LEAST_TEXT_COLUMNS, left - actor))


def _blocks(
    report: Report, entries: Sequence[_Entry], shown: set[int], columns: _Columns, console: Console, ascii_only: bool
) -> Iterator[Text]:
    """The lines laid out, some hundreds at a time: rich's tables take half a millisecond for each."""
    block: list[Text] = []
    left_out = 0
    for index, entry in enumerate(entries):
        if index not in shown:
            left_out += 1
            continue
        if left_out:
            block.append(_gap(left_out, columns, ascii_only))
            left_out = 0
        block += _lines(report, entry, columns, console, ascii_only)
        if len(block) >= BLOCK_LINES:
            yield _block(block)
            block = []
    if left_out:
        block.append(_gap(left_out, columns, ascii_only))
    if block:
        yield _block(block)


def _block(lines: Sequence[Text]) -> Text:
    text = Text("\n").join(lines)
    # They are folded already.
    text.no_wrap = True
    text.overflow = "ignore"
    return text


def _gap(count: int, columns: _Columns, ascii_only: bool) -> Text:
    sign = ":" if ascii_only else "⋮"
    before = " " * (columns.mark + GAP) + sign.rjust(columns.time) + " " * (GAP + columns.actor + GAP)
    return Text(f"{before}{words.number(count)} more", "dim")


def _actor(entry: _Entry, ascii_only: bool) -> Text:
    style = LANE_STYLES[entry.lane] if entry.lane is not None else "blue"
    actor = Text()
    if entry.lane is not None and LANE_NAMES[entry.lane]:
        actor.append(LANE_NAMES[entry.lane], style)
    if entry.actor and entry.actor != "--":
        shown = entry.actor if ascii_only else {"->": "→", "<-": "←"}.get(entry.actor, entry.actor)
        actor.append((" " if actor else "") + safe(shown), style)
    return Text(words.to_ascii(actor.plain), style) if ascii_only else actor


def _lines(report: Report, entry: _Entry, columns: _Columns, console: Console, ascii_only: bool) -> list[Text]:
    """One entry, folded into its columns."""
    primary, other = ("=>", " >") if ascii_only else ("▶", "›")
    mark = primary if entry.mark == 0 else other if entry.mark > 0 else ""
    line = Text(safe(short(entry.text)), "red" if entry.failed else "bold" if entry.mark == 0 else "")
    parts = [line]
    if entry.meaning:
        meaning = Text(f"— {safe(entry.meaning)}", "dim")
        if line.cell_len + 1 + meaning.cell_len <= columns.text:
            line.append(" ").append_text(meaning)
        else:
            parts.append(meaning)
    if ascii_only:
        parts = [Text(words.to_ascii(part.plain)) for part in parts]
    texts = [folded for part in parts for folded in _folded(part, columns.text, console)]
    actors = _folded(_actor(entry, ascii_only), columns.actor, console)
    out = []
    for index in range(max(len(texts), len(actors))):
        first = index == 0
        made = Text(mark.ljust(columns.mark) if first else " " * columns.mark, "")
        made.stylize("bold red" if entry.mark == 0 else "red")
        time = words.since_start(entry.time_ns, report.info) if first else ""
        made.append(" " * GAP + time.rjust(columns.time) + " " * GAP, "dim")
        actor = actors[index] if index < len(actors) else Text()
        made.append_text(actor)
        if index < len(texts):
            made.append(" " * (columns.actor - actor.cell_len + GAP)).append_text(texts[index])
        out.append(made)
    return out


def _folded(text: Text, width: int, console: Console) -> list[Text]:
    if text.cell_len <= width:
        return [text]
    return list(text.wrap(console, width, overflow="fold"))
