"""Whatever part of a session the flight recorder holds, a sound server gets nothing above info, and of a faulty one
nothing else is said than by the whole session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sockscope import fixture
from sockscope.analysis.session import Session
from sockscope.findings.run import run_rules
from sockscope.model.findings import Severity
from sockscope.pipeline.analyze import load_session
from tests.live.windows import window_of

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SHARES = (0.7, 0.4, 0.15)
LASTING = ("close-wait-leak", "fin-withheld", "inherited-connection-fd", "passed-fd-leak", "unaccepted-connection")


def loud(session: Session) -> set[str]:
    findings, _, _ = run_rules(session, select=None, ignore=None)
    return {f.rule for f in findings if f.severity > Severity.INFO}


@pytest.mark.parametrize("slug", fixture.slugs())
def test_no_part_of_a_sound_session_alarms(slug: str, tmp_path: Path) -> None:
    wanted = fixture.load(slug)
    fixture.rehearse(wanted, tmp_path / "rec", program="sound", mode=wanted.modes[0])
    assert {share: loud(window_of(tmp_path / "rec", share)) for share in SHARES} == {share: set() for share in SHARES}


@pytest.mark.parametrize("slug", LASTING)
def test_a_part_says_no_more_than_the_whole(slug: str, tmp_path: Path) -> None:
    wanted = fixture.load(slug)
    fixture.rehearse(wanted, tmp_path / "rec", program="faulty", mode=wanted.modes[0])
    whole = loud(load_session(tmp_path / "rec"))
    assert slug in whole
    assert slug in loud(window_of(tmp_path / "rec", 1.0))
    for share in SHARES:
        assert loud(window_of(tmp_path / "rec", share)) <= whole
