"""Live capture beside a busy server, and reading a large capture: `python -m benchmarks.capture`.

Capture: nginx (one worker, its own configuration, a free port of loopback) under `wrk -t1 -c16`, in turn
without capture, with sockscope's, and with `tcpdump -w`. Printed: throughput as a share of that without
capture, and packets lost, from the captures' own counts.

Reading: a made pcap of 2 M packets in 200 000 connections, decoded and grouped into flows in a process of
its own: seconds, peak memory, and where tshark is installed the ratio to its conversation table.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sockscope.analysis.wire.flows import build_flows, monotonic_ns
from sockscope.fixture import free_port
from sockscope.sources.packets.files import read_packets
from sockscope.sources.packets.live import Capture

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{ access_log off; keepalive_requests 1000000000;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello\\n"; }} }} }}
"""
_SNAP_BYTES = 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One run of wrk: requests a second; packets captured and lost (None: the tool did not say)."""

    rate: float
    seen: int | None = None
    lost: int | None = None


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """An nginx of our own; its port."""
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=port))
    server = subprocess.Popen(["nginx", "-c", str(configuration), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield port
    finally:
        server.terminate()
        server.wait()


def load(port: int, seconds: int) -> float:
    """Requests a second that wrk reaches."""
    said = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{seconds}s", f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True
    )
    found = re.search(r"Requests/sec:\s+([\d.]+)", said.stdout)
    if found is None:
        raise SystemExit(f"wrk said no rate: {said.stdout}{said.stderr}")
    return float(found[1])


def bare(port: int, seconds: int, _folder: Path) -> Turn:
    return Turn(rate=load(port, seconds))


def with_sockscope(port: int, seconds: int, folder: Path) -> Turn:
    path = folder / "sockscope.pcapng"
    capture = Capture(interfaces=["lo"], ports=[port], path=path, snap_bytes=_SNAP_BYTES)
    capture.start()
    try:
        rate = load(port, seconds)
    finally:
        coverage = capture.stop()
    path.unlink()
    return Turn(rate=rate, seen=coverage.seen_count, lost=coverage.lost_count)


def with_tcpdump(port: int, seconds: int, folder: Path) -> Turn:
    path = folder / "tcpdump.pcap"
    command = ["tcpdump", "-i", "lo", "-s", str(_SNAP_BYTES), "-w", str(path), "port", str(port)]
    tool = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.7)
        rate = load(port, seconds)
        time.sleep(0.3)
    finally:
        tool.terminate()
        _, said = tool.communicate()
    path.unlink(missing_ok=True)
    seen = re.search(r"(\d+) packets? captured", said)
    lost = re.search(r"(\d+) packets? dropped by kernel", said)
    return Turn(rate=rate, seen=int(seen[1]) if seen else None, lost=int(lost[1]) if lost else None)


def live(rounds: int, seconds: int) -> None:
    """The three in turn, so that what else the machine does falls on all alike."""
    tools: dict[str, Callable[[int, int, Path], Turn]] = {"no capture": bare, "sockscope": with_sockscope}
    if shutil.which("tcpdump"):
        tools["tcpdump -w"] = with_tcpdump
    turns: dict[str, list[Turn]] = {name: [] for name in tools}
    with tempfile.TemporaryDirectory(prefix="sockscope-benchmark-") as name, nginx(Path(name)) as port:
        load(port, 1)
        for _ in range(rounds):
            for tool, run in tools.items():
                turns[tool].append(run(port, seconds, Path(name)))
    base = statistics.median(t.rate for t in turns["no capture"])
    print(f"{'':12} {'requests/s':>11} {'share':>6} {'packets/s':>10} {'captured':>10} {'lost':>8}")
    for tool, done in turns.items():
        rate = statistics.median(t.rate for t in done)
        line = f"{tool:12} {rate:11.0f} {rate / base:6.2f}"
        seen = sum(t.seen or 0 for t in done)
        if seen:
            line += f" {seen / len(done) / seconds:10.0f} {seen:10} {sum(t.lost or 0 for t in done):8}"
        print(line)


def make_capture(path: Path, connections: int) -> None:
    """Ten packets a connection: handshake, request, answer, both FINs; many connections at a time."""
    # Per packet of a connection: sender, flags, payload, seq and ack from the senders' first numbers.
    script = np.array(
        [
            (0, 0x02, 0, 0, 0),
            (1, 0x12, 0, 0, 1),
            (0, 0x10, 0, 1, 1),
            (0, 0x18, 78, 1, 1),
            (1, 0x10, 0, 1, 79),
            (1, 0x18, 200, 1, 79),
            (0, 0x10, 0, 79, 201),
            (0, 0x11, 0, 79, 201),
            (1, 0x11, 0, 201, 80),
            (0, 0x10, 0, 80, 202),
        ]
    )
    random = np.random.default_rng(1)
    connection = np.repeat(np.arange(connections), len(script))
    step = np.tile(np.arange(len(script)), connections)
    pace = random.integers(5_000, 400_000, connections)
    time_ns = connection * 50_000 + step * pace[connection]
    order = np.argsort(time_ns, kind="stable")
    connection, step, time_ns = connection[order], step[order], time_ns[order] + 1_700_000_000 * 10**9
    side, flags, payload, seq, ack = script[step].T
    snap = 142
    captured = np.minimum(54 + payload, snap)
    rows = np.zeros((len(step), 16 + snap), np.uint8)

    def put(at: int, values: npt.NDArray[np.int64] | int, dtype: str) -> None:
        column = np.ascontiguousarray(np.broadcast_to(np.asarray(values), len(step)).astype(dtype))
        rows[:, at : at + column.itemsize] = column.view(np.uint8).reshape(len(step), -1)

    put(0, time_ns // 10**9, "<u4")
    put(4, time_ns % 10**9 // 1000, "<u4")
    put(8, captured, "<u4")
    put(12, 54 + payload, "<u4")
    put(16 + 12, 0x0800, ">u2")
    ip, tcp = 16 + 14, 16 + 34
    put(ip, 0x45, "u1")
    put(ip + 2, 40 + payload, ">u2")
    put(ip + 9, 6, "u1")
    client, server = 0x0A000000 + connection // 50_000, 0x0A800001
    put(ip + 12, np.where(side == 0, client, server), ">u4")
    put(ip + 16, np.where(side == 0, server, client), ">u4")
    port = 10_000 + connection % 50_000
    put(tcp, np.where(side == 0, port, 80), ">u2")
    put(tcp + 2, np.where(side == 0, 80, port), ">u2")
    mine = connection * 7919 + side * 1_000_000
    put(tcp + 4, (mine + seq) % 2**32, ">u4")
    put(tcp + 8, (connection * 7919 + (1 - side) * 1_000_000 + ack) % 2**32, ">u4")
    put(tcp + 12, 0x50, "u1")
    put(tcp + 13, flags, "u1")
    put(tcp + 14, 512, ">u2")
    used = np.arange(rows.shape[1]) < (16 + captured)[:, None]
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        file.write(rows[used].tobytes())


def read_once(path: Path) -> None:
    """In a process of its own: decode, flows; a line of JSON."""
    begin = time.perf_counter()
    found = read_packets(path)
    read_s = time.perf_counter() - begin
    flows, _ = build_flows(found.packets, monotonic_ns(found.packets, ()))
    total_s = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {"packets": len(found.packets), "flows": len(flows), "read_s": read_s, "total_s": total_s, "peak": peak}
    print(json.dumps(facts))


def reading(connections: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sockscope-benchmark-") as name:
        path = Path(name) / "large.pcap"
        # Made in another process, so that its memory is not counted.
        for command in (["make", str(path), str(connections)],):
            subprocess.run([sys.executable, "-m", "benchmarks.capture", *command], check=True)
        best: dict[str, float] = {}
        for _ in range(rounds):
            said = subprocess.run(
                [sys.executable, "-m", "benchmarks.capture", "read-once", str(path)],
                check=True,
                capture_output=True,
                text=True,
            )
            facts: dict[str, float] = json.loads(said.stdout)
            if not best or facts["total_s"] < best["total_s"]:
                best = facts
        print(
            f"{best['packets']:.0f} packets, {best['flows']:.0f} connections, {path.stat().st_size / 1e6:.0f} MB: "
            f"read in {best['read_s']:.2f} s, with flows {best['total_s']:.2f} s, peak {best['peak'] / 2**20:.0f} MiB"
        )
        if shutil.which("tshark"):
            begin = time.perf_counter()
            subprocess.run(
                ["tshark", "-q", "-n", "-z", "conv,tcp", "-r", str(path)],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            theirs = time.perf_counter() - begin
            print(f"tshark -q -z conv,tcp: {theirs:.1f} s, {theirs / best['total_s']:.1f} times as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each run of wrk")
    parser.add_argument("--connections", type=int, default=200_000, help="in the capture that is read")
    parser.add_argument("what", nargs="*", help="live, reading (default: both)")
    options = parser.parse_args()
    what: list[str] = options.what
    if what[:1] == ["make"]:
        make_capture(Path(what[1]), int(what[2]))
    elif what[:1] == ["read-once"]:
        read_once(Path(what[1]))
    else:
        if "live" in what or not what:
            live(options.rounds, options.seconds)
        if "reading" in what or not what:
            reading(options.connections, options.rounds)


if __name__ == "__main__":
    main()
