"""What reading the bpf engine's rings costs: programs that write to /dev/null at given rates, followed.

Run as root: `python -m benchmarks.bpf_consumer [--quick] [--rates 100000 500000 0] [--processes 1 2]`; rate 0: as fast
as they can. Needs a C compiler. Tells records per second, what was lost, and the reading thread's share of a CPU; then
how fast records are decoded when they are there already.

Goals: nothing lost above 2 M records/s decoded; less than a tenth of a CPU at 500 000/s.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from sockscope.sources.syscalls.bpf.decode import decode
from sockscope.sources.syscalls.bpf.engine import BpfEngine
from sockscope.sources.syscalls.bpf.layout import Ring, slot_dtype
from sockscope.sources.syscalls.bpf.ring import RingMemory
from sockscope.sources.syscalls.engine import EngineOptions

WRITER = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
int main(int n, char **v) {
    char go, data[64] = {0};
    int fd = open("/dev/null", O_WRONLY);
    double rate = atof(v[1]), seconds = atof(v[2]), begun;
    long count = 0;
    (void)n;
    puts("ready"); fflush(stdout);
    if (read(0, &go, 1) != 1) return 1;
    for (begun = now(); now() - begun < seconds;) {
        for (int i = 0; i < 100; i++) count += write(fd, data, 64) > 0;
        while (rate && count > rate * (now() - begun)) { struct timespec t = {0, 100000}; nanosleep(&t, 0); }
    }
    printf("%f\n", count / (now() - begun)); fflush(stdout);
    pause();
}
"""


def say(writer: subprocess.Popen[str], word: str) -> None:
    assert writer.stdin is not None
    writer.stdin.write(word)
    writer.stdin.flush()


def heard(writer: subprocess.Popen[str]) -> str:
    assert writer.stdout is not None
    return writer.stdout.readline()


def followed(program: Path, rate: int, seconds: int, processes: int) -> None:
    """One line of the table: processes that together make so many calls a second."""
    writers = [
        subprocess.Popen(
            [program, str(rate / processes), str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    for writer in writers:
        heard(writer)
    engine = BpfEngine(EngineOptions(payload_bytes=64))
    engine.attach([writer.pid for writer in writers])
    cpu_s: list[float] = []

    def read() -> None:
        before = time.thread_time()
        for _ in engine.batches():
            pass
        cpu_s.append(time.thread_time() - before)

    reader = threading.Thread(target=read)
    reader.start()
    begun = time.monotonic()
    for writer in writers:
        say(writer, "g")
    made = sum(float(heard(writer)) for writer in writers)
    engine.stop()
    reader.join()
    took = time.monotonic() - begun
    engine.close()
    coverage = engine.coverage()
    for writer in writers:
        writer.kill()
        writer.communicate()
    asked = f"{rate:9}" if rate else "unlimited"
    share = cpu_s[0] / took
    print(f"  {processes} processes  asked {asked}  made {made:9.0f}/s", end="")
    print(f"  read {coverage.event_count:9}  lost {coverage.lost_count:7}", end="")
    print(f"  {share:6.1%} of a CPU")


def decoded(count: int = 1 << 17) -> None:
    """Decoding alone, of payload records as a server makes them."""
    slots = np.zeros(2 * count, slot_dtype(Ring.SMALL))
    slots["length"] = slots.dtype.itemsize - 8
    lengths = np.random.default_rng(1).choice([0, 20, 24, 50, 72, 72, 72, 96], count)
    slots["event"]["blob_bytes"] = np.tile(lengths, 2)
    producer = np.zeros(1, np.uint64)
    ring = RingMemory(np.zeros(1, np.uint64), producer, slots)
    took: list[float] = []
    for _ in range(10):
        producer[0] += count * slots.dtype.itemsize
        begun = time.process_time()
        window = ring.window()
        decode(window)
        ring.advance(window)
        took.append(time.process_time() - begun)
    print(f"  decoding alone: {count / min(took) / 1e6:.1f} M records/s ({min(took) / count * 1e9:.0f} ns each)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=[100_000, 500_000, 1_000_000, 1_500_000, 0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one second each: whether it works")
    options = parser.parse_args()
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("needs a C compiler")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "writer"
        subprocess.run([compiler, "-O2", "-x", "c", "-o", program, "-"], input=WRITER, text=True, check=True)
        print("write(2) of 64 bytes to /dev/null, payload copied")
        for processes in options.processes:
            for rate in options.rates:
                followed(program, rate, 1 if options.quick else options.seconds, processes)
    decoded()


if __name__ == "__main__":
    main()
