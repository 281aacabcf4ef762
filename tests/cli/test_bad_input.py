"""Every mistake gets its message and its documented exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockscope.cli import execute
from sockscope.fixture import free_port
from sockscope.recording import layout

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
Refusal = Callable[..., None]


def sockscope(*arguments: str | Path, user: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sockscope", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=user,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, (done.returncode, done.stdout[-500:], done.stderr[-500:])
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What is refused before anything is watched needs no process of its own: a traceback fails the test itself."""

    def check(arguments: Sequence[str | Path], code: int, *words: str) -> None:
        ended = execute(list(map(str, arguments)))
        refused(subprocess.CompletedProcess(arguments, ended, *capsys.readouterr()), code, *words)

    return check


@contextmanager
def sleeping(*prefix: str) -> Iterator[int]:
    process = subprocess.Popen([*prefix, "sleep", "60"])
    time.sleep(0.3)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def no_such_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_no_such_pid(refuses: Refusal) -> None:
    refuses(("attach", str(no_such_pid())), 3, "no process")
    refuses(("diagnose", "--pid", str(no_such_pid())), 3, "no process")


@root
def test_process_of_another_user() -> None:
    """Root without CAP_SYS_PTRACE may do to others' processes what any user may: nothing."""
    without = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"]
    with sleeping("setpriv", "--reuid", "65534", "--clear-groups") as pid:
        done = subprocess.run(
            [*without, sys.executable, "-m", "sockscope", "attach", str(pid)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    refused(done, 3, str(pid), "root")


@root
def test_already_traced() -> None:
    tracer = subprocess.Popen(["strace", "-qq", "-o", "/dev/null", "sleep", "60"])
    time.sleep(0.7)
    child = int(Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text().split()[0])
    try:
        refused(sockscope("attach", str(child), "--engine", "ptrace"), 3, "traced", "strace", str(tracer.pid))
    finally:
        tracer.kill()
        tracer.wait()


@root
def test_kernel_thread() -> None:
    refused(sockscope("attach", "2"), 3, "kernel thread")


def test_oneself_and_ancestors() -> None:
    refused(sockscope("attach", str(os.getpid())), 3, "sockscope")


def test_zombie() -> None:
    process = subprocess.Popen(["true"])
    time.sleep(0.3)
    try:
        refused(sockscope("attach", str(process.pid)), 3, "zombie")
    finally:
        process.wait()


def test_nobody_listens(refuses: Refusal) -> None:
    port = free_port()
    refuses(("diagnose", "--port", str(port)), 3, f"port {port}")


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999"])
def test_port_out_of_range(port: str, refuses: Refusal) -> None:
    refuses(("diagnose", f"--port={port}"), 2, "range")


def test_no_target(refuses: Refusal) -> None:
    refuses(("diagnose",), 2, "--port", "--pid")


def test_not_a_number(refuses: Refusal) -> None:
    refuses(("attach", "nginx"), 2, "PID")


@pytest.mark.parametrize("command", [("rules", "close-wait-lek"), ("report", "x", "--select", "close-wait-lek")])
def test_unknown_rule_names_the_nearest(command: tuple[str, ...], refuses: Refusal) -> None:
    refuses(command, 2, "close-wait-lek", "close-wait-leak")


def test_unknown_demo(refuses: Refusal) -> None:
    refuses(("demo", "nothing"), 2, "nothing")


def test_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    refused(sockscope("run", "--output", tmp_path, "--", "true"), 2, "not empty")
    assert (tmp_path / "kept").read_text() == "mine"


def test_unwritable_outputs(tmp_path: Path, refuses: Refusal) -> None:
    refuses(("run", "--html", tmp_path / "no" / "x.html", "--", "true"), 2, "does not exist")
    refuses(("run", "--json", tmp_path, "--", "true"), 2, "folder")
    refuses(("run", "--output", "/proc/nothing", "--", "true"), 2, "/proc/nothing")


def test_command_that_does_not_exist() -> None:
    refused(sockscope("run", "--", "no-such-command-here"), 2, "no-such-command-here")


@root
def test_target_that_exits_while_watched(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "5"])
    done = sockscope("attach", str(process.pid), "--json", tmp_path / "out.json")
    process.wait()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.json").stat().st_size


@root
def test_no_raw_sockets_goes_on_without_packets(tmp_path: Path) -> None:
    without = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw"]
    done = subprocess.run(
        [*without, sys.executable, "-m", "sockscope", "run", "--", "true"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert "CAP_NET_RAW" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["report", "analyze"])
def test_recordings_that_are_none(command: str, tmp_path: Path, refuses: Refusal) -> None:
    refuses((command, tmp_path / "none"), 2, "does not exist")
    refuses((command, tmp_path), 4, "not a recording")
    (tmp_path / layout.MANIFEST).write_text("")
    refuses((command, tmp_path), 4, "damaged")
    (tmp_path / layout.MANIFEST).write_text('{"format": "sockscope-recording", "version": 99}')
    refuses((command, tmp_path), 4, "version 99")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"\x7fELF" + bytes(100), "not"), (b"\x0a\x0d\x0d\x0a" + bytes(4), "x.pcap")],
)
def test_captures_that_are_none(content: bytes, words: str, tmp_path: Path, refuses: Refusal) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    refuses(("analyze", "--pcap", path), 4, words)


def test_capture_that_is_not_there(tmp_path: Path, refuses: Refusal) -> None:
    refuses(("analyze", "--pcap", tmp_path / "none.pcap"), 2, "none.pcap")


def test_nothing_to_analyze(refuses: Refusal) -> None:
    refuses(("analyze",), 2, "--pcap")


@root
def test_full_disk_keeps_what_fitted(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    script = "import socket\nfor i in range(20000):\n s=socket.socket(); s.close()"
    try:
        done = sockscope("run", "--no-packets", "--output", small / "rec", "--", sys.executable, "-c", script)
        assert done.returncode == 0, done.stderr
        assert "disk is full" in " ".join((done.stdout + done.stderr).split())
    finally:
        subprocess.run(["umount", small], check=True)


def test_html_goes_to_a_file(tmp_path: Path, refuses: Refusal) -> None:
    refuses(("report", tmp_path, "--html", "-"), 2, "file")


def test_no_rule_is_left(tmp_path: Path, refuses: Refusal) -> None:
    refuses(("report", tmp_path, "--select", "missing-fin", "--ignore", "missing-fin"), 2, "no rule is left")


def test_a_folder_is_no_command(tmp_path: Path) -> None:
    refused(sockscope("run", "--", tmp_path), 2, "is a folder")


@root
def test_the_second_sockscope_names_the_first() -> None:
    with sleeping() as pid:
        first = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sockscope",
                "attach",
                str(pid),
                "--engine",
                "ptrace",
                "--no-packets",
                "--no-sockets",
            ]
        )
        try:
            status = Path(f"/proc/{pid}/status")
            for _ in range(100):
                if "TracerPid:\t0" not in status.read_text():
                    break
                time.sleep(0.1)
            refused(sockscope("attach", str(pid), "--engine", "ptrace"), 3, "traced", f"sockscope ({first.pid})")
        finally:
            first.terminate()
            first.wait()
