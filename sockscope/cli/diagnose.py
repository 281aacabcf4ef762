"""`sockscope diagnose --port N`: what is wrong with the sockets of whoever serves that port."""

from __future__ import annotations

from typing import Annotated

import typer

from sockscope.cli.output import Output
from sockscope.cli.watching import Watching
from sockscope.errors import UsageError

EXAMPLES = (
    "sudo sockscope diagnose --port 18135",
    "sudo sockscope diagnose --pid 812 --duration 30 --html report.html",
    "sudo sockscope diagnose --port 80 --json - --fail-on error",
)

DURATION_S = 10.0


def diagnose(
    watching: Watching,
    written: Output,
    port: Annotated[
        int | None, typer.Option("--port", "-p", metavar="N", help="Everything that serves it, also from later on.")
    ] = None,
    pid: Annotated[list[int] | None, typer.Option("--pid", metavar="PID", help="A process; may be repeated.")] = None,
) -> int:
    """Watch everything that serves a port (10 seconds), then say what is wrong, why, and the mend.

    Processes that begin to serve the port meanwhile (a restart, one more worker) are watched, too.
    """
    if port is None and not pid:
        raise UsageError(
            "name the server: --port N, or --pid PID", help_text="sockscope snapshot --state listen shows who listens"
        )
    if port is not None and pid:
        raise UsageError("--port and --pid cannot both be given", help_text="--pid alone follows just that process")
    written.check()
    options = watching.of(written, pids=tuple(pid or ()), port=port, usual_duration_s=DURATION_S)
    from sockscope.cli.watch import watch
    from sockscope.pipeline.record import Watcher

    code, _ = watch(options, written, keep=watching.output, watcher=Watcher())
    return code
