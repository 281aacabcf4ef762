"""The tutorial's commands print what the tutorial shows: each line of its output blocks, but for numbers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sockscope.fixture import free_port
from tests.live.servers import curl_many, wait_until_serving

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
SOCKSCOPE = (sys.executable, "-m", "sockscope")
WIDE = {**os.environ, "COLUMNS": "400", "PYTHONPATH": str(ROOT)}
AT_REST_S = 2.2
"""Two polls of half a second that time out, and room for a slow machine."""


def section(title: str) -> str:
    """A section of the tutorial, to the next heading."""
    return re.split(r"^## ", TUTORIAL.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str, kind: str = "text") -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def pattern(line: str) -> re.Pattern[str]:
    """A line of the tutorial as it may be printed elsewhere: other numbers, `…` anything, spaces as they come."""
    told = re.escape(" ".join(line.split()))
    told = re.sub(r"(flask|python)\\\[", r"[\\w.\\-]+\\[", told)
    told = re.sub(r"\bpython\b", r"python[\\d.]*", told)
    told = re.sub(r"\d[\d.]*(?:\\\.\d+)*", r"[\\d.]+", told)
    told = re.sub(r"(?:<\[\\d\.\]\+\\ (?:ms|µs|s)>)", r"<[\\d.]+ \\w+>", told)
    return re.compile(told.replace(r"\ ", " ").replace("…", ".*"))


def missing(shown: list[str], printed: str) -> list[str]:
    """Lines of the tutorial that were not printed."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    wanted = [line for line in shown if line.strip() not in ("", "…")]
    return [line for line in wanted if not any(pattern(line).search(each) for each in lines)]


def test_the_comparison_itself() -> None:
    line = "  +2.1 flask[7039] accept4(3, …) = 4  # its descriptor is 4"
    assert not missing([line], " +12.25 python3.11[12] accept4(3, {x}, SOCK) = 5 # its descriptor is 5")
    assert missing([line], " +12.25 python3.11[12] accept4(3, {x}, SOCK) = 5 # its number is 5")
    assert missing(["+1.0 poll() = 0 <4 ms>"], "+1.0 poll() = 0")


def test_a_faulty_server() -> None:
    text = section("A faulty server, diagnosed")
    assert blocks(text, "sh")[0].strip() == "sudo sockscope demo fin-withheld"
    done = subprocess.run(
        [*SOCKSCOPE, "demo", "fin-withheld"], capture_output=True, text=True, env=WIDE, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    diagnosis, story = (block.splitlines() for block in blocks(text))
    # Wide enough, a paragraph is a line.
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\n|\n(?=  (?:Held|Mend))", "\n".join(diagnosis))]
    title, who = paragraphs[0].split(" python[8510]", 1)[0], "certain"
    printed = " ".join(done.stdout.split())
    assert pattern(title).search(printed)
    assert who in printed
    for paragraph in paragraphs[1:]:
        assert pattern(paragraph).search(printed), paragraph
    for line in story:
        for part in line.split(" — "):
            assert pattern(part.removeprefix("›").removeprefix("▶")).search(printed), part


@pytest.mark.server
def test_a_flask_server(tmp_path: Path) -> None:
    rest = section("What does a Flask server do when nobody asks?")
    asked = section("What happens to poll when a request comes?")
    sends = section("What is each sendto for?")
    (tmp_path / "app.py").write_text(blocks(rest, "python")[0])
    assert "sudo sockscope attach $!" in blocks(rest, "sh")[0]
    port = free_port()
    flask = subprocess.Popen(
        (sys.executable, "-m", "flask", "--app", str(tmp_path / "app.py"), "run", "--port", str(port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_serving(port)
        with (tmp_path / "live").open("w") as out:
            attach = subprocess.Popen([*SOCKSCOPE, "attach", str(flask.pid)], stdout=out, env=WIDE)
            deadline = time.monotonic() + 20
            while "waited 500 ms" not in (tmp_path / "live").read_text() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(AT_REST_S)
            assert curl_many(port, 2, ("/", "/missing")) == [200, 404]
            time.sleep(1.2)
            attach.send_signal(signal.SIGINT)
            assert attach.wait(30) == 0
        printed = (tmp_path / "live").read_text()
        assert flask.poll() is None
    finally:
        flask.terminate()
        flask.wait(10)
    for text in (rest, asked, sends):
        for block in blocks(text):
            assert not missing(block.splitlines(), printed), printed
