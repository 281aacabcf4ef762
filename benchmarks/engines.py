"""What being watched costs a server: sockscope's engines, strace, perf trace and bpftrace, in turn under one load.

Run as root: `python -m benchmarks.engines [--quick] [--loads nginx …] [--rounds 5] [--seconds 3]`. Needs nginx, wrk,
redis-server, redis-benchmark and gunicorn; strace, perf and bpftrace where they are to be compared. The watchers take
turns within each round, since a shared machine is never twice the same; a share is of the untraced run of its own
round, and the tables give medians.

Goals: bpf at least 0.85 of untraced with 64-byte payloads and nothing lost; ptrace at least 4x strace as people run it,
1x strace pinned to its target's CPU, 5x strace with 2 workers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.loads import LOADS, Served
from benchmarks.watchers import Watcher, available


@dataclass(slots=True, kw_only=True)
class Row:
    """One watcher's figures, a value a round."""

    rates: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    """Share of one CPU that the watcher itself used meanwhile."""
    events: int = 0
    lost: int | None = None


def turn(served: Served, watcher: Watcher, row: Row, seconds: float) -> None:
    with watcher(served.pids) as watch:
        cpu_s, begun = watch.cpu_s(), time.monotonic()
        row.rates.append(served.rate(seconds))
        row.cpus.append((watch.cpu_s() - cpu_s) / (time.monotonic() - begun))
    row.events += watch.events or 0
    if watch.lost is not None:
        row.lost = (row.lost or 0) + watch.lost


def measure(served: Served, watchers: Mapping[str, Watcher], rounds: int, seconds: float) -> dict[str, Row]:
    rows = {name: Row() for name in watchers}
    served.rate(1)
    for _ in range(rounds):
        for name, watcher in watchers.items():
            turn(served, watcher, rows[name], seconds)
    return rows


def table(rows: Mapping[str, Row]) -> Sequence[str]:
    """Markdown."""
    lines = ["| | requests/s | share of untraced | its own CPU | events | lost |", "|---|---|---|---|---|---|"]
    base = rows["untraced"].rates
    for name, row in rows.items():
        share = statistics.median(ours / theirs for ours, theirs in zip(row.rates, base, strict=True))
        middle, cpu = statistics.median(row.rates), statistics.median(row.cpus)
        seen = (f"{row.events:,}", f"{row.lost:,}") if row.lost is not None else ("", "")
        lines.append(f"| {name} | {middle:,.0f} | {share:.3f} | {cpu:.0%} | {seen[0]} | {seen[1]} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", nargs="+", default=[""], help="words that a load's name begins with")
    parser.add_argument("--watchers", nargs="+", default=[""], help="words that a watcher's name begins with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of one second: whether it works")
    asked = parser.parse_args()
    rounds, seconds = (1, 1.0) if asked.quick else (asked.rounds, asked.seconds)
    found, missing = available()
    watchers = {n: w for n, w in found.items() if n == "untraced" or n.startswith(tuple(asked.watchers))}
    print("\n".join(missing))
    for name, load in LOADS.items():
        if not name.startswith(tuple(asked.loads)):
            continue
        with load() as served:
            rows = measure(served, watchers, rounds, seconds)
        print(f"\n{name}: medians of {rounds} rounds of {seconds:g} s\n")
        print("\n".join(table(rows)), flush=True)


if __name__ == "__main__":
    main()
