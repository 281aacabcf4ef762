"""What tracing costs: nginx under wrk, untraced, under sockscope's ptrace engine, and under strace.

Run as root: `python benchmarks/ptrace_throughput.py [--workers 1 2] [--rounds 3] [--seconds 2]`. Needs nginx, wrk
and strace. The modes take turns within each round, since a shared machine is never twice the same; the table gives
medians, as shares of untraced.

Goals: at least 4x strace as people run it, 1x strace pinned to its target's CPU, 5x strace with 2 workers.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sockscope.sources.syscalls.engine import EngineOptions
from sockscope.sources.syscalls.ptrace.engine import PtraceEngine

CONFIG = """
worker_processes {workers}; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 1000000000;
    server {{ listen 127.0.0.1:{port}{reuseport}; location / {{ return 200 "hello"; }} }}
}}
"""


@contextmanager
def nginx(workers: int) -> Iterator[tuple[list[int], int]]:
    """A server of its own: (master and worker pids, port)."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        reuseport = " reuseport" if workers > 1 else ""
        (Path(folder) / "conf").write_text(
            CONFIG.format(workers=workers, folder=folder, port=port, reuseport=reuseport)
        )
        master = subprocess.Popen(["nginx", "-c", f"{folder}/conf", "-p", folder], stderr=subprocess.DEVNULL)
        try:
            children: list[int] = []
            while len(children) < workers:
                time.sleep(0.1)
                listed = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text()
                children = [int(pid) for pid in listed.split()]
            time.sleep(0.3)
            yield [master.pid, *children], port
        finally:
            master.terminate()
            master.wait()


def requests_per_s(port: int, seconds: int) -> float:
    """wrk's own figure.

    Raises:
        RuntimeError: requests failed.
    """
    said = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{seconds}s", f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True
    ).stdout
    if "Socket errors" in said or "Non-2xx" in said:
        raise RuntimeError(said)
    return float(next(line for line in said.splitlines() if line.startswith("Requests/sec")).split()[1])


@contextmanager
def under_sockscope(pids: list[int], lost: list[int], events: list[int]) -> Iterator[None]:
    engine = PtraceEngine(EngineOptions())
    engine.attach(pids)

    def read() -> None:
        for _ in engine.batches():
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        engine.stop()
        reader.join()
        engine.close()
        lost.append(engine.coverage().lost_count)
        events.append(engine.coverage().event_count)


@contextmanager
def under_strace(pids: list[int], *, pinned: bool) -> Iterator[None]:
    """`strace -f -o FILE` attached; pinned: it and the target on one CPU, by taskset."""
    masks = {pid: os.sched_getaffinity(pid) for pid in pids}
    cpu = min(masks[pids[0]])
    command = ["strace", "-f", "-o", "/dev/null", *(word for pid in pids for word in ("-p", str(pid)))]
    if pinned:
        for pid in pids:
            os.sched_setaffinity(pid, {cpu})
        command = ["taskset", "-c", str(cpu), *command]
    with tempfile.NamedTemporaryFile() as file:
        command[command.index("/dev/null")] = file.name
        strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait()
            for pid, mask in masks.items():
                os.sched_setaffinity(pid, mask)


def measure(workers: int, rounds: int, seconds: int) -> None:
    """One table."""
    figures: dict[str, list[float]] = {"untraced": [], "sockscope": [], "strace": [], "strace pinned": []}
    lost: list[int] = []
    events: list[int] = []
    with nginx(workers) as (pids, port):
        requests_per_s(port, 1)
        around: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "sockscope": lambda: under_sockscope(pids, lost, events),
            "strace": lambda: under_strace(pids, pinned=False),
            "strace pinned": lambda: under_strace(pids, pinned=True),
        }
        for _ in range(rounds):
            figures["untraced"].append(requests_per_s(port, seconds))
            for name, context in around.items():
                with context():
                    figures[name].append(requests_per_s(port, seconds))
    print(f"\nnginx, {workers} worker{'s' * (workers > 1)}, wrk -t1 -c16, medians of {rounds} rounds of {seconds} s")
    for name, values in figures.items():
        # Ratios within a round: the machine's other work changes slowly.
        share = statistics.median(v / base for v, base in zip(values, figures["untraced"], strict=True))
        faster = statistics.median(ours / v for v, ours in zip(values, figures["sockscope"], strict=True))
        middle = statistics.median(values)
        print(f"  {name:14} {middle:8.0f} requests/s  {share:6.3f} of untraced  sockscope is {faster:5.2f} x that")
    print(f"  sockscope: {sum(events)} events, {sum(lost)} lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    for workers in options.workers:
        measure(workers, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
