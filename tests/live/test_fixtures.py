"""Every fixture on the real kernel: the faulty program is found, its sound twin gets nothing above info."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sockscope import fixture
from sockscope.model.findings import Severity
from sockscope.model.report import Report
from sockscope.pipeline.analyze import load_session, make_report

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CASES = [(slug, mode) for slug in fixture.slugs() for mode in fixture.load(slug).modes]


def play(slug: str, program: str, mode: str, folder: Path) -> Report:
    fixture.rehearse(fixture.load(slug), folder, program=program, mode=mode)
    return make_report(load_session(folder))


@pytest.mark.parametrize(("slug", "mode"), CASES)
def test_faulty_is_found(slug: str, mode: str, tmp_path: Path) -> None:
    wanted = fixture.load(slug).expect
    report = play(slug, "faulty", mode, tmp_path / "rec")
    said = {finding.rule: finding for finding in report.findings}
    assert slug in said, (list(said), report.skipped, report.info.notes)
    finding = said[slug]
    assert finding.severity.label == wanted.severity
    if wanted.count is not None:
        assert finding.count == wanted.count
    if wanted.holder:
        assert finding.holder is not None
    assert finding.evidence
    assert finding.explanation
    assert finding.remedy
    others = {rule for rule, other in said.items() if other.severity > Severity.INFO} - {slug} - wanted.also
    assert not others, [(f.rule, f.title) for f in report.findings]


@pytest.mark.parametrize(("slug", "mode"), CASES)
def test_sound_twin_is_silent(slug: str, mode: str, tmp_path: Path) -> None:
    report = play(slug, "sound", mode, tmp_path / "rec")
    loud = [(f.rule, f.title, f.explanation) for f in report.findings if f.severity > Severity.INFO]
    assert not loud
    assert all(skip.rule != slug for skip in report.skipped), report.skipped
