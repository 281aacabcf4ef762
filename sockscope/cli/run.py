"""`sockscope run -- CMD…`: a command watched from its first syscall."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sockscope.cli import options as shared
from sockscope.cli.keep import flight
from sockscope.cli.output import Output
from sockscope.pipeline.options import EngineChoice, RecordOptions

EXAMPLES = (
    "sudo sockscope run -- ./server --port 8080",
    "sudo sockscope run --fail-on warning --json out.json -- pytest tests/server",
)


def run(
    command: Annotated[list[str], typer.Argument(metavar="-- CMD…", help="The command and its arguments.")],
    duration: shared.DurationOption = None,
    engine: shared.EngineOption = EngineChoice.AUTO,
    payload: shared.PayloadOption = 64,
    no_pin: shared.NoPinOption = False,
    no_redact: shared.NoRedactOption = False,
    no_packets: shared.NoPacketsOption = False,
    no_sockets: shared.NoSocketsOption = False,
    propagate_exit: Annotated[
        bool, typer.Option("--propagate-exit", help="Exit as the command did (128 + signal where one ended it).")
    ] = False,
    keep: shared.KeepOption = None,
    output: shared.OutputOption = None,
    html: shared.HtmlOption = None,
    json: shared.JsonOption = None,
    select: shared.SelectOption = "",
    ignore: shared.IgnoreOption = "",
    fail_on: shared.FailOnOption = shared.FailOn.warning,
    verbose: shared.VerboseOption = False,
) -> int:
    """Start a command, watch it from its first syscall to its end, then say what is wrong.

    The command keeps the terminal: Ctrl-C is its to handle, a second one ends it. With --json - its
    standard output goes to standard error, so that standard output carries JSON alone.
    """
    wanted = Output(html=html, json=json, select=select, ignore=ignore, fail_on=fail_on, verbose=verbose)
    wanted.check()
    keep_s, alarm = flight(keep, output, wanted)
    from sockscope.cli.watch import watch
    from sockscope.pipeline.record import Watcher

    record_options = RecordOptions(
        command=tuple(command),
        duration_s=duration,
        engine=engine,
        payload_bytes=payload,
        pin=not no_pin,
        keep_s=keep_s,
        alarm=alarm,
        redact=not no_redact,
        packets=not no_packets,
        sockets=not no_sockets,
    )
    if wanted.json_to_stdout:
        # The command inherits descriptor 1; Python goes on writing to the real one.
        real = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = os.fdopen(real, "w", encoding="utf-8")
    code, recorded = watch(record_options, wanted, keep=output, watcher=Watcher(), show_progress=False)
    if propagate_exit and recorded.exit_status is not None:
        status = os.waitstatus_to_exitcode(recorded.exit_status)
        return status if status >= 0 else 128 - status
    return code
