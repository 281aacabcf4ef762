"""Whatever part of a session the flight recorder holds, a sound server gets nothing above info, and of a faulty one
nothing else is said than by the whole session."""

from __future__ import annotations

import os

import pytest

from sockscope import fixture
from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.findings import Severity
from sockscope.pipeline.load import load_session
from tests.live.engines import need
from tests.live.rehearsals import Case, Rehearsals
from tests.live.windows import window_of

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SHARES = (0.7, 0.4, 0.15)
LASTING = ("close-wait-leak", "fin-withheld", "inherited-connection-fd", "passed-fd-leak", "unaccepted-connection")


def loud(session: Session) -> set[str]:
    findings, _, _ = run_rules(session, select=None, ignore=None)
    return {f.rule for f in findings if f.severity > Severity.INFO}


def play_of(slug: str, program: str) -> Case:
    """One that test_fixtures looks at too."""
    wanted = fixture.load(slug)
    return Case(slug=slug, mode=wanted.modes[0], program=program, engine=wanted.engines[-1])


@pytest.mark.parametrize("case", [play_of(slug, "sound") for slug in fixture.slugs()], ids=str)
def test_no_part_of_a_sound_session_alarms(case: Case, rehearsals: Rehearsals) -> None:
    need(case.engine)
    folder = rehearsals.recording(case)
    assert {share: loud(window_of(folder, share)) for share in SHARES} == {share: set() for share in SHARES}


@pytest.mark.parametrize("case", [play_of(slug, "faulty") for slug in LASTING], ids=str)
def test_a_part_says_no_more_than_the_whole(case: Case, rehearsals: Rehearsals) -> None:
    need(case.engine)
    folder = rehearsals.recording(case)
    whole = loud(load_session(folder))
    assert case.slug in whole
    assert case.slug in loud(window_of(folder, 1.0))
    for share in SHARES:
        assert loud(window_of(folder, share)) <= whole
