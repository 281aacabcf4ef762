"""Every fixture on the real kernel, under each engine: the faulty program is found, its sound twin gets nothing above
info, and what the engines lead to is the same."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from sockscope import fixture
from sockscope.model.findings import Finding, Severity
from sockscope.pipeline.options import EngineChoice
from tests.live.coverage_table import TABLE, coverage_table
from tests.live.engines import BOTH, bpf_problem, machine_has_all, need
from tests.live.rehearsals import Case, Rehearsals
from tools import excerpts

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LIKE = 0.7
"""How much of what a demo says must be on its page, word for word."""


def cases(program: str, *engines: EngineChoice) -> list[Case]:
    return [
        Case(slug=slug, mode=mode, program=program, engine=engine)
        for engine in engines
        for slug in fixture.slugs()
        for mode in fixture.load(slug).modes
        if engine in fixture.load(slug).engines
    ]


def test_bpf_is_there_where_it_can_be() -> None:
    """A machine that has all it needs must not skip half of what follows."""
    if not machine_has_all():
        pytest.skip("no root, no /sys/kernel/btf/vmlinux, or no libbpf.so.1")
    assert bpf_problem() is None


@pytest.mark.parametrize("case", cases("faulty", *BOTH), ids=str)
def test_faulty_is_found(case: Case, rehearsals: Rehearsals) -> None:
    need(case.engine)
    wanted = fixture.load(case.slug).expect
    verdict = rehearsals.outcome(case)
    assert verdict.info.syscalls.engine == case.engine.value
    assert not verdict.info.syscalls.lost_count, verdict.info.syscalls.lost
    said = {finding.rule: finding for finding in verdict.findings}
    assert case.slug in said, (list(said), verdict.skipped, verdict.info.notes)
    finding = said[case.slug]
    assert finding.severity.label == wanted.severity
    if wanted.count is not None:
        assert finding.count == wanted.count
    if wanted.process is not None:
        first = verdict.info.target.pids[0]
        assert (finding.tgid == first) == (wanted.process == "first"), (finding.tgid, first)
    if wanted.fd is not None:
        assert finding.fd == wanted.fd
    if wanted.holder:
        assert finding.holder is not None
    assert finding.evidence
    assert finding.explanation
    assert finding.remedy
    others = {rule for rule, other in said.items() if other.severity > Severity.INFO} - {case.slug} - wanted.also
    assert not others, [(f.rule, f.title) for f in verdict.findings]


@pytest.mark.parametrize("case", cases("sound", *BOTH), ids=str)
def test_sound_twin_is_silent(case: Case, rehearsals: Rehearsals) -> None:
    need(case.engine)
    verdict = rehearsals.outcome(case)
    loud = [(f.rule, f.title, f.explanation) for f in verdict.findings if f.severity > Severity.INFO]
    assert not loud
    assert all(finding.rule != case.slug for finding in verdict.findings), [f.explanation for f in verdict.findings]
    assert all(skip.rule != case.slug for skip in verdict.skipped), verdict.skipped


def essence(finding: Finding) -> tuple[object, ...]:
    """A finding without what differs from one play to the next; the fd of many is that of any of them."""
    fd = finding.fd if finding.count == 1 else None
    return (finding.rule, finding.severity.label, finding.confidence.value, finding.comm, fd)


def seen_by_both(program: str) -> list[tuple[Case, Case]]:
    """The same play under ptrace and under bpf."""
    both = [case for case in cases(program, EngineChoice.PTRACE) if set(BOTH) <= set(fixture.load(case.slug).engines)]
    return [(case, replace(case, engine=EngineChoice.BPF)) for case in both]


@pytest.mark.parametrize(
    "pair", [*seen_by_both("faulty"), *seen_by_both("sound")], ids=lambda pair: f"{pair[0]}-{pair[1].engine.value}"
)
def test_engines_agree(pair: tuple[Case, Case], rehearsals: Rehearsals) -> None:
    """On every finding of weight, and on the rule's own. What is merely of interest may tell of the machine's pace."""
    need(EngineChoice.BPF)
    ptrace, bpf = (
        sorted(
            essence(f) for f in rehearsals.outcome(each).findings if f.severity > Severity.INFO or f.rule == each.slug
        )
        for each in pair
    )
    assert bpf == ptrace


@pytest.mark.parametrize("case", [case for case in cases("faulty", *BOTH) if case.is_demo], ids=str)
def test_the_demo_says_what_its_page_shows(case: Case, rehearsals: Rehearsals) -> None:
    """The command of the rule's page; what it says there has other numbers, and may lack a clause."""
    need(case.engine)
    verdict = rehearsals.outcome(case)
    assert verdict.told == {finding.rule for finding in verdict.findings}
    now = excerpts.excerpt(verdict.printed, case.slug)
    shown = (fixture.fixtures_folder() / case.slug / "excerpt.txt").read_text(encoding="utf-8")
    assert excerpts.likeness(now, shown) > LIKE, now


ALL = (*cases("faulty", *BOTH), *cases("sound", *BOTH))


@pytest.mark.parametrize("plays", [ALL], ids=["all"])
def test_the_table_of_the_docs_is_true(plays: tuple[Case, ...], rehearsals: Rehearsals) -> None:
    """Rule by rule: found from the start, on late attach, from the recording; the twin silent."""
    need(EngineChoice.BPF)
    table = coverage_table({case: rehearsals.outcome(case) for case in plays})
    if os.environ.get("SOCKSCOPE_WRITE_DOCS"):
        TABLE.write_text(table, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == table, "SOCKSCOPE_WRITE_DOCS=1 writes it anew"
