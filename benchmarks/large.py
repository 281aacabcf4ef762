"""Ten million recorded syscalls: does memory grow with the connections, or with the events?

    python -m benchmarks.large [--events 1,5,10] [--connections 20000] [--folder /var/tmp] [--stacks]

Writes recordings of 1, 5 and 10 million events on the same 20 000 connections (batch by batch, as `record` would: an
event-driven server with keepalive connections, its handshakes as pcapng, two looks at every socket), then loads, joins
and judges each in a fresh process, while a thread reads how much anonymous memory the process holds (RssAnon of
/proc/self/status) and how much of files (RssFile: the kernel takes it back when it needs the room). The peer of each
is the same program with the fewest events. With `--stacks`: where the program was when it held most.

The recordings need 140 bytes an event on disk for the time of the run, the analysis another 250.

2 CPUs, beside other work (seconds vary by half):

      980,000 events:  4.7 s ( 2.9 s to the session), 305 MiB anonymous at the peak,   325 MiB of files, 1.00
    5,000,000 events: 15.4 s ( 8.3 s to the session), 295 MiB anonymous at the peak, 1 860 MiB of files, 0.97
    9,980,000 events: 53.0 s (17.1 s to the session), 321 MiB anonymous at the peak, 3 685 MiB of files, 1.05
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.analysis import LIVE, WORKERS, synthesise
from sockscope.model.events import Events
from sockscope.model.info import PacketCoverage, SessionInfo, SocketCoverage
from sockscope.model.packets import Packets
from sockscope.model.sockets import OWNER_DTYPE, Sockets
from sockscope.recording.writer import Writer
from sockscope.sources.packets.pcapng_writer import enhanced_packets, interface_description, section_header

_PIECE_EVENTS = 1_000_000
_BATCH_EVENTS = 65_536
_FRAME_BYTES = 56
_SAMPLE_S = 0.01


def make(folder: Path, events: int, connections: int) -> int:
    """Write a recording; how many events it has."""
    step = WORKERS * LIVE
    each = max(step, _PIECE_EVENTS * connections // events // step * step)
    writer = Writer(folder)
    infos: list[SessionInfo] = []
    count = sockets = 0
    packets = 0
    with open(folder / "packets.pcapng", "wb") as capture:
        capture.write(section_header("benchmarks.large") + interface_description("lo", 1, 65535))
        for first in range(0, connections, each):
            many = min(each, connections - first)
            share = events // connections * many
            seed, piece, wire, looks, info = synthesise(share, many, first=first)
            if not infos:
                writer.begin(replace(info, complete=False), seed)
            infos.append(info)
            for batch in _batches(piece):
                writer.write_events(batch)
            # One listener in all the looks will do.
            rows = looks.records if not first else looks.records[looks.records["cookie"] > 1]
            writer.write_sockets(rows)
            capture.write(_frames(wire))
            count, sockets, packets = count + len(piece), sockets + len(rows), packets + len(wire)
    ends_ns = infos[-1].ended_ns
    begins_ns = infos[0].started_ns
    info = replace(
        infos[0],
        ended_ns=ends_ns,
        clock_samples=((begins_ns, begins_ns), (ends_ns, ends_ns)),
        syscalls=replace(infos[0].syscalls, event_count=count),
        packets=PacketCoverage(available=True, seen_count=packets),
        sockets=SocketCoverage(snapshot_count=2),
    )
    writer.finish(info, Sockets(records=rows[:0], owners=np.zeros(0, OWNER_DTYPE)))
    return count


def _batches(piece: Events) -> Iterator[Events]:
    """In the order in which calls returned, cut as a consumer of the ring cuts them."""
    order = np.argsort(piece.records["exit_ns"], kind="stable")
    for at in range(0, len(order), _BATCH_EVENTS):
        yield Events(records=piece.records[order[at : at + _BATCH_EVENTS]], blob=piece.blob)


def _frames(packets: Packets) -> bytes:
    """Ethernet, IPv4, TCP without payload."""
    records = packets.records
    frames = np.zeros((len(records), _FRAME_BYTES), np.uint8)
    frames[:, 12] = 8
    frames[:, 14] = 0x45
    frames[:, 17] = 40
    frames[:, 22] = 64
    frames[:, 23] = 6
    frames[:, 26:30], frames[:, 30:34] = records["src"][:, 12:], records["dst"][:, 12:]
    for at, name, kind in ((34, "sport", ">u2"), (36, "dport", ">u2"), (38, "seq", ">u4"), (42, "ack", ">u4")):
        word = np.ascontiguousarray(records[name].astype(kind)).view(np.uint8).reshape(len(records), -1)
        frames[:, at : at + word.shape[1]] = word
    frames[:, 46] = 0x50
    frames[:, 47] = records["flags"]
    frames[:, 48] = 0xFF
    size = np.full(len(records), 54)
    return enhanced_packets(frames, size, size, records["time_ns"].astype(np.int64), 0)


class _Watch(threading.Thread):
    """Samples this process's memory, and where the main thread was when it held most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.of_files = 0
        self.stacks: dict[str, int] = {}
        self._over = threading.Event()
        self._main = threading.main_thread().ident or 0

    def run(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            anonymous, of_files = resident()
            self.anonymous, self.of_files = max(self.anonymous, anonymous), max(self.of_files, of_files)
            names = []
            frame = sys._current_frames().get(self._main)
            while frame is not None:
                if "sockscope" in frame.f_code.co_filename:
                    names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                frame = frame.f_back
            place = " > ".join(reversed(names[:4]))
            self.stacks[place] = max(self.stacks.get(place, 0), anonymous)

    def end(self) -> None:
        self._over.set()
        self.join()


def resident() -> tuple[int, int]:
    """Anonymous and file-backed resident memory of this process, MiB."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, of_files, shared = (int(told[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem"))
    return anonymous // 1024, (of_files + shared) // 1024


def judge(folder: Path, *, stacks: bool) -> None:
    """Load, join and judge; print what it took as JSON."""
    from sockscope.pipeline.analyze import make_report
    from sockscope.pipeline.load import load_session

    watch = _Watch()
    base, _ = resident()
    watch.start()
    began = time.perf_counter()
    session = load_session(folder)
    built = time.perf_counter() - began
    held, _ = resident()
    report = make_report(session)
    took = time.perf_counter() - began
    watch.end()
    if stacks:
        for place, most in sorted(watch.stacks.items(), key=lambda one: -one[1])[:40]:
            print(f"{most:6} MiB {place}", file=sys.stderr)
    told = {
        "events": len(session.events),
        "connections": len(session.connections),
        "findings": len(report.findings),
        "built_s": built,
        "took_s": took,
        "base": base,
        "held": held,
        "anonymous": watch.anonymous,
        "of_files": watch.of_files,
    }
    print(json.dumps(told))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", default="1,5,10", help="millions, fewest first")
    options.add_argument("--connections", type=int, default=20_000)
    options.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    options.add_argument("--stacks", action="store_true")
    options.add_argument("--judge", type=Path, help="a recording made before: this process's own part")
    options.add_argument("--keep", action="store_true", help="keep the recordings in --folder, and use them again")
    given = options.parse_args()
    if given.judge is not None:
        judge(given.judge, stacks=given.stacks)
        return
    fewest: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        for millions in given.events.split(","):
            name = f"large-{millions}m-{given.connections}"
            folder = (given.folder if given.keep else Path(made)) / name
            if not folder.exists():
                make(folder, int(float(millions) * 1e6), given.connections)
            command = [sys.executable, "-m", "benchmarks.large", "--judge", str(folder)]
            told = json.loads(
                subprocess.run(
                    command + ["--stacks"] * given.stacks, stdout=subprocess.PIPE, check=True, text=True
                ).stdout
            )
            fewest = fewest or told
            print(
                f"{told['events']:,} events -> {told['connections']:,} connections, {told['findings']} findings:"
                f" {told['took_s']:.1f} s ({told['built_s']:.1f} s of it to the session),"
                f" {told['events'] / told['took_s']:,.0f} events/s\n"
                f"  anonymous memory {told['anonymous']} MiB at its peak ({told['base']} MiB of it before the load,"
                f" {told['held']} MiB in the session), of files {told['of_files']} MiB;"
                f" {told['anonymous'] / fewest['anonymous']:.2f} times the anonymous memory"
                f" for {told['events'] / fewest['events']:.1f} times the events",
                flush=True,
            )


if __name__ == "__main__":
    main()
