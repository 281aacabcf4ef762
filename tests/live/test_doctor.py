"""The checks on this machine, as whoever runs the tests."""

from __future__ import annotations

import json
import os

import pytest

from sockscope.cli.doctor import doctor
from sockscope.model.capability import Status, main_job_possible
from sockscope.sources.capabilities import probe_all

pytestmark = pytest.mark.live


def test_root_can_do_the_main_job() -> None:
    found = probe_all()
    assert main_job_possible(found)
    by_name = {c.name: c for c in found}
    assert by_name["sock_diag"].status is Status.OK
    assert len(by_name) == len(found)
    for c in found:
        assert c.detail
        assert c.meaning


def test_no_child_is_left_behind() -> None:
    probe_all()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(json_path="-")
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "sockscope-doctor/1"
    assert data["main_job_possible"] is True
