"""128 000 sockets with their owners: sockscope by bpf and by /proc, as a command and as a library, and `ss -tanp`.

    sudo python -m benchmarks.snapshot [--sockets 128000] [--rounds 3]

Makes the sockets itself, in several processes (RLIMIT_NOFILE bounds one), on loopback; ends them with RST, so that
nothing stays in TIME_WAIT. What is compared runs in turn, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from sockscope.sources.sockets.look import look
from sockscope.sources.sockets.netlink import TCP_QUERIES, Ahead
from sockscope.sources.sockets.owner_source import OwnerSource

NOBODY_LINGERS = struct.pack("ii", 1, 0)
DESCRIPTORS_SPARE = 200


def hold_pairs(number: int, count: int, ready: int) -> None:
    """Hold `count` connected pairs until killed; says so on `ready`."""
    server = socket.create_server((f"127.0.{1 + number // 250}.{1 + number % 250}", 0), backlog=4096)
    held = []
    for _ in range(count):
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        for end in (client, accepted):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOBODY_LINGERS)
            held.append(end)
    os.write(ready, b".")
    while True:
        signal.pause()


def start_holders(sockets: int) -> list[int]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pairs_each = min(hard - DESCRIPTORS_SPARE, 18_000) // 2
    wanted = sockets // 2
    reading, writing = os.pipe()
    children: list[int] = []
    while wanted > 0:
        pairs = min(pairs_each, wanted)
        child = os.fork()
        if child == 0:
            hold_pairs(len(children), pairs, writing)
        children.append(child)
        wanted -= pairs
    for _ in children:
        os.read(reading, 1)
    return children


class Timed(NamedTuple):
    """One run. `cpu_s`: of all its processes. `lines`: a socket each, and headings."""

    wall_s: float
    cpu_s: float
    lines: float


def command(*words: str) -> Timed:
    """A process, and all of its output."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    out = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(wall_s, cpu_s, out.count(b"\n"))


BY_PROC = """
from sockscope.sources.sockets import owner_source
owner_source.WORTH_LOADING = 1 << 60
from sockscope.cli import main
main()
"""


def library(source: OwnerSource) -> Timed:
    """The sockets, their owners and causes as tables, in this process."""
    before, began = time.process_time(), time.perf_counter()
    with source.scan() as scan, Ahead(TCP_QUERIES, tcp_info=False) as ahead:
        found = look(scan=scan, source=source, ahead=ahead)
    return Timed(time.perf_counter() - began, time.process_time() - before, len(found.sockets.records))


def medians(runs: list[Timed]) -> Timed:
    return Timed(*(median(values) for values in zip(*runs, strict=True)))


def compare(ways: dict[str, Callable[[], Timed]], theirs: str, rounds: int) -> None:
    """Run all in turn, and print medians; `theirs` is what the others are measured by."""
    runs: dict[str, list[Timed]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            runs[name].append(way())
    other = medians(runs[theirs])
    for name, each in runs.items():
        middle, best = medians(each), min(run.wall_s for run in each)
        ratio = "" if name == theirs else f", {other.wall_s / middle.wall_s:.1f} x faster"
        print(
            f"{name:26}: median {middle.wall_s:.3f} s, best {best:.3f} s, {middle.cpu_s:.3f} s of CPU, "
            f"{middle.lines:.0f} lines{ratio}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sockets", type=int, default=128_000)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    ss = shutil.which("ss")
    if ss is None:
        sys.exit("ss is not installed: apt-get install iproute2")
    children = start_holders(chosen.sockets)
    try:
        with OwnerSource(bpf=True) as kept, OwnerSource(bpf=False) as proc:
            kept.read()
            if kept.refusal is not None:
                print(f"not by bpf: {kept.refusal.message}")
            python = sys.executable
            print(f"sockets: {chosen.sockets} in {len(children)} processes; load {os.getloadavg()[0]:.1f}")
            compare(
                {
                    "sockscope snapshot": lambda: command(python, "-m", "sockscope", "snapshot"),
                    "the same, owners by /proc": lambda: command(python, "-c", BY_PROC, "snapshot"),
                    "look(), bpf kept loaded": lambda: library(kept),
                    "look(), owners by /proc": lambda: library(proc),
                    "ss -tanp": lambda: command(ss, "-tanp"),
                },
                "ss -tanp",
                chosen.rounds,
            )
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
