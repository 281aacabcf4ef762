"""Rule by rule what the plays proved, as the docs show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sockscope import fixture
from sockscope.model.findings import Severity
from tests.live.rehearsals import Case, Verdict

TABLE = Path(__file__).parents[2] / "docs" / "coverage.md"
MODES = ("run", "attach")

HEAD = """# What is proved of each rule

A faulty program for every rule and its closest sound twin, played on a real kernel, watched from the start
(`sockscope run`) and attached to late, under both engines. Written by the tests that play them.

- **from the start**, **on late attach**: the engines under which the fault is found.
- **from the recording**: what was said then is said again of the recorded session.
- **twin silent**: the twin gets nothing above info, and nothing of this rule.

| rule | from the start | on late attach | from the recording | twin silent |
|---|---|---|---|---|
"""


def coverage_table(verdicts: Mapping[Case, Verdict]) -> str:
    """The whole page."""
    return HEAD + "".join(f"| {' | '.join(_row(slug, verdicts))} |\n" for slug in fixture.slugs())


def _row(slug: str, verdicts: Mapping[Case, Verdict]) -> list[str]:
    plays = {case: verdict for case, verdict in verdicts.items() if case.slug == slug}
    found = {mode: _engines(plays, mode) for mode in MODES}
    again = all(_found(case, verdict) == (slug in verdict.told) for case, verdict in plays.items() if case.is_demo)
    silent = all(_silent(verdict, slug) for case, verdict in plays.items() if case.program == "sound")
    return [f"[{slug}](rules/{slug}.md)", *(found[mode] for mode in MODES), _yes(again), _yes(silent)]


def _engines(plays: Mapping[Case, Verdict], mode: str) -> str:
    tried = {case: _found(case, verdict) for case, verdict in plays.items() if _is(case, mode)}
    if not tried:
        return "not to be seen then"
    return ", ".join(sorted(case.engine.value for case, found in tried.items() if found)) or "no"


def _is(case: Case, mode: str) -> bool:
    return case.program == "faulty" and case.mode == mode


def _found(case: Case, verdict: Verdict) -> bool:
    return any(finding.rule == case.slug for finding in verdict.findings)


def _silent(verdict: Verdict, slug: str) -> bool:
    return all(each.rule != slug and each.severity <= Severity.INFO for each in verdict.findings)


def _yes(true: bool) -> str:
    return "yes" if true else "no"
