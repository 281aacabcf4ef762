"""Ways to watch a server while it is under load: sockscope's engines, and what people use otherwise."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

SETTLE_S = 2.0
"""bpftrace compiles for a second, and takes no SIGINT meanwhile."""
PATIENCE_S = 5.0


@dataclass(slots=True, kw_only=True)
class Watch:
    """One watcher at work; what it says of itself is known when it has ended.

    Attributes:
        process: its first process; None where nobody watches.
        events, lost: as counted by itself; None where it does not say.
    """

    process: psutil.Process | None = None
    events: int | None = None
    lost: int | None = None

    def cpu_s(self) -> float:
        """CPU time so far, of it and its children."""
        if self.process is None:
            return 0.0
        family = [self.process, *self.process.children(recursive=True)]
        return float(sum(times.user + times.system for times in (each.cpu_times() for each in family)))


Watcher = Callable[[Sequence[int]], AbstractContextManager[Watch]]


@contextmanager
def nobody(pids: Sequence[int]) -> Iterator[Watch]:
    yield Watch()


def sockscope(engine: str, payload_bytes: int, *, to_disk: bool = False) -> Watcher:
    """An engine attached, its events counted; `to_disk`: written as a recording."""

    @contextmanager
    def watching(pids: Sequence[int]) -> Iterator[Watch]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.follow", engine, str(payload_bytes), *map(str, pids)]
            if to_disk:
                command += ["--record", f"{folder}/recording"]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            if child.stdout.readline().strip() != "READY":
                raise RuntimeError(f"{engine} did not attach")
            watch = Watch(process=psutil.Process(child.pid))
            try:
                yield watch
            finally:
                child.terminate()
                said = json.loads(child.communicate()[0].splitlines()[-1])
                watch.events, watch.lost = said["events"], said["lost"]

    return watching


@contextmanager
def elsewhere(pids: Sequence[int]) -> Iterator[Watch]:
    """bpf attached to another process: what all that are not followed pay."""
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            with sockscope("bpf", 64)([other.pid]) as watch:
                yield watch
        finally:
            other.kill()


def command(words: Callable[[Sequence[int], str], list[str]], *, pinned: bool = False) -> Watcher:
    """A tool that writes to a file until SIGINT.

    Args:
        words: its command line, of the pids and the file.
        pinned: it and the target on one CPU, by taskset.
    """

    @contextmanager
    def watching(pids: Sequence[int]) -> Iterator[Watch]:
        masks = {pid: os.sched_getaffinity(pid) for pid in pids} if pinned else {}
        cpu = min(min(mask) for mask in masks.values()) if masks else 0
        for pid in masks:
            os.sched_setaffinity(pid, {cpu})
        with tempfile.TemporaryDirectory() as folder:
            line = words(pids, f"{folder}/out")
            if pinned:
                line = ["taskset", "-c", str(cpu), *line]
            child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                time.sleep(SETTLE_S)
                if child.poll() is not None:
                    raise RuntimeError(f"{line} ended at once")
                yield Watch(process=psutil.Process(child.pid))
            finally:
                end(child)
                for pid, mask in masks.items():
                    os.sched_setaffinity(pid, mask)

    return watching


def end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_S)
            return


def with_tracefs(line: list[str]) -> list[str]:
    """A command with tracefs where it looks for it, mounted for it alone where the machine has not mounted it."""
    if Path("/sys/kernel/tracing/events").is_dir():
        return line
    return ["unshare", "-m", "sh", "-c", 'mount -t tracefs none /sys/kernel/tracing && exec "$@"', "sh", *line]


def strace(pids: Sequence[int], file: str) -> list[str]:
    return ["strace", "-f", "-o", file, *(word for pid in pids for word in ("-p", str(pid)))]


def perf_trace(pids: Sequence[int], file: str) -> list[str]:
    return with_tracefs(["perf", "trace", "-o", file, "-p", ",".join(map(str, pids))])


def bpftrace(pids: Sequence[int], file: str) -> list[str]:
    """Counts calls by number: the least that it can do."""
    ours = " || ".join(f"pid == {pid}" for pid in pids)
    return with_tracefs(
        ["bpftrace", "-o", file, "-e", f"tracepoint:raw_syscalls:sys_enter /{ours}/ {{ @[args->id] = count(); }}"]
    )


def available() -> tuple[Mapping[str, Watcher], list[str]]:
    """Every watcher that this machine has, by name, the untraced server first; and a line for each it has not."""
    watchers: dict[str, Watcher] = {
        "untraced": nobody,
        "bpf, arguments only": sockscope("bpf", 0),
        "bpf, 64-byte payloads": sockscope("bpf", 64),
        "bpf, recorded to disk": sockscope("bpf", 64, to_disk=True),
        "bpf, of another process": elsewhere,
        "ptrace": sockscope("ptrace", 64),
    }
    tools = {
        "strace -f -o": ("strace", command(strace)),
        "strace, target's CPU": ("strace", command(strace, pinned=True)),
        "perf trace": ("perf", command(perf_trace)),
        "bpftrace, counts only": ("bpftrace", command(bpftrace)),
    }
    missing = []
    for name, (program, watcher) in tools.items():
        if shutil.which(program) is None:
            missing.append(f"{program} is not installed: without it")
        else:
            watchers[name] = watcher
    return watchers, missing
