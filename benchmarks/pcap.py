"""A capture of two million packets to connections, states, findings and a report; beside tshark and tcptrace.

    python -m benchmarks.pcap [--connections 200000] [--rounds 3] [--keep FILE]

The capture (`benchmarks.made_capture`) is that of an HTTP server on loopback. Each tool runs as a process of its
own, in turn, its output thrown away: `sockscope analyze --pcap FILE`, the library up to the report,
`tshark -q -n -z conv,tcp` and `tcptrace -n`. Printed: the best time of each, its ratio to the command's, and the most
memory it had. A tool that is not installed is left out (Debian: `apt-get install tshark tcptrace`).

Last, on two cores that others used as well (2 038 044 packets, 200 000 connections, 271 MB, best of two rounds):
`sockscope analyze` 10.5 s, 1.1 GiB; the library to the report 9.2 s; tshark 19.6 s, 1.5 GiB (1.9 times as long);
tcptrace 8.1 s, 2.9 GiB. Of the 9.2 s the packets take 1.4, connections, marks and facts as columns 1.7, their
200 000 objects 2, the report 2.7.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.made_capture import make_capture
from sockscope.pipeline.analyze import make_report
from sockscope.pipeline.load import Evidence, load_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process: how long it took, and its most memory."""

    seconds: float
    peak_bytes: int


def run(command: Sequence[str]) -> Run:
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    # sockscope says by 1 that there are findings.
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Run(seconds=seconds, peak_bytes=usage.ru_maxrss * 1024)


def library(path: Path) -> None:
    """In a process of its own: how long each step takes; a line of JSON."""
    begin = time.perf_counter()
    session = load_session(Evidence(captures=(path,)))
    joined = time.perf_counter()
    report = make_report(session)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {
        "packets": len(session.packets),
        "connections": len(report.connections),
        "findings": len(report.findings),
        "session_s": joined - begin,
        "report_s": done - joined,
        "peak_bytes": peak,
    }
    print(json.dumps(facts))


def compare(path: Path, rounds: int) -> None:
    """All tools in turn, so that what else the machine does falls on all alike."""
    commands: dict[str, list[str]] = {
        "sockscope analyze": [sys.executable, "-m", "sockscope", "analyze", "--pcap", str(path)],
        "library, to the report": [sys.executable, "-m", "benchmarks.pcap", "--library", str(path)],
    }
    if shutil.which("tshark"):
        commands["tshark -z conv,tcp"] = ["tshark", "-q", "-n", "-z", "conv,tcp", "-r", str(path)]
    if shutil.which("tcptrace"):
        commands["tcptrace"] = ["tcptrace", "-n", str(path)]
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(run(command))
    ours = min(each.seconds for each in runs["sockscope analyze"])
    for name, done in runs.items():
        best = min(each.seconds for each in done)
        peak = max(each.peak_bytes for each in done)
        print(f"{name:24} {best:7.2f} s  {best / ours:5.2f} x  {peak / 2**20:6.0f} MiB")
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.pcap", "--library", str(path)], check=True, capture_output=True, text=True
    )
    facts: dict[str, float] = json.loads(said.stdout)
    print(
        f"{facts['packets']:.0f} packets, {facts['connections']:.0f} connections, {path.stat().st_size / 1e6:.0f} MB: "
        f"session {facts['session_s']:.2f} s, report {facts['report_s']:.2f} s, {facts['findings']:.0f} findings"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="make the capture here and leave it")
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library is not None:
        library(options.library)
        return
    with tempfile.TemporaryDirectory(prefix="sockscope-benchmark-") as name:
        path: Path = options.keep or Path(name) / "large.pcap"
        make_capture(path, options.connections)
        compare(path, options.rounds)


if __name__ == "__main__":
    main()
