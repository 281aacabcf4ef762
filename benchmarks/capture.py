"""Live capture beside a busy server: `python -m benchmarks.capture`.

Capture: nginx (one worker, its own configuration, a free port of loopback) under `wrk -t1 -c16`, in turn
without capture, with sockscope's, and with `tcpdump -w`. Printed: throughput as a share of that without
capture, and packets lost, from the captures' own counts.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sockscope.fixture import free_port
from sockscope.sources.packets.live import Capture

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{ access_log off; keepalive_requests 1000000000;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello\\n"; }} }} }}
"""
_SNAP_BYTES = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One run of wrk: requests a second; packets captured and lost (None: the tool did not say)."""

    rate: float
    seen: int | None = None
    lost: int | None = None


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """An nginx of our own; its port."""
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=port))
    server = subprocess.Popen(["nginx", "-c", str(configuration), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield port
    finally:
        server.terminate()
        server.wait()


def load(port: int, seconds: int) -> float:
    """Requests a second that wrk reaches."""
    said = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{seconds}s", f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True
    )
    found = re.search(r"Requests/sec:\s+([\d.]+)", said.stdout)
    if found is None:
        raise SystemExit(f"wrk said no rate: {said.stdout}{said.stderr}")
    return float(found[1])


def bare(port: int, seconds: int, _folder: Path) -> Turn:
    return Turn(rate=load(port, seconds))


def with_sockscope(port: int, seconds: int, folder: Path) -> Turn:
    path = folder / "sockscope.pcapng"
    capture = Capture(interfaces=["lo"], ports=[port], path=path, snap_bytes=_SNAP_BYTES)
    capture.start()
    try:
        rate = load(port, seconds)
    finally:
        coverage = capture.stop()
    path.unlink()
    return Turn(rate=rate, seen=coverage.seen_count, lost=coverage.lost_count)


def with_tcpdump(port: int, seconds: int, folder: Path) -> Turn:
    path = folder / "tcpdump.pcap"
    command = ["tcpdump", "-i", "lo", "-s", str(_SNAP_BYTES), "-w", str(path), "port", str(port)]
    tool = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.7)
        rate = load(port, seconds)
        time.sleep(0.3)
    finally:
        tool.terminate()
        _, said = tool.communicate()
    path.unlink(missing_ok=True)
    seen = re.search(r"(\d+) packets? captured", said)
    lost = re.search(r"(\d+) packets? dropped by kernel", said)
    return Turn(rate=rate, seen=int(seen[1]) if seen else None, lost=int(lost[1]) if lost else None)


def live(rounds: int, seconds: int) -> None:
    """The three in turn, so that what else the machine does falls on all alike."""
    tools: dict[str, Callable[[int, int, Path], Turn]] = {"no capture": bare, "sockscope": with_sockscope}
    if shutil.which("tcpdump"):
        tools["tcpdump -w"] = with_tcpdump
    turns: dict[str, list[Turn]] = {name: [] for name in tools}
    with tempfile.TemporaryDirectory(prefix="sockscope-benchmark-") as name, nginx(Path(name)) as port:
        load(port, 1)
        for _ in range(rounds):
            for tool, run in tools.items():
                turns[tool].append(run(port, seconds, Path(name)))
    base = statistics.median(t.rate for t in turns["no capture"])
    print(f"{'':12} {'requests/s':>11} {'share':>6} {'packets/s':>10} {'captured':>10} {'lost':>8}")
    for tool, done in turns.items():
        rate = statistics.median(t.rate for t in done)
        line = f"{tool:12} {rate:11.0f} {rate / base:6.2f}"
        seen = sum(t.seen or 0 for t in done)
        if seen:
            line += f" {seen / len(done) / seconds:10.0f} {seen:10} {sum(t.lost or 0 for t in done):8}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each run of wrk")
    options = parser.parse_args()
    live(options.rounds, options.seconds)


if __name__ == "__main__":
    main()
