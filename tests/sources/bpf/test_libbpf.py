"""What is in the way of BPF programs, and how a refusal reads."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from sockscope.errors import CannotObserveError, ExitCode
from sockscope.sources.bpf import libbpf
from sockscope.sources.bpf.libbpf import BpfRefusedError, libbpf_problem, library, problems, refused
from sockscope.sources.bpf.objects import BpfObject

needs_libbpf = pytest.mark.skipif(libbpf_problem() is not None, reason="libbpf.so.1 is not installed")

VERIFIER = [
    "libbpf: prog 'enter': BPF program load failed: Permission denied",
    "libbpf: prog 'enter': -- BEGIN PROG LOAD LOG --",
    "R1 invalid mem access 'scalar'",
]


@pytest.mark.parametrize(
    ("code", "lines", "message", "mend"),
    [
        (errno.EPERM, [], "cannot load x.o: bpf(2) is not permitted here (EPERM)", "--cap-add BPF"),
        (errno.EACCES, VERIFIER, "cannot load x.o (program enter): this kernel's verifier refuses", "--engine ptrace"),
        (errno.ESRCH, [], "cannot load x.o: this kernel lacks what the program needs (ESRCH)", "doctor"),
        (errno.ENOMEM, [], "cannot load x.o: no memory for the maps (ENOMEM)", "smaller"),
        (errno.EIO, [], "cannot load x.o: Input/output error (EIO)", "doctor"),
        (9999, [], "cannot load x.o: Unknown error 9999 (9999)", "doctor"),
    ],
)
def test_a_refusal_is_one_line_with_a_mend(code: int, lines: list[str], message: str, mend: str) -> None:
    error = refused("load x.o", code, lines)
    assert error.message.startswith(message)
    assert "\n" not in error.message
    assert error.help_text is not None
    assert mend in error.help_text
    assert error.detail == "\n".join(lines)
    assert isinstance(error, CannotObserveError)
    assert error.exit_code == ExitCode.CANNOT_OBSERVE


def test_only_the_end_of_a_long_log_is_kept() -> None:
    log = refused("load x.o", errno.EACCES, [str(n) for n in range(1000)]).detail.splitlines()
    assert log == [str(n) for n in range(1000 - libbpf.LOG_LINES, 1000)]


def test_no_libbpf_is_said_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "LIBRARY", "libbpf.so.nowhere")
    library.cache_clear()
    try:
        problem = libbpf_problem()
        assert problem is not None
        assert "libbpf.so.nowhere cannot be loaded" in problem[0]
        assert "apt-get install libbpf1" in problem[1]
        assert problems()[0] == problem
    finally:
        library.cache_clear()


def test_no_types_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "VMLINUX_BTF", "/nowhere/vmlinux")
    problem = libbpf.btf_problem()
    assert problem is not None
    assert "CONFIG_DEBUG_INFO_BTF" in problem[1]


def test_missing_capabilities_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: libbpf._FIRST_USER_NAMESPACE)
    monkeypatch.setattr(libbpf, "read_text", lambda path: None)
    for held, fine in ((0, False), (1 << 21, True), (1 << 39, False), (1 << 38 | 1 << 39, True), (1 << 38, False)):
        monkeypatch.setattr(libbpf, "effective_capabilities", lambda held=held: held)
        assert (libbpf.privilege_problem() is None) == fine
    monkeypatch.setattr(os, "readlink", lambda path: "user:[4026532000]")
    problem = libbpf.privilege_problem()
    assert problem is not None
    assert "user namespace" in problem[0]


def test_a_locked_down_kernel_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: libbpf._FIRST_USER_NAMESPACE)
    monkeypatch.setattr(libbpf, "effective_capabilities", lambda: 1 << 21)
    monkeypatch.setattr(libbpf, "read_text", lambda path: "none integrity [confidentiality]")
    assert libbpf.privilege_problem() is not None
    monkeypatch.setattr(libbpf, "read_text", lambda path: "none [integrity] confidentiality")
    assert libbpf.privilege_problem() is None


@needs_libbpf
def test_no_such_object(tmp_path: Path) -> None:
    with pytest.raises(BpfRefusedError, match=r"cannot open gone\.o: .*\(ENOENT\)"):
        BpfObject(tmp_path / "gone.o")


@needs_libbpf
def test_no_object_at_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = tmp_path / "noise.o"
    noise.write_bytes(b"\x7fELF" + bytes(range(256)) * 4)
    with pytest.raises(BpfRefusedError, match=r"cannot open noise\.o") as caught:
        BpfObject(noise)
    assert "libbpf: " in caught.value.detail
    # libbpf prints to stderr where nobody listens to it.
    assert capfd.readouterr() == ("", "")


@needs_libbpf
def test_each_thread_hears_its_own(tmp_path: Path) -> None:
    logs: dict[int, str] = {}

    def fail(number: int) -> None:
        noise = tmp_path / f"noise{number}.o"
        noise.write_bytes(b"no object")
        for _ in range(20):
            with pytest.raises(BpfRefusedError) as caught:
                BpfObject(noise)
            logs[number] = caught.value.detail
            assert f"noise{number}" in caught.value.detail
            assert not any(f"noise{other}" in caught.value.detail for other in range(4) if other != number)

    threads = [threading.Thread(target=fail, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(logs) == [0, 1, 2, 3]
    assert all(logs.values())
