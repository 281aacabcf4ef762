"""How fast an strace log of a real server is read, against the usual way: a loop over its lines with one regex each.

    sudo python -m benchmarks.strace_log --gigabytes 1

Runs nginx (two workers) or redis-server under load with `strace -f -ttt -T -yy -s 64`, repeats what was written, with
the times moved on, until the log is as large as asked, and reads it. The loop only takes lines apart (pid, time, call,
arguments, result); it joins no halves, decodes no argument and keeps nothing. Both take one core; CPU time is told, so
that what else runs does not count.

Last, Python 3.11, nginx, 1.00 GB, 7 976 276 lines (nine of ten are half a call):
reader 11.0 s, 722 438 lines/s, 91 MB/s, 3 742 740 events, peak 417 MiB, of it 343 MiB the event table;
loop 15.3 s, 519 807 lines/s: the reader is 1.39 times as fast.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PORT = 18987
STRACE = ("strace", "-f", "-ttt", "-T", "-yy", "-s", "64")
NGINX = """daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{ access_log {folder}/access.log; server {{ listen 127.0.0.1:{port}; root {folder}; }} }}
"""
_TIME = re.compile(rb"^(\d+ +)(\d{10})(\.\d{6} )", re.MULTILINE)
_LINE = re.compile(
    r"(?P<pid>\d+) +(?P<time>\d+\.\d+) (?:(?P<call>\w+)\((?P<args>.*?)(?:\) += (?P<ret>.*?)(?: <(?P<took>[\d.]+)>)?"
    r"| <unfinished \.\.\.>)|<\.\.\. (?P<again>\w+) resumed>(?P<rest>.*)|(?P<other>.*))$"
)


@contextmanager
def _nginx(folder: Path, log: Path) -> Iterator[list[str]]:
    (folder / "index.html").write_text("hello " * 20)
    (folder / "conf").write_text(NGINX.format(folder=folder, port=PORT))
    command = [*STRACE, "-o", str(log), "nginx", "-c", str(folder / "conf"), "-p", str(folder)]
    with subprocess.Popen(command) as tracer:
        time.sleep(1)
        yield ["wrk", "-t1", "-c16", "-d{seconds}", f"http://127.0.0.1:{PORT}/index.html"]
        subprocess.run(["kill", "-QUIT", (folder / "pid").read_text().strip()], check=True)
        tracer.wait()


@contextmanager
def _redis(folder: Path, log: Path) -> Iterator[list[str]]:
    command = [*STRACE, "-o", str(log), "redis-server", "--port", str(PORT), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as tracer:
        time.sleep(1)
        yield ["redis-benchmark", "-p", str(PORT), "-q", "-c", "16", "-n", "{requests}", "-t", "set,get"]
        subprocess.run(["redis-cli", "-p", str(PORT), "shutdown", "nosave"], check=False)
        tracer.wait()


def make_log(server: str, folder: Path, seconds: int, wanted_bytes: int) -> Path:
    """A log of this size out of a real server's."""
    seed, log = folder / "seed.strace", folder / "big.strace"
    with (_nginx if server == "nginx" else _redis)(folder, seed) as load:
        subprocess.run([part.format(seconds=seconds, requests=seconds * 1000) for part in load], check=True)
    text = seed.read_bytes()
    span = 1 + int(text.splitlines()[-1].split()[1].split(b".")[0]) - int(text.split()[1].split(b".")[0])
    with log.open("wb") as file:
        moved = 0
        while file.tell() < wanted_bytes:
            file.write(_moved(text, moved))
            moved += span
    return log


def _moved(text: bytes, by: int) -> bytes:
    return _TIME.sub(lambda found: b"%s%d%s" % (found[1], int(found[2]) + by, found[3]), text)


def measure_reader(log: Path) -> None:
    """Read it (in this process, which did nothing else) and print how that went."""
    from sockscope.sources.syscalls.strace_log.reader import read_strace

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    read = read_strace([log])
    took = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = (read.events.records.nbytes + read.events.blob.nbytes) / 2**20
    print(f"{took} {read.line_count} {read.call_count} {len(read.events)} {read.unread_count}", flush=True)
    print(f"peak {peak / 1024:.0f} MiB, of it {before / 1024:.0f} MiB before, {table:.0f} MiB the event table")


def measure_loop(log: Path) -> float:
    """CPU seconds that the usual loop takes."""
    began = time.process_time()
    matched = 0
    with log.open(errors="backslashreplace") as file:
        for line in file:
            found = _LINE.match(line)
            matched += found is not None and found["other"] is None
    took = time.process_time() - began
    print(f"loop: {matched} lines matched")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=("nginx", "redis"), default="nginx")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--seconds", type=int, default=5, help="how long the load runs")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        measure_reader(options.read)
        return
    folder = Path(tempfile.mkdtemp(prefix="strace-log-"))
    folder.chmod(0o755)
    try:
        log = make_log(options.server, folder, options.seconds, int(options.gigabytes * 1e9))
        size = log.stat().st_size
        command = [sys.executable, "-m", "benchmarks.strace_log", "--read", str(log)]
        told, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        took, lines, calls, events, unread = (float(part) for part in told.split())
        print(
            f"{options.server}: {size / 1e9:.2f} GB, {lines:.0f} lines, {calls:.0f} calls, {unread:.0f} not understood"
        )
        print(f"reader: {took:.1f} s, {lines / took:.0f} lines/s, {size / took / 1e6:.0f} MB/s, {events:.0f} events")
        print(memory)
        loop = measure_loop(log)
        print(f"loop: {loop:.1f} s, {lines / loop:.0f} lines/s; the reader is {loop / took:.2f} times as fast")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
