"""`sockscope analyze`: offline, from a recording, a capture, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sockscope.cli import options as shared
from sockscope.cli.output import Output
from sockscope.errors import UsageError

EXAMPLES = (
    "sockscope analyze rec/",
    "sockscope analyze --pcap customer.pcapng --port 8080",
)


def analyze(
    recording: Annotated[
        Path | None, typer.Argument(metavar="[RECORDING]", help="A folder that --output made.")
    ] = None,
    pcap: Annotated[Path | None, typer.Option("--pcap", metavar="FILE", help="A pcap or pcapng file.")] = None,
    port: Annotated[
        list[int] | None, typer.Option("--port", "-p", metavar="N", help="The server's port; may be repeated.")
    ] = None,
    html: shared.HtmlOption = None,
    json: shared.JsonOption = None,
    select: shared.SelectOption = "",
    ignore: shared.IgnoreOption = "",
    fail_on: shared.FailOnOption = shared.FailOn.warning,
    verbose: shared.VerboseOption = False,
) -> int:
    """Analyze what was recorded earlier. Rules whose evidence is not there say so."""
    for number in port or ():
        if not 1 <= number <= 65535:
            raise UsageError(f"port {number} is out of range", help_text="ports go from 1 to 65535")
    wanted = Output(html=html, json=json, select=select, ignore=ignore, fail_on=fail_on, verbose=verbose)
    wanted.check()
    from sockscope.pipeline.analyze import load_session

    return wanted.emit(load_session(recording, pcap, tuple(port or ())))
