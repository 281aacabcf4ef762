"""SARIF: the parts that consumers rely on (section numbers are those of SARIF 2.1.0)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sockscope.model.report import Report
from sockscope.reports.sarif import render_sarif
from tests.reports.example import empty_report, example_report


def run_of(report: Report) -> dict[str, Any]:
    log = json.loads(render_sarif(report))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert isinstance(run, dict)
    return run


def test_each_finding_is_a_result_of_a_declared_rule() -> None:
    report = example_report()
    run = run_of(report)
    rules = run["tool"]["driver"]["rules"]
    assert len(run["results"]) == len(report.findings)
    for finding, result in zip(report.findings, run["results"], strict=True):
        assert result["ruleId"] == finding.rule
        if "ruleIndex" in result:  # 3.27.6
            assert rules[result["ruleIndex"]]["id"] == finding.rule
        assert result["level"] == {3: "error", 2: "warning", 1: "note"}[finding.severity]
        assert finding.remedy.split("\x1b")[0] in result["message"]["text"]
        assert result["occurrenceCount"] >= 1  # 3.27.19


def test_evidence_is_a_code_flow_in_order_of_time() -> None:
    run = run_of(example_report())
    steps = run["results"][0]["codeFlows"][0]["threadFlows"][0]["locations"]
    times = [datetime.fromisoformat(step["executionTimeUtc"]) for step in steps]
    assert times == sorted(times)
    assert len(steps) == len(example_report().findings[0].evidence)


def test_what_could_not_be_judged_is_a_notification() -> None:
    report = example_report()
    (invocation,) = run_of(report)["invocations"]
    told = {one["associatedRule"]["id"] for one in invocation["toolConfigurationNotifications"]}
    assert told == {skip.rule for skip in report.skipped}


def test_the_same_fault_of_the_same_program_has_the_same_fingerprint_in_another_run() -> None:
    report = example_report()
    again = replace(report, findings=tuple(replace(one, count=one.count + 7) for one in report.findings))
    prints = [[result["partialFingerprints"] for result in run_of(one)["results"]] for one in (report, again)]
    assert prints[0] == prints[1]


def test_a_sound_server_has_an_empty_list_of_results() -> None:
    # 3.14.23: absent would mean that nothing was looked for.
    assert run_of(empty_report())["results"] == []


@given(st.text(max_size=40))
def test_odd_text_is_still_json_in_ascii(said: str) -> None:
    report = example_report()
    finding = replace(report.findings[0], title=said, comm=said, explanation=said)
    text = render_sarif(replace(report, findings=(finding,)))
    assert text.isascii()
    json.loads(text)
