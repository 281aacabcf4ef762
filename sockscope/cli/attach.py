"""`sockscope attach PID`: follow a process and its children, live."""

from __future__ import annotations

from typing import Annotated

import typer

from sockscope.cli import options as shared
from sockscope.cli.keep import flight
from sockscope.cli.output import Output
from sockscope.pipeline.options import EngineChoice, RecordOptions

EXAMPLES = (
    "sudo sockscope attach 812",
    "sudo sockscope attach $(pgrep -o gunicorn) --duration 30 --html report.html",
    "sudo sockscope attach 812 --keep 60s --output /var/tmp/flight",
)


def attach(
    pid: Annotated[int, typer.Argument(metavar="PID", help="The process to follow, with all it has started and will.")],
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
    """Follow a running process and its children: a live timeline per connection, then the findings.

    Ends with Ctrl-C, --duration, or the target; the target goes on untouched.
    """
    wanted = Output(html=html, json=json, select=select, ignore=ignore, fail_on=fail_on, verbose=verbose)
    wanted.check()
    keep_s, alarm = flight(keep, output, wanted)
    from sockscope.cli.watch import watch
    from sockscope.pipeline.live import LiveView
    from sockscope.pipeline.record import Watcher
    from sockscope.reports.live import live_printer

    record_options = RecordOptions(
        pids=(pid,),
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
        code, _ = watch(record_options, wanted, keep=output, watcher=Watcher())
        return code
    view = LiveView(live_printer())
    code, _ = watch(record_options, wanted, keep=output, watcher=view.watcher, show_progress=False, done=view.finish)
    return code
