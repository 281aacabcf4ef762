"""`sockscope report RECORDING`: any output from a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sockscope.cli.output import Output, show_connection
from sockscope.errors import UsageError

EXAMPLES = (
    "sockscope report rec/ --html report.html",
    "sockscope report rec/ --connection 7",
)


def report(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="The folder that --output made.")],
    written: Output,
    connection: Annotated[
        int | None, typer.Option("--connection", "-c", metavar="ID", help="Print this connection's whole timeline.")
    ] = None,
    dissect: Annotated[
        bool, typer.Option("--dissect", help="With --connection: its packets too, layer by layer (the first 40).")
    ] = False,
) -> int:
    """Report on a recording: findings, connections, and what the recording lacks."""
    written.check()
    if dissect and connection is None:
        raise UsageError("--dissect needs --connection", help_text="name one: --connection 0 --dissect")
    from sockscope.pipeline.load import load_session

    session = load_session(recording)
    if connection is not None:
        code = show_connection(session, connection)
        if dissect:
            from rich.console import Console

            from sockscope.pipeline.dissect import dissect_connection
            from sockscope.reports.terminal_dissection import print_dissection

            found = dissect_connection(session, recording, connection)
            print_dissection(found, session.info, console=Console(highlight=False))
        return code
    return written.emit(session)
