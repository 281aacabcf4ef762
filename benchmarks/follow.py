"""A process that follows others by an engine, as sockscope does: `python -m benchmarks.follow bpf 64 PID...`.

With `--record FOLDER` what it sees is written as a recording (without packets and sockets), else counted only. It says
READY once it follows, and at SIGTERM, as JSON, how many events it saw and lost. A process of its own, so that its CPU
time is sockscope's alone.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from sockscope.model.info import SyscallCoverage
from sockscope.pipeline.options import EngineChoice, RecordOptions
from sockscope.pipeline.record import Watcher, record
from sockscope.pipeline.targets import make_engine


def ready() -> None:
    print("READY", flush=True)


def counted(options: RecordOptions) -> SyscallCoverage:
    engine = make_engine(options)
    try:
        engine.attach(options.pids)
        signal.signal(signal.SIGTERM, lambda number, frame: engine.stop())
        ready()
        for _ in engine.batches():
            pass
    finally:
        engine.close()
    return engine.coverage()


def recorded(options: RecordOptions, folder: Path) -> SyscallCoverage:
    watcher = Watcher(on_ready=lambda tgids, seed: ready())
    signal.signal(signal.SIGTERM, lambda number, frame: watcher.stop.set())
    return record(options, folder, watcher).info.syscalls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=EngineChoice)
    parser.add_argument("payload_bytes", type=int)
    parser.add_argument("pids", type=int, nargs="+")
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    options = RecordOptions(
        pids=tuple(asked.pids),
        engine=asked.engine,
        payload_bytes=asked.payload_bytes,
        packets=False,
        sockets=False,
    )
    coverage = recorded(options, asked.record) if asked.record else counted(options)
    json.dump({"events": coverage.event_count, "lost": coverage.lost_count}, sys.stdout)


if __name__ == "__main__":
    main()
