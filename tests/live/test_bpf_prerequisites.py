"""Why the bpf engine cannot be used is said in one line with its mend, and nothing is left of the trial."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sockscope.errors import CannotObserveError, ExitCode
from sockscope.model.calls import Call
from sockscope.sources.bpf.libbpf import BpfRefusedError
from sockscope.sources.bpf.objects import BpfObject
from sockscope.sources.syscalls.bpf import layout
from sockscope.sources.syscalls.bpf.engine import BpfEngine
from sockscope.sources.syscalls.bpf.prerequisites import unavailable
from sockscope.sources.syscalls.engine import EngineOptions
from tests.sources.syscalls.bpf_ids import held_by
from tests.sources.syscalls.ptrace_support import Program, Trace, make_engine, rows

pytestmark = pytest.mark.live


def assert_said_well(problem: tuple[str, str] | None) -> str:
    assert problem is not None
    reason, mend = problem
    assert reason
    assert mend
    assert "\n" not in reason + mend
    return reason


def test_where_it_can_be_used_nothing_is_left_of_the_trial() -> None:
    make_engine("bpf", EngineOptions()).close()
    before = len(os.listdir("/proc/self/fd"))
    assert unavailable() is None
    assert not any(held_by(os.getpid()).values())
    assert len(os.listdir("/proc/self/fd")) == before


def test_prepared_it_runs_and_what_could_be_refused_was_not() -> None:
    engine = make_engine("bpf", EngineOptions())
    assert isinstance(engine, BpfEngine)
    try:
        engine.prepare()
        engine.prepare()
        assert held_by(os.getpid())["prog_id"]
        assert held_by(os.getpid())["link_id"]
    finally:
        engine.close()
    assert not any(held_by(os.getpid()).values())


def test_a_verifier_that_refuses_what_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    make_engine("bpf", EngineOptions()).close()
    load = BpfObject.load
    refusals = iter([BpfRefusedError("too new", help_text="none")])

    def refuse_once(self: BpfObject) -> None:
        for refusal in refusals:
            raise refusal
        load(self)

    monkeypatch.setattr(BpfObject, "load", refuse_once)
    with Program.python("print('ready'); input(); print('done'); input()") as program:
        assert program.line() == "ready"
        with Trace(engine="bpf", attach=[program.pid]) as trace:
            program.say("x")
            assert program.line() == "done"
            assert rows(trace.finish(), Call.write)


def test_without_privileges() -> None:
    code = (
        "import os\n"
        "import sockscope.sources.syscalls.bpf.prerequisites as p\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(*p.unavailable(), sep='|')\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    ).stdout
    reason, mend = said.strip().split("|")
    assert "CAP_BPF" in reason
    assert "sudo" in mend


@pytest.mark.parametrize("content", [None, b"", b"no object", b"\x7fELF" + bytes(100)])
def test_an_object_that_is_missing_or_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    make_engine("bpf", EngineOptions()).close()
    path = tmp_path / "x.bpf.o"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(layout, "OBJECT", path)
    assert "x.bpf.o" in assert_said_well(unavailable())
    engine = BpfEngine(EngineOptions())
    with pytest.raises(CannotObserveError) as caught:
        engine.prepare()
    assert caught.value.exit_code is ExitCode.CANNOT_OBSERVE
    assert caught.value.help_text
    engine.close()
