"""`sockscope report RECORDING`: any output from a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sockscope.cli import options as shared
from sockscope.cli.output import Output

EXAMPLES = "Examples: sockscope report rec/ --html report.html | sockscope report rec/ --connection 7"


def report(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="The folder that --output made.")],
    connection: Annotated[
        int | None, typer.Option("--connection", "-c", metavar="ID", help="Print this connection's whole timeline.")
    ] = None,
    html: shared.HtmlOption = None,
    json: shared.JsonOption = None,
    select: shared.SelectOption = "",
    ignore: shared.IgnoreOption = "",
    fail_on: shared.FailOnOption = shared.FailOn.warning,
    verbose: shared.VerboseOption = False,
) -> int:
    """Report on a recording: findings, connections, and what the recording lacks."""
    wanted = Output(html=html, json=json, select=select, ignore=ignore, fail_on=fail_on, verbose=verbose)
    wanted.check()
    from sockscope.pipeline.analyze import load_session

    session = load_session(recording)
    if connection is not None:
        from sockscope.cli.output import show_connection

        return show_connection(session, connection)
    return wanted.emit(session)
