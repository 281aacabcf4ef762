"""`sockscope diagnose --port N`: what is wrong with the sockets of whoever serves that port."""

from __future__ import annotations

from typing import Annotated

import typer

from sockscope.cli import options as shared
from sockscope.cli.keep import flight
from sockscope.cli.output import Output
from sockscope.errors import UsageError
from sockscope.pipeline.options import EngineChoice, RecordOptions

EXAMPLES = (
    "sudo sockscope diagnose --port 18135",
    "sudo sockscope diagnose --pid 812 --duration 30 --html report.html",
    "sudo sockscope diagnose --port 80 --json - --fail-on error",
)

DURATION_S = 10.0


def diagnose(
    port: Annotated[
        int | None, typer.Option("--port", "-p", metavar="N", help="Everything that serves it, also from later on.")
    ] = None,
    pid: Annotated[list[int] | None, typer.Option("--pid", metavar="PID", help="A process; may be repeated.")] = None,
    duration: shared.DurationOption = None,
    engine: shared.EngineOption = EngineChoice.AUTO,
    payload: shared.PayloadOption = 64,
    no_pin: shared.NoPinOption = False,
    no_redact: shared.NoRedactOption = False,
    no_packets: shared.NoPacketsOption = False,
    no_sockets: shared.NoSocketsOption = False,
    keep: shared.KeepOption = None,
    output: shared.OutputOption = None,
    html: shared.HtmlOption = None,
    json: shared.JsonOption = None,
    select: shared.SelectOption = "",
    ignore: shared.IgnoreOption = "",
    fail_on: shared.FailOnOption = shared.FailOn.warning,
    verbose: shared.VerboseOption = False,
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
    wanted = Output(html=html, json=json, select=select, ignore=ignore, fail_on=fail_on, verbose=verbose)
    wanted.check()
    keep_s, alarm = flight(keep, output, wanted)
    from sockscope.cli.watch import watch
    from sockscope.pipeline.record import Watcher

    record_options = RecordOptions(
        pids=tuple(pid or ()),
        port=port,
        # A flight recorder goes on until it is stopped.
        duration_s=DURATION_S if duration is None and keep is None else duration,
        engine=engine,
        payload_bytes=payload,
        pin=not no_pin,
        keep_s=keep_s,
        alarm=alarm,
        redact=not no_redact,
        packets=not no_packets,
        sockets=not no_sockets,
    )
    code, _ = watch(record_options, wanted, keep=output, watcher=Watcher())
    return code
