"""Where bpf cannot be used: `--engine bpf` says why and what mends it, `auto` goes on by ptrace with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sockscope.cli import execute
from sockscope.pipeline.options import RecordOptions
from sockscope.pipeline.targets import choose_engine
from sockscope.sources.bpf.libbpf import BpfRefusedError
from sockscope.sources.syscalls.bpf.engine import BpfEngine
from tests.cli.test_bad_input import sleeping, sockscope
from tests.live.engines import bpf_problem

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NOTE = "sockscope: engine ptrace: bpf cannot be used here: "


def notes(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith(NOTE)]


def check(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """`--engine bpf` ended with exit 3, the reason and the mend."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 3, (done.returncode, done.stderr)
    for word in ("bpf cannot be used here", *words):
        assert word in done.stderr, done.stderr


def check_fallback(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """`auto` went on by ptrace, and said why in one line, in the report, too."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, (done.returncode, done.stderr)
    (note,) = notes(done)
    for word in words:
        assert word in note
    said = " ".join(done.stdout.split())
    assert "by ptrace" in said
    assert "bpf cannot be used here" in said


def without(*prefix: str, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "sockscope", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_no_privilege() -> None:
    """An ordinary user: nobody else's processes, and no bpf."""
    # Allowed to read what it runs, wherever this interpreter lives.
    reads = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    plain = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs", *reads)
    with sleeping(*plain) as pid:
        target = ("attach", str(pid), "--duration", "0.3", "--no-packets")
        check(without(*plain, arguments=(*target, "--engine", "bpf")), "CAP_BPF", "sudo")
        check_fallback(without(*plain, arguments=target), "CAP_BPF", "sudo")
        by_choice = without(*plain, arguments=(*target, "--engine", "ptrace"))
        assert by_choice.returncode == 0
        assert not notes(by_choice)


def test_capabilities_taken_away() -> None:
    """Root in a container."""
    caps = "-bpf,-sys_admin,-perfmon"
    contained = ("setpriv", "--bounding-set", caps, "--inh-caps", caps)
    check(without(*contained, arguments=("run", "--engine", "bpf", "--", "true")), "--cap-add BPF")
    check_fallback(without(*contained, arguments=("run", "--", "true")), "--cap-add BPF")


def test_no_library(tmp_path: Path) -> None:
    (tmp_path / "libbpf.so.1").write_bytes(b"")
    check(sockscope("run", "--engine", "bpf", "--", "true", LD_LIBRARY_PATH=str(tmp_path)), "apt-get install libbpf1")
    check_fallback(sockscope("run", "--", "true", LD_LIBRARY_PATH=str(tmp_path)), "apt-get install libbpf1")


def test_no_types(tmp_path: Path) -> None:
    """A kernel without BTF, as a mount namespace shows it."""
    hidden = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh")
    check(without(*hidden, arguments=("run", "--engine", "bpf", "--", "true")), "CONFIG_DEBUG_INFO_BTF")
    check_fallback(without(*hidden, arguments=("run", "--", "true")), "CONFIG_DEBUG_INFO_BTF")


def test_auto_takes_bpf_where_it_can() -> None:
    if bpf_problem() is not None:
        pytest.skip(f"bpf: {bpf_problem()}")
    done = sockscope("run", "--", "true")
    assert done.returncode == 0, done.stderr
    assert "by bpf" in " ".join(done.stdout.split())
    assert not notes(done)


def test_a_process_under_strace_can_be_watched_by_bpf() -> None:
    if bpf_problem() is not None:
        pytest.skip(f"bpf: {bpf_problem()}")
    with sleeping("strace", "-qq", "-o", "/dev/null") as tracer:
        child = Path(f"/proc/{tracer}/task/{tracer}/children").read_text().split()[0]
        done = sockscope("attach", child, "--duration", "0.3")
    assert done.returncode == 0, done.stderr


def test_the_verifiers_words_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for, it says what the kernel said; `auto` keeps to its one line."""

    def refuse(engine: BpfEngine) -> None:
        raise BpfRefusedError(
            "the verifier refuses", help_text="another kernel", detail="R1 invalid\nprocessed 7 insns"
        )

    monkeypatch.setattr(BpfEngine, "prepare", refuse)
    with sleeping() as pid:
        assert execute(["attach", str(pid), "--duration", "0.1", "--engine", "bpf"]) == 3
        told = capsys.readouterr().err
        assert told.splitlines()[-2:] == ["    R1 invalid", "    processed 7 insns"]
        note = choose_engine(RecordOptions(pids=(pid,)), (pid,)).note
    assert "the verifier refuses" in note
    assert "R1" not in note
