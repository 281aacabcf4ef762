"""`sockscope attach PID`: follow a process and its children, live."""

from __future__ import annotations

from typing import Annotated

import typer

from sockscope.cli.output import Output
from sockscope.cli.watching import Watching

EXAMPLES = (
    "sudo sockscope attach 812",
    "sudo sockscope attach $(pgrep -o gunicorn) --duration 30 --html report.html",
    "sudo sockscope attach 812 --keep 60s --output /var/tmp/flight",
)


def attach(
    watching: Watching,
    written: Output,
    pid: Annotated[int, typer.Argument(metavar="PID", help="The process to follow, with all it has started and will.")],
) -> int:
    """Follow a running process and its children: a live timeline per connection, then the findings.

    Ends with Ctrl-C, --duration, or the target; the target goes on untouched.
    """
    written.check()
    options = watching.of(written, pids=(pid,))
    from sockscope.cli.watch import watch
    from sockscope.pipeline.live import LiveView
    from sockscope.pipeline.record import Watcher
    from sockscope.reports.live import live_printer

    if written.json_to_stdout:
        code, _ = watch(options, written, keep=watching.output, watcher=Watcher())
        return code
    view = LiveView(live_printer())
    code, _ = watch(options, written, keep=watching.output, watcher=view.watcher, show_progress=False, done=view.finish)
    return code
