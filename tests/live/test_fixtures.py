"""Every fixture on the real kernel, under each engine: the faulty program is found, its sound twin gets nothing above
info, and what the engines lead to is the same."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sockscope import fixture
from sockscope.model.findings import Finding, Severity
from sockscope.pipeline.options import EngineChoice
from tests.live.engines import BOTH, bpf_problem, machine_has_all, need
from tests.live.rehearsals import Case, Rehearsals

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def cases(program: str, *engines: EngineChoice) -> list[Case]:
    return [
        Case(slug=slug, mode=mode, program=program, engine=engine)
        for engine in engines
        for slug in fixture.slugs()
        for mode in fixture.load(slug).modes
        if engine in fixture.load(slug).engines
    ]


def under_each_engine(case: Case) -> list[Case]:
    return [Case(slug=case.slug, mode=case.mode, program=case.program, engine=engine) for engine in BOTH]


@pytest.fixture(scope="module")
def rehearsals(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsals]:
    """The plays that the chosen tests of this module look at, in their order."""
    wanted: list[Case] = []
    for item in request.session.items:
        if item.path == request.path and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            case = item.callspec.params["case"]
            assert isinstance(case, Case)
            wanted += under_each_engine(case) if item.function is test_engines_agree else [case]
    if bpf_problem() is not None:
        wanted = [case for case in wanted if case.engine is not EngineChoice.BPF]
    with Rehearsals(wanted, tmp_path_factory.mktemp("rehearsals")) as plays:
        yield plays


def test_bpf_is_there_where_it_can_be() -> None:
    """A machine that has all it needs must not skip half of what follows."""
    if not machine_has_all():
        pytest.skip("no root, no /sys/kernel/btf/vmlinux, or no libbpf.so.1")
    assert bpf_problem() is None


@pytest.mark.parametrize("case", cases("faulty", *BOTH), ids=str)
def test_faulty_is_found(case: Case, rehearsals: Rehearsals) -> None:
    need(case.engine)
    wanted = fixture.load(case.slug).expect
    verdict = rehearsals.verdict(case)
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
    verdict = rehearsals.verdict(case)
    loud = [(f.rule, f.title, f.explanation) for f in verdict.findings if f.severity > Severity.INFO]
    assert not loud
    assert all(finding.rule != case.slug for finding in verdict.findings), [f.explanation for f in verdict.findings]
    assert all(skip.rule != case.slug for skip in verdict.skipped), verdict.skipped


def essence(finding: Finding) -> tuple[object, ...]:
    """A finding without what differs from one play to the next; the fd of many is that of any of them."""
    fd = finding.fd if finding.count == 1 else None
    return (finding.rule, finding.severity.label, finding.confidence.value, finding.comm, fd)


def seen_by_both(program: str) -> list[Case]:
    return [case for case in cases(program, BOTH[0]) if set(BOTH) <= set(fixture.load(case.slug).engines)]


@pytest.mark.parametrize("case", [*seen_by_both("faulty"), *seen_by_both("sound")], ids=str)
def test_engines_agree(case: Case, rehearsals: Rehearsals) -> None:
    """On every finding, those of no weight too."""
    need(EngineChoice.BPF)
    ptrace, bpf = (sorted(essence(f) for f in rehearsals.verdict(each).findings) for each in under_each_engine(case))
    assert bpf == ptrace
