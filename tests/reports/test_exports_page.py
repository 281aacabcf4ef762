"""The recipes of docs/exports.md run as they stand there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from sockscope.reports.pcapng import write_pcapng
from sockscope.reports.perfetto import write_perfetto
from tests.reports.exported import exported, leaking
from tests.reports.perfetto_support import query

PAGE = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


TSHARK = [block for block in blocks("sh") if block.startswith("tshark")]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
def test_tshark(tmp_path: Path) -> None:
    write_pcapng(*exported(leaking(), tmp_path), tmp_path / "session.pcapng")
    printed = []
    for command in TSHARK:
        words = shlex.split(command.replace("nginx[812]", "nginx[100]"))
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
        printed.append(done.stdout)
    assert len(printed) == 4
    by_findings, requests, sent, everything = printed
    assert "[FIN, ACK]" in by_findings
    assert "/\tnginx[100] fd 7: recvfrom(7," in requests
    assert "HTTP/1.1 200 OK" in sent
    assert "close-wait-leak" in everything
    assert len(everything.splitlines()) == 5


def test_sql(tmp_path: Path) -> None:
    write_perfetto(*exported(leaking(), tmp_path), tmp_path / "trace.pftrace")
    slowest, states = query(tmp_path / "trace.pftrace", *blocks("sql"))
    assert {"name": "sendto", "ms": 0.001, "connection": "#0 10.0.0.9:4000"} in slowest
    assert states == [{"name": "CLOSE_WAIT", "times": 1, "seconds": 9}]
