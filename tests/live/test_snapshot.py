"""The snapshot command on real sockets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sockscope.cli.snapshot import snapshot
from sockscope.errors import CannotObserveError
from tests.live.socket_hosts import eventually, python_process

pytestmark = pytest.mark.live

SERVER = """
s = socket.create_server(('127.0.0.1', 0), backlog=8)
print(s.getsockname()[1], flush=True)
held = s.accept()[0]
"""


def sockets(tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    path = tmp_path / "out.json"
    snapshot(json_path=str(path), **options)
    found: list[dict[str, Any]] = json.loads(path.read_text())["sockets"]
    return found


def test_each_close_wait_is_explained(tmp_path: Path) -> None:
    with python_process(SERVER) as (pid, (port,)):
        address = ("127.0.0.1", int(port))
        for _ in range(2):
            socket.create_connection(address).close()

        def close_wait() -> list[dict[str, Any]]:
            return sockets(tmp_path, port=[int(port)], state=["close-wait"])

        assert eventually(lambda: {s["cause"] for s in close_wait()} == {"owned", "never-accepted"})
        found = {s["cause"]: s for s in close_wait()}
        (owner,) = found["owned"]["owners"]
        assert owner["tgid"] == pid
        assert owner["comm"].startswith("python")
        assert found["never-accepted"]["owners"] == []
        of_pid = sockets(tmp_path, pid=pid)
        assert sorted(s["state"] for s in of_pid) == ["CLOSE_WAIT", "CLOSE_WAIT", "LISTEN"]


def test_text_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with python_process(SERVER) as (pid, (port,)):
        snapshot(port=[int(port)])
        out = capsys.readouterr().out
        assert out.startswith("TCP 1: LISTEN 1\n")
        assert f"127.0.0.1:{port}" in out
        assert f"[{pid}] fd " in out
        assert "\x1b" not in out


def test_without_options_no_parser_is_loaded() -> None:
    script = """
import sys
from sockscope.cli import execute
code = execute(["snapshot"])
print("\\nloaded:", [name for name in ("typer", "rich", "click") if name in sys.modules], int(code))
"""
    with python_process(SERVER) as (pid, (port,)):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded: [] 0\n")
    (line,) = (line for line in done.stdout.splitlines() if f"127.0.0.1:{port}" in line)
    assert f"[{pid}] fd " in line


def test_other_tables(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        found = sockets(tmp_path, udp=True, port=[receiver.getsockname()[1]])
        assert [s["state"] for s in found] == ["UNCONNECTED"]
    one, other = socket.socketpair()
    with one, other:
        kinds = {s["protocol"] for s in sockets(tmp_path, unix=True)}
        assert kinds == {"unix"}


def test_no_such_process() -> None:
    with python_process("print('ready', flush=True)") as (pid, _):
        pass
    with pytest.raises(CannotObserveError, match="there is no process"):
        snapshot(pid=pid)
