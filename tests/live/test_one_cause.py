"""One cause, one finding: programs that have two faults get two, those where one brings on the other get one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sockscope.fixture import read, rehearse
from sockscope.model.findings import Finding, Severity
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import load_session

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PROGRAMS = Path(__file__).with_name("causes")
STUB = """import runpy, sys
sys.argv[1:1] = [{role!r}]
runpy.run_path({program!r}, run_name="__main__")
"""


def said_of(name: str, folder: Path, *, settle_s: float = 1.5) -> dict[str, Finding]:
    """What weighs more than an info, by rule; of a rule that speaks twice, the worst."""
    play = folder / name
    play.mkdir()
    for role, file in (("server", "faulty.py"), ("client", "client.py")):
        (play / file).write_text(STUB.format(role=role, program=str(PROGRAMS / f"{name}.py")))
    (play / "fixture.toml").write_text(f'summary = ""\nsettle_s = {settle_s}\n[expect]\nseverity = "error"\n')
    rehearse(read(play), folder / "rec", mode="attach")
    found = make_report(load_session(folder / "rec")).findings
    shutil.rmtree(folder / "rec")
    return {finding.rule: finding for finding in reversed(found) if finding.severity > Severity.INFO}


def consequences(finding: Finding) -> set[str]:
    return {each.rule for each in finding.consequences}


def test_two_faults_are_two_findings(tmp_path: Path) -> None:
    said = said_of("two_at_once", tmp_path)
    assert set(said) == {"close-wait-leak", "fin-withheld"}
    assert said["close-wait-leak"].count == 3
    assert said["fin-withheld"].count == 2
    assert not set(said["close-wait-leak"].connections) & set(said["fin-withheld"].connections)


def test_a_leak_that_ends_in_emfile_is_the_leak(tmp_path: Path) -> None:
    said = said_of("out_of_descriptors", tmp_path)
    assert set(said) == {"close-wait-leak"}
    assert "descriptor-exhaustion" in consequences(said["close-wait-leak"])


def test_a_blocked_loop_is_told_once(tmp_path: Path) -> None:
    said = said_of("blocked_loop", tmp_path)
    assert set(said) == {"blocking-call-in-event-loop"}


def test_death_by_sigpipe_is_told_once(tmp_path: Path) -> None:
    said = said_of("dead_by_sigpipe", tmp_path)
    assert set(said) == {"sigpipe-death"}
    assert said["sigpipe-death"].count == 3
