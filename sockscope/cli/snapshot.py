"""`sockscope snapshot`: the kernel's sockets now, with owners and causes."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sockscope.cli.output import check_writable, writing
from sockscope.errors import UsageError
from sockscope.model.tcp import TcpState

if TYPE_CHECKING:
    from sockscope.model.snapshot import Snapshot
    from sockscope.sources.sockets.fd_scan import FdScan

_STATES = {
    **{state.name.replace("_", ""): state for state in TcpState if state not in (0, TcpState.NEW_SYN_RECV)},
    "ESTAB": TcpState.ESTABLISHED,
    "LISTENING": TcpState.LISTEN,
    "CLOSED": TcpState.CLOSE,
    "UNCONN": TcpState.CLOSE,
    "UNCONNECTED": TcpState.CLOSE,
}
"""Every spelling, capitals without separators: the kernel's and ss's differ in nothing else."""

DEFAULT_WATCH_S = 2.0
WIDE = 120
EXAMPLES = (
    "Examples: sockscope snapshot --port 8080 | sockscope snapshot --state close-wait | "
    "sockscope snapshot --pid 812 --watch"
)


def parse_state(text: str) -> TcpState:
    """A state in ss's or the kernel's spelling: close-wait, CLOSE_WAIT.

    Raises:
        UsageError: there is none of that name; says the nearest.
    """
    from difflib import get_close_matches

    key = text.upper().replace("_", "").replace("-", "")
    if key in _STATES:
        return _STATES[key]
    near = [_STATES[name].name for name in get_close_matches(key, _STATES, n=3, cutoff=0.5)]
    names = list(dict.fromkeys(near)) or [state.name for state in dict.fromkeys(_STATES.values())]
    raise UsageError(
        f"there is no socket state {text!r}", help_text=f"{'did you mean' if near else 'one of'} {', '.join(names)}"
    )


def snapshot(
    port: Annotated[
        list[int] | None, typer.Option("--port", "-p", metavar="N", help="Only this port, at either end (repeatable).")
    ] = None,
    pid: Annotated[
        int | None, typer.Option("--pid", metavar="PID", help="Only what this process and its descendants hold.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", "-s", metavar="STATE", help="Only this state: close-wait, CLOSE_WAIT (repeatable)."),
    ] = None,
    udp: Annotated[bool, typer.Option("--udp", "-u", help="UDP sockets instead of TCP.")] = False,
    unix: Annotated[bool, typer.Option("--unix", "-x", help="Unix sockets instead of TCP.")] = False,
    everything: Annotated[bool, typer.Option("--all", "-a", help="TCP, UDP and unix sockets.")] = False,
    info: Annotated[bool, typer.Option("--info", "-i", help="Round trip, window and retransmissions, too.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again and again, every SECONDS (2), until Ctrl-C.")
    ] = False,
    seconds: Annotated[float | None, typer.Argument(metavar="[SECONDS]", min=0.1, help="For --watch.")] = None,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON (sockscope-snapshot/1).")
    ] = None,
) -> None:
    """Show the sockets like ss -tanpi, with owners, queues, and the cause of each state.

    Says of each CLOSE_WAIT whether it is owned (by whom), orphaned, or was never accepted.
    """
    # Before anything slow is imported: the kernel needs the time for the descriptors.
    from sockscope.sources.sockets.fd_scan import FdScan

    for number in port or ():
        if not 1 <= number <= 65535:
            raise UsageError(f"port {number} is out of range", help_text="ports are 1 to 65535")
    if seconds is not None and not watch:
        raise UsageError(f"what is {seconds:g}?", help_text=f"sockscope snapshot --watch {seconds:g}")
    if json_path is not None and json_path != "-":
        check_writable(Path(json_path))
    states = [parse_state(text) for text in state] if state else None
    while True:
        with FdScan() as scan, _no_collections():
            found = _look(
                scan, port or None, pid, states, udp=udp, unix=unix, everything=everything, info=info, js=json_path
            )
            _show(found, json_path, info=info, watch=watch)
        if not watch:
            return
        time.sleep(seconds or DEFAULT_WATCH_S)


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


def _look(
    scan: FdScan,
    ports: Collection[int] | None,
    pid: int | None,
    states: Collection[TcpState] | None,
    *,
    udp: bool,
    unix: bool,
    everything: bool,
    info: bool,
    js: str | None,
) -> Snapshot:
    from sockscope.sources.sockets.look import look
    from sockscope.sources.sockets.sock_diag import ALL_QUERIES, TCP_QUERIES, UDP_QUERIES, UNIX_QUERIES

    families = ALL_QUERIES if everything else (UDP_QUERIES if udp else ()) + (UNIX_QUERIES if unix else ())
    return look(
        scan=scan,
        families=families or TCP_QUERIES,
        ports=ports,
        pid=pid,
        states=states,
        tcp_info=info or js is not None,
    )


def _show(found: Snapshot, json_path: str | None, *, info: bool, watch: bool) -> None:
    from sockscope.reports import snapshot as report

    if json_path is not None:
        _write_json(report.to_json(found), json_path)
        return
    if not sys.stdout.isatty():
        sys.stdout.write(report.plain(found, info=info))
        sys.stdout.flush()
        return
    from rich.console import Console

    console = Console(highlight=False)
    if watch:
        console.clear()
    # A screen that is drawn again shows what fits on it.
    fitting = max(5, console.height - 5) if watch else None
    table, left_out = report.table(found, info=info, rows=fitting, narrow=console.width < WIDE)
    console.print(report.summary(found), style="bold", markup=False)
    console.print(table)
    if left_out:
        note = f"… and {left_out} more: choose with --state, --port or --pid, or pipe it to see all"
        console.print(note, style="dim", markup=False)


def _write_json(text: str, path: str) -> None:
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with writing(Path(path)):
        Path(path).write_text(text)
