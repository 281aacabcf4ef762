"""`sockscope run -- CMD…`: a command watched from its first syscall."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sockscope.cli.output import Output
from sockscope.cli.watching import Watching

EXAMPLES = (
    "sudo sockscope run -- ./server --port 8080",
    "sudo sockscope run --fail-on warning --json out.json -- pytest tests/server",
)


def run(
    watching: Watching,
    written: Output,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD…", help="The command and its arguments.")],
    propagate_exit: Annotated[
        bool, typer.Option("--propagate-exit", help="Exit as the command did (128 + signal where one ended it).")
    ] = False,
) -> int:
    """Start a command, watch it from its first syscall to its end, then say what is wrong.

    The command keeps the terminal: Ctrl-C is its to handle, a second one ends it. With --json - its
    standard output goes to standard error, so that standard output carries JSON alone.
    """
    written.check()
    options = watching.of(written, command=tuple(command))
    from sockscope.cli.watch import watch
    from sockscope.pipeline.record import Watcher

    if written.json_to_stdout:
        # The command inherits descriptor 1; Python goes on writing to the real one.
        real = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = os.fdopen(real, "w", encoding="utf-8")
    code, recorded = watch(options, written, keep=watching.output, watcher=Watcher(), show_progress=False)
    if propagate_exit and recorded.exit_status is not None:
        status = os.waitstatus_to_exitcode(recorded.exit_status)
        return status if status >= 0 else 128 - status
    return code
