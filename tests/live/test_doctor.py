"""The checks on this machine, as whoever runs the tests."""

from __future__ import annotations

import json
import os

import pytest

from sockscope.cli.doctor import doctor
from sockscope.model.capability import Status, main_job_possible
from sockscope.sources.capabilities import probe_all
from tests.live.engines import bpf_problem

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


def test_every_prerequisite_of_bpf_has_its_line() -> None:
    by_name = {c.name: c for c in probe_all() if c.name.startswith("bpf: ")}
    assert list(by_name) == [
        f"bpf: {each}" for each in ("BTF", "libbpf", "privileges", "programs", "TCP events", "io_uring")
    ]
    parts = [c for c in by_name.values() if c.name in ("bpf: BTF", "bpf: libbpf", "bpf: privileges")]
    assert not any(c.needed for c in by_name.values())
    assert all(c.mend for c in parts if c.status is not Status.OK)
    if all(c.status is Status.OK for c in parts):
        assert by_name["bpf: programs"].detail == "verified and loaded"
    assert (by_name["bpf: programs"].status is Status.OK) == (bpf_problem() is None)


def test_no_child_is_left_behind() -> None:
    probe_all()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(json_path="-")
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "sockscope-doctor/1"
    assert data["main_job_possible"] is True
