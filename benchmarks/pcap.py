"""A capture of two million packets to connections, states, findings and a report; beside tshark and tcptrace.

    python -m benchmarks.pcap [--connections 200000] [--rounds 3] [--keep FILE]

The capture (`benchmarks.made_capture`) is that of an HTTP server on loopback. Each tool runs as a process of its
own, in turn, its output thrown away: `sockscope analyze --pcap FILE`, the same with `--json`, the library to flows and
findings (what was read, joined and judged; no report), `tshark -q -n -z conv,tcp` and `tcptrace -n`. Printed of each,
best of all rounds: seconds by the clock and of the processor, as a multiple of those to flows and findings; and
the most memory it had. Where others use the machine, too, the processor's seconds are the ones to compare.
A tool that is not installed is left out (Debian: `apt-get install tshark tcptrace`).

Last, on two cores (load 1.1; 2 038 044 packets, 200 000 connections, 271 MB, two rounds):

    to flows and findings       4.34 s  1.00 x   cpu   4.41 s  1.00 x     824 MiB
    sockscope analyze           7.50 s  1.73 x   cpu   7.47 s  1.69 x     831 MiB
    sockscope analyze --json   14.00 s  3.22 x   cpu  13.99 s  3.17 x     825 MiB
    tshark -z conv,tcp         24.71 s  5.69 x   cpu  24.57 s  5.57 x    1570 MiB
    tcptrace                   11.60 s  2.67 x   cpu  11.58 s  2.63 x    2941 MiB

The run before: 4.92 s, tshark 4.86 x, tcptrace 1.26 x. Of the processor's 4.4 s the packets take about 1.0, flows,
marks and facts as columns 1.5, the connections' objects 0.6, imports 0.5, the rules 0.4.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.made_capture import make_capture
from sockscope.findings.run import run_rules
from sockscope.pipeline.load import Evidence, load_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process: how long it took by the clock, how long the processor worked for it, and its most memory."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(command: Sequence[str]) -> Run:
    begin = time.perf_counter()
    # As installed, with its bytecode kept: else every round compiles all modules anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    # sockscope says by 1 that there are findings.
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Run(seconds=seconds, cpu_seconds=usage.ru_utime + usage.ru_stime, peak_bytes=usage.ru_maxrss * 1024)


def library(path: Path) -> None:
    """In a process of its own, to flows and findings: how long the processor took for each step; a line of JSON."""
    begin = time.process_time()
    session = load_session(Evidence(captures=(path,)))
    joined = time.process_time()
    findings, _, _ = run_rules(session)
    done = time.process_time()
    facts = {
        "packets": len(session.packets),
        "connections": len(session.connections),
        "findings": len(findings),
        "start_s": begin,
        "session_s": joined - begin,
        "rules_s": done - joined,
    }
    print(json.dumps(facts))


def compare(path: Path, rounds: int) -> None:
    """All tools in turn, so that what else the machine does falls on all alike."""
    ours = [sys.executable, "-m", "sockscope", "analyze", "--pcap", str(path)]
    judged = [sys.executable, "-m", "benchmarks.pcap", "--library", str(path)]
    commands: dict[str, list[str]] = {
        "to flows and findings": judged,
        "sockscope analyze": ours,
        "sockscope analyze --json": [*ours, "--json", os.devnull],
    }
    if shutil.which("tshark"):
        commands["tshark -z conv,tcp"] = ["tshark", "-q", "-n", "-z", "conv,tcp", "-r", str(path)]
    if shutil.which("tcptrace"):
        commands["tcptrace"] = ["tcptrace", "-n", str(path)]
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(run(command))
    clock = {name: min(each.seconds for each in done) for name, done in runs.items()}
    cpu = {name: min(each.cpu_seconds for each in done) for name, done in runs.items()}
    unit = "to flows and findings"
    for name, done in runs.items():
        peak = max(each.peak_bytes for each in done)
        print(
            f"{name:24} {clock[name]:7.2f} s {clock[name] / clock[unit]:5.2f} x   "
            f"cpu {cpu[name]:6.2f} s {cpu[name] / cpu[unit]:5.2f} x  {peak / 2**20:6.0f} MiB"
        )
    said = subprocess.run(judged, check=True, capture_output=True, text=True)
    facts: dict[str, float] = json.loads(said.stdout)
    print(
        f"{facts['packets']:.0f} packets, {facts['connections']:.0f} connections, {path.stat().st_size / 1e6:.0f} MB, "
        f"{facts['findings']:.0f} findings; cpu: imports {facts['start_s']:.2f} s, "
        f"session {facts['session_s']:.2f} s, rules {facts['rules_s']:.2f} s; load {os.getloadavg()[0]:.1f}"
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
