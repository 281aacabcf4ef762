"""100 000 sockets with their owners: `sockscope snapshot` against `ss -tanp`.

    sudo python benchmarks/snapshot.py [--sockets 100000] [--rounds 3]

Makes the sockets itself, in several processes (RLIMIT_NOFILE bounds one), on loopback; ends them with RST, so that
nothing stays in TIME_WAIT.
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
from statistics import median
from typing import NamedTuple

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
    """One run. `cpu_s`: of all its processes."""

    wall_s: float
    cpu_s: float
    lines: int


def timed(command: list[str]) -> Timed:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(wall_s, cpu_s, out.count(b"\n"))


def medians(runs: list[Timed]) -> Timed:
    return Timed(*(median(values) for values in zip(*runs, strict=True)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sockets", type=int, default=100_000)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    ss = shutil.which("ss")
    if ss is None:
        sys.exit("ss is not installed: apt-get install iproute2")
    children = start_holders(chosen.sockets)
    try:
        ours, theirs = [], []
        # In turn, so that whatever else the machine does hits both alike; ours costs little, so it runs twice.
        for _ in range(chosen.rounds):
            ours += [timed([sys.executable, "-m", "sockscope", "snapshot"]) for _ in range(2)]
            theirs.append(timed([ss, "-tanp"]))
        mine, other = medians(ours), medians(theirs)
        print(f"sockets: {chosen.sockets} in {len(children)} processes; load {os.getloadavg()[0]:.1f}")
        for name, runs, middle in (("sockscope snapshot", ours, mine), ("ss -tanp", theirs, other)):
            best = min(run.wall_s for run in runs)
            print(
                f"{name:18}: median {middle.wall_s:.3f} s, best {best:.3f} s "
                f"({middle.cpu_s:.3f} s of CPU), {middle.lines:.0f} lines"
            )
        print(f"ratio of medians: {other.wall_s / mine.wall_s:.1f} x faster, {other.cpu_s / mine.cpu_s:.1f} x less CPU")
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
