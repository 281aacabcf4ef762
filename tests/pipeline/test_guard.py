"""A bug in what sums a session up does not cost the user the findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from sockscope.analysis.narration import timeline
from sockscope.analysis.session import Ids
from sockscope.model.calls import Call
from sockscope.model.connections import Connection
from sockscope.model.kernel import KernelStory
from sockscope.model.report import TimelineTable
from sockscope.pipeline import analyze, guard
from sockscope.pipeline.analyze import make_report
from tests.analysis.builders import Script
from tests.findings.conftest import S, accept, answer, ask, server

PARTS = ("idle_words", "architecture", "server_latencies", "stops", "coverage", "summarise_all", "UnixEnds")


def faulty() -> Script:
    script = server()
    accept(script, 0, 7)
    ask(script, 0, 7)
    answer(script, 7)
    script.event(100, 100, Call.accept4, fd=3, ret=-24, at=S)
    return script.ends(4 * S)


def broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_fails_is_empty_and_noted(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = faulty().session()
    whole = make_report(session)
    monkeypatch.setattr(analyze, part, broken)
    report = make_report(session)
    assert report.findings == whole.findings
    assert [finding.rule for finding in report.findings] == ["descriptor-exhaustion"]
    assert len(report.connections) == len(whole.connections) == 1
    (note,) = set(report.info.notes) - set(whole.info.notes)
    assert note.startswith("internal error in ")
    assert note.endswith(": ZeroDivisionError: a bug")


@pytest.mark.parametrize("part", ["Timelines", "Life", "Stories"])
def test_what_is_told_when_asked_says_so_in_its_place(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, part, broken)
    report = make_report(faulty().session())
    items, story, kernel = report.timelines(0), report.stories(0), report.kernel_stories(0)
    failed = {"Timelines": items[0].text, "Life": story, "Stories": "internal error" * (kernel == KernelStory())}
    assert failed[part].startswith("internal error")
    assert (len(items) == 1) == (part == "Timelines")


def test_of_many_timelines_one_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    script = faulty()
    for peer in range(1, 6):
        accept(script, peer, 7 + peer)
    session = script.session()
    report = make_report(session)
    every = [row.connection.id for row in report.connections]
    limits = [80] * len(every)
    whole = [table.items() for table in report.timeline_tables(every, limits)]
    assert whole == [report.timelines(number, limit=80) for number in every]
    tables = timeline.Timelines._tables

    def failing(self: timeline.Timelines, connections: Sequence[Connection], limits: Ids) -> Iterator[TimelineTable]:
        if any(one.id == every[3] for one in connections):
            raise ZeroDivisionError("a bug")
        return tables(self, connections, limits)

    monkeypatch.setattr(timeline.Timelines, "_tables", failing)
    monkeypatch.setattr(timeline, "_TOGETHER", 2)
    told = [table.items() for table in report.timeline_tables(every, limits)]
    assert told[:3] + told[4:] == whole[:3] + whole[4:]
    assert [item.text for item in told[3]] == ["internal error in the timeline: ZeroDivisionError: a bug"]


def test_a_sound_report_has_no_such_note() -> None:
    assert not [note for note in make_report(faulty().session()).info.notes if "internal error" in note]
