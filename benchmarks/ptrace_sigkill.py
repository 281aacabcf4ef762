"""SIGKILL of sockscope during load: requests failed, processes left stopped, masks not restored. All must be 0.

Run as root: `python benchmarks/ptrace_sigkill.py [--times 100] [--victim main|group|tracer]`. A server of
2 processes with 2 threads each answers clients without pause; the engine attaches and is killed at a random
moment, again and again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

SERVER = """
import os, socket, threading
s = socket.create_server(("127.0.0.1", 0), backlog=128)
os.fork()
def serve():
    while True:
        c, _ = s.accept()
        c.sendall(c.recv(100)); c.close()
threading.Thread(target=serve).start()
os.write(1, f"{os.getpid()} {s.getsockname()[1]}\\n".encode())
serve()
"""

OBSERVER = """
import sys
from sockscope.sources.syscalls.engine import EngineOptions
from sockscope.sources.syscalls.ptrace.engine import PtraceEngine
engine = PtraceEngine(EngineOptions())
engine.attach([int(word) for word in sys.argv[1:]])
print("attached", flush=True)
for _ in engine.batches():
    pass
"""


def threads_of(pids: list[int]) -> list[int]:
    return [int(name) for pid in pids for name in os.listdir(f"/proc/{pid}/task")]


def trouble(tid: int, cpus: set[int]) -> str:
    """What is not as it should be of one thread; empty: nothing."""
    state = Path(f"/proc/{tid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    if state in "tT":
        return f"left stopped ({state})"
    if "TracerPid:\t0\n" not in Path(f"/proc/{tid}/status").read_text():
        return "still traced"
    return "" if os.sched_getaffinity(tid) == cpus else "affinity not restored"


class Load:
    """Clients that ask without pause, and count what fails."""

    def __init__(self, port: int, clients: int) -> None:
        self.done = 0
        self.failed = 0
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(port,)) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, port: int) -> None:
        while not self._end.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    connection.sendall(b"hello")
                    if connection.recv(100) != b"hello":
                        self.failed += 1
                self.done += 1
            except OSError:
                self.failed += 1

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def kill_once(pids: list[int], victim: str) -> None:
    """Attach, wait a random while, kill."""
    observer = subprocess.Popen(
        [sys.executable, "-c", OBSERVER, *map(str, pids)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    )
    assert observer.stdout is not None
    if observer.stdout.readline() != "attached\n":
        raise RuntimeError("the engine did not attach")
    time.sleep(random.uniform(0, 0.3))
    if victim == "group":
        os.killpg(observer.pid, signal.SIGKILL)
    elif victim == "tracer":
        children = Path(f"/proc/{observer.pid}/task/{observer.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    else:
        observer.kill()
    observer.wait()
    observer.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--victim", choices=["main", "group", "tracer"], default="main")
    options = parser.parse_args()
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stdout is not None
    lines = [server.stdout.readline().split() for _ in range(2)]
    pids = [int(line[0]) for line in lines]
    cpus = os.sched_getaffinity(0)
    load = Load(int(lines[0][1]), clients=4)
    left: list[str] = []
    try:
        for _ in range(options.times):
            kill_once(pids, options.victim)
            deadline = time.monotonic() + 2
            while any(trouble(tid, cpus) for tid in threads_of(pids)) and time.monotonic() < deadline:
                time.sleep(0.01)
            left += [what for tid in threads_of(pids) if (what := trouble(tid, cpus))]
    finally:
        load.close()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    print(
        f"SIGKILL of {options.victim}, {options.times} times: {load.done} requests answered, {load.failed} failed; "
        f"threads left in trouble: {len(left)} {sorted(set(left))}"
    )


if __name__ == "__main__":
    main()
