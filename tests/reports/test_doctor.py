from __future__ import annotations

import json

from sockscope.model.capability import Capability, Status
from sockscope.reports import doctor as report

FOUND = (
    Capability(name="ptrace", status=Status.MISSING, detail="refused", meaning="no", mend="sudo x", needed=True),
    Capability(name="kcmp", status=Status.LIMITED, detail="refused", meaning="guessed"),
)


def test_plain_text_names_the_mend_and_the_verdict() -> None:
    text = report.plain(FOUND)
    assert "→ sudo x" in text
    assert text.endswith("sockscope cannot do its main job here: ptrace\n")
    assert report.verdict(FOUND[1:]) == "sockscope works here, with limits: kcmp"
    assert report.verdict(()) == "sockscope works here"


def test_json() -> None:
    data = json.loads(report.to_json(FOUND))
    assert (data["schema"], data["main_job_possible"]) == ("sockscope-doctor/1", False)
    assert data["checks"][1]["mend"] is None


def test_table() -> None:
    assert report.table(FOUND).row_count == 2
