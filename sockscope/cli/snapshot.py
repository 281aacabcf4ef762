"""`sockscope snapshot`: the kernel's sockets now, with owners and causes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sockscope.cli.output import check_writable
from sockscope.errors import UsageError
from sockscope.model.tcp import TcpState

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
EXAMPLES = (
    "sudo sockscope snapshot --port 8080",
    "sudo sockscope snapshot --state close-wait",
    "sudo sockscope snapshot --pid 812 --watch",
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
    for number in port or ():
        if not 1 <= number <= 65535:
            raise UsageError(f"port {number} is out of range", help_text="ports are 1 to 65535")
    if seconds is not None and not watch:
        raise UsageError(f"what is {seconds:g}?", help_text=f"sockscope snapshot --watch {seconds:g}")
    if json_path is not None and json_path != "-":
        check_writable(Path(json_path))
    states = [parse_state(text) for text in state] if state else None
    from sockscope.cli.snapshot_run import Wanted, run

    run(
        Wanted(
            ports=port or None,
            pid=pid,
            states=states,
            udp=udp,
            unix=unix,
            everything=everything,
            info=info,
            every_s=(seconds or DEFAULT_WATCH_S) if watch else None,
            json_path=json_path,
        )
    )
