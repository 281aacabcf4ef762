"""What `sockscope snapshot` does, apart from its options: without a parser, whose imports cost as much as the look."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sockscope.sources.child import NO_THREADS
from sockscope.sources.sockets.netlink import ALL_QUERIES, TCP_QUERIES, UDP_QUERIES, UNIX_QUERIES, Ahead, Query
from sockscope.sources.sockets.owner_source import OwnerSource

if TYPE_CHECKING:
    from sockscope.model.snapshot import Snapshot
    from sockscope.model.tcp import TcpState
    from sockscope.sources.sockets.owner_source import Scan

WIDE = 120
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The command's options, checked. `every_s`: again and again, so many seconds apart."""

    ports: Collection[int] | None = None
    pid: int | None = None
    states: Collection[TcpState] | None = None
    udp: bool = False
    unix: bool = False
    everything: bool = False
    info: bool = False
    every_s: float | None = None
    json_path: str | None = None


def run(wanted: Wanted) -> None:
    """Look and show; for `every_s` until Ctrl-C."""
    # Nothing is launched here, and numpy comes later.
    os.environ.update(NO_THREADS)
    _keep_freed_memory()
    with OwnerSource() as source:
        while True:
            # Under way before anything slow is imported: the kernel needs the time for the descriptors.
            with source.scan() as scan, _ask_ahead(wanted) as ahead, _no_collections():
                _show(_look(scan, source, ahead, wanted), wanted)
            if wanted.every_s is None:
                return
            time.sleep(wanted.every_s)


def _keep_freed_memory() -> None:
    """Large arrays come and go: their pages are used again instead of given back, to be cleared by the kernel."""
    # Not every libc has it. Source: mallopt(3).
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


@contextmanager
def _no_collections() -> Iterator[None]:
    """A hundred thousand lines make no cycles, but the collector would look through them again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _ask_ahead(wanted: Wanted) -> Ahead:
    """The tables, where the look is not narrowed down; others are asked for when the filter can be made."""
    narrowed = wanted.ports is not None or wanted.states is not None or wanted.pid is not None
    return Ahead(() if narrowed else _queries(wanted), tcp_info=_with_info(wanted))


def _queries(wanted: Wanted) -> tuple[Query, ...]:
    chosen = (UDP_QUERIES if wanted.udp else ()) + (UNIX_QUERIES if wanted.unix else ())
    return ALL_QUERIES if wanted.everything else chosen or TCP_QUERIES


def _with_info(wanted: Wanted) -> bool:
    return wanted.info or wanted.json_path is not None


def _look(scan: Scan, source: OwnerSource, ahead: Ahead, wanted: Wanted) -> Snapshot:
    from sockscope.sources.sockets.look import look

    return look(
        scan=scan,
        source=source,
        ahead=ahead,
        families=_queries(wanted),
        ports=wanted.ports,
        pid=wanted.pid,
        states=wanted.states,
        tcp_info=_with_info(wanted),
    )


def _show(found: Snapshot, wanted: Wanted) -> None:
    if wanted.json_path is not None:
        from sockscope.reports.snapshot import to_json

        _write_json(to_json(found), wanted.json_path)
    elif sys.stdout.isatty():
        _draw(found, wanted)
    else:
        from sockscope.reports.snapshot_text import plain_blocks

        _write(plain_blocks(found, info=wanted.info))


def _write(blocks: Iterator[bytes]) -> None:
    """UTF-8 to stdout, without a text of it all where stdout takes UTF-8."""
    if sys.stdout.encoding.lower().replace("-", "") == "utf8" and hasattr(sys.stdout, "buffer"):
        sys.stdout.flush()
        sys.stdout.buffer.writelines(blocks)
    else:
        for block in blocks:
            sys.stdout.write(block.decode())
    sys.stdout.flush()


def _draw(found: Snapshot, wanted: Wanted) -> None:
    from rich.console import Console

    from sockscope.reports.snapshot import summary, table

    console = Console(highlight=False)
    if wanted.every_s is not None:
        console.clear()
    # A screen that is drawn again shows what fits on it.
    fitting = max(5, console.height - 5) if wanted.every_s is not None else None
    rows, left_out = table(found, info=wanted.info, rows=fitting, narrow=console.width < WIDE)
    console.print(summary(found), style="bold", markup=False)
    console.print(rows)
    if left_out:
        note = f"… and {left_out} more: choose with --state, --port or --pid, or pipe it to see all"
        console.print(note, style="dim", markup=False)


def _write_json(text: str, path: str) -> None:
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    from pathlib import Path

    from sockscope.cli.output import writing

    with writing(Path(path)):
        Path(path).write_text(text)
