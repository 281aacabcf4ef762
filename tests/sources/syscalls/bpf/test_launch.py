"""A command behind the gate is what it would be without: environment, descriptors, signals; and it waits."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sockscope.sources.syscalls.bpf.launch import Child


def run(command: list[str]) -> int:
    child = Child(command[0], command)
    child.go()
    status = child.wait(10)
    assert status is not None
    return os.waitstatus_to_exitcode(status)


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


@pytest.mark.parametrize("locale", [None, "", "C.UTF-8"])
def test_it_is_as_if_started_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locale: str | None) -> None:
    # Python puts LC_CTYPE into the environment of the C locale; not into the command's.
    monkeypatch.setenv("LC_ALL", "")
    monkeypatch.setenv("LANG", "C")
    monkeypatch.setenv("ODD", os.fsdecode(b"\xff\xfe"))
    monkeypatch.delenv("LC_CTYPE", raising=False)
    if locale is not None:
        monkeypatch.setenv("LC_CTYPE", locale)
    with open(tmp_path / "given", "w") as given:
        os.set_inheritable(given.fileno(), True)
        out = tmp_path / "out"
        shell = (
            f"env -0 >{out}; ls -l /proc/self/fd >{out}.fds; grep -E 'Sig(Blk|Ign)' /proc/self/status >{out}.signals"
        )
        assert run(["/bin/sh", "-c", shell, "x", os.fsdecode(b"\xff")]) == 0
        inheritable = {fd for fd in range(1024) if is_inheritable(fd)}
        assert given.fileno() in inheritable
    told = dict(entry.split(b"=", 1) for entry in out.read_bytes().split(b"\0") if entry)
    expected = {name: value for name, value in os.environb.items() if name not in (b"_", b"PWD", b"OLDPWD", b"SHLVL")}
    assert {name: value for name, value in told.items() if name in expected or name == b"LC_CTYPE"} == expected
    listed = [line.split(" -> ") for line in Path(f"{out}.fds").read_text().splitlines() if " -> " in line]
    # Without the one that ls lists them by.
    fds = {int(left.split()[-1]) for left, target in listed if not target.startswith("/proc/")}
    assert fds == inheritable
    blocked, ignored = (line.split()[1] for line in Path(f"{out}.signals").read_text().splitlines())
    assert int(blocked, 16) == 0
    assert not int(ignored, 16) >> (signal.SIGPIPE - 1) & 1


def test_what_was_ignored_stays_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(["/bin/sh", "-c", f"grep SigIgn /proc/self/status >{out}"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert int(out.read_text().split()[1], 16) & 1


def test_it_waits_and_ends_when_abandoned(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = Child("/bin/sh", ["sh", "-c", f"echo >{mark}"])
    time.sleep(0.2)
    assert child.poll() is None
    child.abandon()
    assert not mark.exists()
    assert child.poll() is not None
    assert not os.path.exists(f"/proc/{child.pid}")


def test_its_end_is_told_as_wait_tells_it() -> None:
    child = Child(sys.executable, [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    child.go()
    assert child.wait(10) == signal.SIGKILL
    assert run(["/bin/sh", "-c", "exit 3"]) == 3
    assert run(["/no/such/program"]) == 126


def test_no_descriptor_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    run(["/bin/true"])
    Child("/bin/true", ["true"]).abandon()
    assert os.listdir("/proc/self/fd") == before
