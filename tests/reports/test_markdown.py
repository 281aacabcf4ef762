"""Markdown for a ticket: what the target said is text, nobody is mentioned, no block is left."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.findings import Evidence, Source
from sockscope.reports.markdown import render_markdown
from tests.reports.example import empty_report, example_report


def test_the_verdict_comes_first_and_each_finding_has_its_evidence_and_its_mend() -> None:
    report = example_report()
    text = render_markdown(report)
    assert text.startswith("## sockscope: 3 findings: 1 error, 2 warnings\n")
    for finding in report.findings:
        assert f"`{finding.rule}`" in text
    assert text.count("**Mend:**") == len(report.findings)
    assert text.count("```text") == sum(bool(finding.evidence) for finding in report.findings)
    assert not re.search(r"(?<!\\)<script", text)
    assert "\x1b" not in text


def test_without_findings_it_says_so() -> None:
    assert render_markdown(empty_report()).startswith("## sockscope: No findings")


@given(st.text(max_size=60))
def test_nothing_that_the_target_says_is_markup(said: str) -> None:
    report = example_report()
    finding = replace(
        report.findings[0],
        title=said,
        explanation=said,
        evidence=(Evidence(source=Source.SYSCALL, time_ns=report.info.started_ns, text=said),),
    )
    lines = render_markdown(replace(report, findings=(finding,))).split("\n")
    fences = [at for at, line in enumerate(lines) if re.match(r"`{3,}", line)]
    assert len(fences) == 2
    assert fences[1] == fences[0] + 2, "the evidence is one line between its fences"
    heading = next(line for line in lines if line.startswith("### "))
    shown = heading.partition(": ")[2]
    assert not re.search(r"(?<!\\)(\\\\)*[<>\[\]*_`|]", shown)
    assert not re.search(r"@\w|://", shown)
